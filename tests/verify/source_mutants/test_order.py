"""A mutant meets the checks that run it, the quickest of every probe and form first."""

from __future__ import annotations

from deltaproof.verify.case import Case
from deltaproof.verify.source_mutants.order import Ran, order
from deltaproof.verify.worker import Task

KERNEL, OTHER, HELPER = ("m", "kernel"), ("m", "other"), ("h", "helper")
RUNS = {KERNEL: frozenset({KERNEL, HELPER}), OTHER: frozenset({OTHER}), HELPER: frozenset({HELPER})}


def ran(probe: str, form: str, label: str, seconds: float, *launched: tuple[str, str], rank: int = 0) -> Ran:
    return Ran(Task(probe, Case(form, label)), rank, seconds, frozenset(launched))


def names(tasks: list[Task]) -> list[str]:
    return [f"{task.probe} {task.case.label}" for task in tasks]


def test_the_quickest_of_every_probe_and_form_come_first() -> None:
    control = [
        ran("values", "chunk", "slow", 5.0, KERNEL),
        ran("values", "chunk", "quick", 1.0, KERNEL),
        ran("values", "decode", "pool", 2.0, KERNEL),
        ran("slots", "decode", "padding", 0.5, KERNEL),
    ]
    assert names(order(control, KERNEL, RUNS)) == ["slots padding", "values quick", "values pool", "values slow"]


def test_the_second_tier_comes_after_all_of_the_first() -> None:
    control = [ran("values", "chunk", "full", 0.1, KERNEL, rank=1), ran("values", "chunk", "smoke", 9.0, KERNEL)]
    assert names(order(control, KERNEL, RUNS)) == ["values smoke", "values full"]


def test_checks_that_do_not_launch_it_are_left_out_also_for_a_helper() -> None:
    control = [ran("values", "chunk", "with", 1.0, KERNEL, OTHER), ran("values", "chunk", "without", 0.1, OTHER)]
    assert names(order(control, HELPER, RUNS)) == ["values with"]
    assert names(order(control, OTHER, RUNS)) == ["values without", "values with"]
    assert order(control, ("m", "never"), RUNS) == []
