"""Going on with a run: its verdicts hold while nothing that made them changed, and reasons are read anew."""

from __future__ import annotations

from itertools import islice

import pytest

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operator
from deltaproof.reports.source_mutants import SourceMutantRow
from deltaproof.verify.machine import versions
from deltaproof.verify.probe import Plan, probes
from deltaproof.verify.source_mutants.campaign import campaign_for, run, summary
from deltaproof.verify.source_mutants.equivalent import Equivalent
from deltaproof.verify.source_mutants.generate import SourceMutant, generate
from deltaproof.verify.source_mutants.resume import PACKAGE, REASONS, ROOMS, digest, read
from deltaproof.verify.source_mutants.untaken import taken

EVERY = taken("gated_delta_rule", generate())
FIRST, SECOND = EVERY[0], EVERY[1]
PLAN = Plan(operator("gated_delta_rule"), "decode", "smoke", "cpu")
CASES = tuple(case.id for case in islice(probes()["slots"].cases(PLAN), 2))


def campaign(*mutants: SourceMutant, **changes):
    chosen = {"backend": "triton", "jobs": 1, "mutants": tuple(item.id for item in mutants)}
    return campaign_for("gated_delta_rule", "cpu", "smoke", ("decode",), ("slots",), CASES, **{**chosen, **changes})


def row(mutant: SourceMutant, killed_by: str | None, **changes: object) -> SourceMutantRow:
    base = {
        "mutant": mutant.id, "mutation": mutant.operator, "function": mutant.place, "file": "f.py", "line": mutant.line,
        "before": mutant.before, "after": mutant.after, "killed_by": killed_by, "checks": 3, "probe": "slots",
    }  # fmt: skip
    return SourceMutantRow.model_validate({**base, **changes})


def earlier(*rows: SourceMutantRow, **changes: object):
    told = {
        "operator": "gated_delta_rule", "backend": "triton", "device": "cpu", "tier": "smoke", "forms": ["decode"],
        "probes": ["slots"], "cases": list(CASES), "seed": 0, "versions": versions(), "sources": digest(),
        "command": "deltaproof verify --source-mutants", "machine": {"cores": "64"}, "commit": "abc", "seconds": 9.0,
        "control_passed": 5, "control_left_out": 1,
    }  # fmt: skip
    return summary(list(rows)).model_copy(update={**told, **changes})


def test_what_was_tried_is_taken_over_and_nothing_runs_again() -> None:
    before = earlier(row(FIRST, "check"), row(SECOND, None))
    entries = [Equivalent(SECOND.place, "found out since", SECOND.operator, SECOND.before, SECOND.after)]
    found = run(campaign(FIRST, SECOND), ["deltaproof"], entries=entries, earlier=before)
    assert (found.total, found.killed, found.equivalent, found.complete, found.not_begun) == (2, 1, 1, True, 0)
    assert (found.control_passed, found.control_left_out) == (5, 1)
    assert [item.reason for item in found.rows] == ["", "found out since"]
    (run_before,) = found.earlier
    assert (run_before.command, run_before.machine, run_before.commit) == (before.command, {"cores": "64"}, "abc")
    assert (run_before.seconds, run_before.verdicts) == (9.0, 2)
    again = run(campaign(FIRST, SECOND), ["deltaproof"], entries=entries, earlier=found)
    assert [item.verdicts for item in again.earlier] == [2, 2] and again.rows == found.rows


def test_a_reason_for_a_mutant_that_an_earlier_run_killed_is_stale() -> None:
    entries = [Equivalent(FIRST.place, "wrong", FIRST.operator, FIRST.before, FIRST.after)]
    found = run(campaign(FIRST), ["deltaproof"], entries=entries, earlier=earlier(row(FIRST, "check")))
    assert found.stale == [f"{entries[0]}: {FIRST.id} is killed"] and not found.held


def test_only_the_verdicts_of_chosen_mutants_are_taken() -> None:
    before = earlier(row(FIRST, None, checks=0), row(SECOND, "check"))
    found = run(campaign(FIRST), ["deltaproof"], entries=(), earlier=before)
    assert [item.mutant for item in found.rows] == [FIRST.id]
    assert found.rows[0].note, "no check launched it, as before"


@pytest.mark.slow
def test_the_others_are_tried(interpreter) -> None:
    scale = next(item for item in EVERY if item.before.endswith("* scale") and not item.after.endswith("scale"))
    found = run(campaign(FIRST, scale), ["deltaproof"], earlier=earlier(row(FIRST, "crash")))
    assert {item.mutant: item.killed_by for item in found.rows} == {FIRST.id: "crash", scale.id: "check"}
    assert found.control_failures == [] and found.control_passed > 0 and found.earlier[0].verdicts == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": "0"}, "sources"),
        ({"seed": 1}, "a run with seed 0"),
        ({"tier": "full"}, "a run with tier 'smoke'"),
        ({"cases": []}, "a run with cases"),
        ({"device": "cuda"}, "a run with device 'cpu'"),
        ({"versions": {**versions(), "triton": "3.0.0"}}, "a run with triton"),
        ({"control_failures": ["values chunk: o differs"]}, "o differs"),
    ],
)
def test_a_run_that_differs_in_what_decides_a_verdict_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ContractError, match="resume") as caught:
        run(campaign(FIRST), ["deltaproof"], earlier=earlier(row(FIRST, "check"), **changes))
    assert said in str(caught.value)


def test_a_file_that_is_no_result_is_refused(tmp_path) -> None:
    for name, text in (("none.json", None), ("other.json", "{}"), ("torn.json", '{"rows": [')):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ContractError, match=name):
            read(tmp_path / name)
    (tmp_path / "good.json").write_text(earlier(row(FIRST, None)).model_dump_json())
    assert read(tmp_path / "good.json").total == 1


def test_the_digest_follows_kernels_and_probes_but_not_reasons(tmp_path) -> None:
    for room in ROOMS:
        assert any((PACKAGE / room).rglob("*.py")), room
        (tmp_path / room).mkdir()
    reasons, probe = tmp_path / REASONS[0], tmp_path / "verify" / "probe.py"
    reasons.parent.mkdir()
    reasons.write_text("a")
    probe.write_text("a")
    first = digest(tmp_path)
    reasons.write_text("b")
    assert digest(tmp_path) == first
    probe.write_text("b")
    assert digest(tmp_path) != first
    second = digest(tmp_path)
    probe.rename(tmp_path / "ops" / "probe.py")
    assert digest(tmp_path) != second
