"""The mutants of the kernels' source as text and JSON."""

from __future__ import annotations

import io
import json

import jsonschema
import pytest
from rich.console import Console

from deltaproof.reports.schema import source_mutants_schema
from deltaproof.reports.source_mutants import SourceMutantRow, SourceMutantsReport
from deltaproof.reports.source_mutants_text import print_source_mutants
from deltaproof.verify.source_mutants.campaign import summary


def row(ordinal: int, **changes: object) -> SourceMutantRow:
    base = {
        "mutant": f"common/triton_f:kernel:shift-bound:{ordinal}",
        "mutation": "shift-bound",
        "hazard": "unmasked-load",
        "function": "common/triton_f:kernel",
        "file": "deltaproof/ops/common/triton_f.py",
        "line": 7,
        "before": "at < K",
        "after": "at <= K",
        "killed_by": "check",
        "checks": 4,
    }
    return SourceMutantRow(**{**base, **changes})


def report(*rows: SourceMutantRow, **changes: object) -> SourceMutantsReport:
    return summary(list(rows)).model_copy(update={"generated": len(rows), "control_passed": 9, **changes})


def text(found: SourceMutantsReport) -> str:
    file = io.StringIO()
    print_source_mutants(found, Console(file=file, width=160))
    return file.getvalue()


def test_both_scores_are_over_the_right_mutants() -> None:
    found = report(
        row(1), row(2, killed_by="crash"), row(3, killed_by=None, reason="rows end there"), row(4, killed_by=None)
    )
    assert (found.killed, found.killed_by_check, found.equivalent, found.total) == (2, 1, 1, 4)
    assert found.score == pytest.approx(2 / 4)
    assert found.score_without_equivalent == pytest.approx(2 / 3)
    assert found.by_mutation["shift-bound"].model_dump() == {"killed": 2, "total": 4}
    assert found.by_function["common/triton_f:kernel"].model_dump() == {"killed": 2, "total": 4}


def test_it_holds_at_the_bar_with_a_control_and_a_list_that_hold() -> None:
    rows = [row(place) for place in range(17)] + [row(place, killed_by=None) for place in range(17, 20)]
    assert report(*rows).held
    assert not report(*rows[1:]).held
    assert not report(*rows, control_failures=["values chunk: o differs"]).held
    assert not report(*rows, stale=["an entry: no such mutant"]).held
    assert not report(*rows, complete=False).held
    assert not report().held


def test_a_mutant_that_lives_is_shown_with_its_place_its_change_and_why() -> None:
    lines = text(report(row(1), row(2, killed_by=None, note="no check launches it"))).splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("lives"))
    assert "common/triton_f:kernel:shift-bound:2  deltaproof/ops/common/triton_f.py:7" in lines[at]
    assert "at < K  →  at <= K" in lines[at + 1]
    assert lines[at + 2].strip() == "no check launches it (4 checks ran)"
    assert "unexplained (4 checks ran, 1 said nothing)" in text(report(row(1, killed_by=None, inconclusive=["x"])))
    assert "rows end there" in text(report(row(1, killed_by=None, reason="rows end there")))


def test_the_last_line_tells_checks_from_errors_and_names_a_sample() -> None:
    found = report(row(1), row(2, killed_by="timeout", message="no answer within 60 s"), generated=10)
    last = text(found).splitlines()[-1]
    assert last.startswith("2 of 10 mutants tried; 2 of 2 killed (100.0%; asked for 85%): 1 by a check, 1 by an error;")
    assert "killed by timeout  common/triton_f:kernel:shift-bound:2: no answer within 60 s" in text(found)


def test_a_failed_control_and_a_stale_reason_are_named() -> None:
    shown = text(report(row(1), control_failures=["values chunk: o differs"], stale=["an entry: no such mutant"]))
    assert "control fails  values chunk: o differs" in shown
    assert "stale reason  an entry: no such mutant" in shown


def test_a_run_that_was_cut_off_says_so_and_how_many_verdicts_are_missing() -> None:
    shown = text(report(row(1), complete=False, not_begun=7))
    assert "not whole: the run did not reach its end; chosen mutants without a verdict: 7" in shown
    assert "not whole" not in text(report(row(1), not_begun=7))


def test_the_json_follows_its_schema() -> None:
    written = json.loads(report(row(1), row(2, killed_by=None)).model_dump_json())
    jsonschema.validate(written, source_mutants_schema())
    assert (written["schema_name"], written["schema_version"]) == ("deltaproof.source-mutants", 1)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**written, "schema_version": 2}, source_mutants_schema())
