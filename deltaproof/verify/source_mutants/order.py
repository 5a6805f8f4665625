"""Which checks can tell a mutant from the unchanged kernels, and in which order they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltaproof.verify.source_mutants.calls import Function
from deltaproof.verify.worker import Task


@dataclass(frozen=True)
class Ran:
    """A check that the unchanged kernels pass.

    Attributes:
        task: the check.
        rank: rank of its tier; lower comes first.
        seconds: how long it took.
        launched: kernels it launched.
    """

    task: Task
    rank: int
    seconds: float
    launched: frozenset[Function]


def order(control: Iterable[Ran], function: Function, runs: Mapping[Function, frozenset[Function]]) -> list[Task]:
    """Return the checks that run a function: of every probe and form the quickest first, then the next of each.

    A check that launches no kernel which calls the function has nothing in it that a mutant could change.
    """
    able = [ran for ran in control if any(function in runs.get(kernel, ()) for kernel in ran.launched)]
    turns: Counter[tuple[int, str, str]] = Counter()
    placed = []
    for ran in sorted(able, key=lambda ran: ran.seconds):
        group = (ran.rank, ran.task.probe, ran.task.case.form)
        placed.append((ran.rank, turns[group], ran.seconds, ran.task.probe, ran.task.case.id, ran.task))
        turns[group] += 1
    return [item[-1] for item in sorted(placed, key=lambda item: item[:-1])]
