"""A run: the unchanged kernels pass, a bad slip is killed, and what is odd is said."""

from __future__ import annotations

from itertools import islice

import pytest

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operator
from deltaproof.reports.source_mutants import SourceMutantsReport
from deltaproof.verify import keeper as keeping
from deltaproof.verify.keeper import KEEP_SECONDS, Keeper
from deltaproof.verify.probe import Plan, probes
from deltaproof.verify.source_mutants.campaign import NOT_RUN, Campaign, campaign_for, run
from deltaproof.verify.source_mutants.equivalent import Equivalent
from deltaproof.verify.source_mutants.generate import generate
from deltaproof.verify.source_mutants.untaken import taken

EVERY = taken("gated_delta_rule", generate())
PLAN = Plan(operator("gated_delta_rule"), "decode", "smoke", "cpu")


def campaign(**changes) -> Campaign:
    base = {"backend": "triton", "jobs": 1}
    cases = tuple(case.id for case in islice(probes()["slots"].cases(PLAN), 2))
    return campaign_for("gated_delta_rule", "cpu", "smoke", ("decode",), ("slots",), cases, **{**base, **changes})


def scaled():
    """Return the mutants that leave the scale out of a kernel that decodes."""
    return [item for item in EVERY if item.before.endswith("* scale") and not item.after.endswith("scale")]


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order() -> None:
    drawn = campaign(sample=10, seed=3).choose(EVERY)
    assert len(drawn) == 10
    assert drawn == campaign(sample=10, seed=3).choose(EVERY)
    assert drawn != campaign(sample=10, seed=4).choose(EVERY)
    places = [EVERY.index(item) for item in drawn]
    assert places == sorted(places)
    assert campaign(sample=10**6).choose(EVERY) == EVERY


def test_mutants_are_named_by_id_or_pattern() -> None:
    assert campaign(mutants=(EVERY[5].id,)).choose(EVERY) == [EVERY[5]]
    stores = campaign(mutants=("*:drop-store:*",)).choose(EVERY)
    assert {item.operator for item in stores} == {"drop-store"}
    with pytest.raises(ContractError, match="no-such"):
        campaign(mutants=("no-such",)).choose(EVERY)


def test_the_full_tier_comes_after_the_smoke_tier() -> None:
    full = campaign_for("gated_delta_rule", "cpu", "full", ("decode",), ("values",), (), backend="triton")
    ranks = [rank for rank, _ in full.tasks()]
    smoke = campaign_for("gated_delta_rule", "cpu", "smoke", ("decode",), ("values",), (), backend="triton").tasks()
    assert ranks == sorted(ranks)
    assert [item for item in full.tasks() if item[0] == 0] == smoke
    assert 1 in ranks


@pytest.mark.slow
def test_unchanged_kernels_pass_a_lost_scale_is_killed_and_what_is_not_run_lives(interpreter) -> None:
    kernel, unused = scaled()[0], next(item for item in EVERY if "backward" in item.function)
    assert "recurrence" in kernel.id, "the first file with a scale is the one that decodes"
    entries = [Equivalent(kernel.place, "for this test", kernel.operator, kernel.before, kernel.after)]
    advanced: list[str] = []
    report = run(campaign(mutants=(kernel.id, unused.id)), ["deltaproof"], advanced.append, entries)
    assert report.control_failures == []
    assert report.control_passed > 0
    rows = {row.mutant: row for row in report.rows}
    assert (rows[kernel.id].killed_by, rows[kernel.id].probe) == ("check", "slots")
    assert rows[kernel.id].message
    assert (rows[unused.id].killed_by, rows[unused.id].note) == (None, NOT_RUN)
    assert (report.killed, report.total, report.generated, report.complete) == (1, 2, len(EVERY), True)
    assert report.stale == [f"{entries[0]}: {kernel.id} is killed"]
    assert not report.held
    assert advanced.count(kernel.id) == 1
    assert advanced.count("control slots") == report.control_passed + report.control_left_out


@pytest.mark.slow
def test_what_is_known_is_kept_while_it_runs_and_is_not_whole(interpreter, monkeypatch) -> None:
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.0)
    found: list[SourceMutantsReport] = []
    chosen = tuple(item.id for item in scaled()[:2])
    report = run(campaign(mutants=chosen), ["deltaproof"], keep=found.append)
    assert not any(item.complete or item.held for item in found)
    counts = [item.total for item in found]
    assert counts == sorted(counts) and {0, 1} <= set(counts), "before the first verdict, and after each"
    first = next(item for item in found if item.total == 1)
    assert first.not_begun == 1 and first.control_passed == report.control_passed
    assert first.rows[0] in report.rows and (first.command, first.commit) == (report.command, report.commit)
    assert (report.complete, report.total, report.not_begun) == (True, 2, 0)


def test_a_report_so_far_is_handed_on_at_once_then_now_and_then_and_only_with_news(monkeypatch) -> None:
    now, kept = [100.0], []
    monkeypatch.setattr(keeping.time, "monotonic", lambda: now[0])
    keeper = Keeper(lambda: kept.append(now[0]))
    assert keeper.wait() is None and kept == []
    keeper.news = True
    assert keeper.wait() is None and kept == [100.0]
    now[0] = 105.0
    keeper.news = True
    assert keeper.wait() == KEEP_SECONDS - 5 and kept == [100.0]
    now[0] = 100.0 + KEEP_SECONDS
    assert keeper.wait() is None and kept == [100.0, 100.0 + KEEP_SECONDS]


@pytest.mark.slow
def test_after_the_time_no_mutant_is_begun_and_they_are_counted(interpreter) -> None:
    report = run(campaign(mutants=(scaled()[0].id,), minutes=0.0), ["deltaproof"])
    assert report.control_failures == []
    assert (report.total, report.not_begun, report.held) == (0, 1, False)


@pytest.mark.slow
def test_a_backend_that_launches_none_of_the_kernels_is_no_control() -> None:
    report = run(campaign(backend="torch", mutants=(EVERY[0].id,)), ["deltaproof"])
    assert report.control_failures == ["no check launched a kernel: the backend is not made of these files"]
    assert report.rows == []
    assert not report.held
