"""A run in a few numbers: one backend beside the fastest peer of every workload, in all and by class of workload.

Every ratio of times here is the peer's ÷ the backend's: above 1 the backend is faster. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from deltaproof.bench.model import Ahead, BenchReport, BesidePeer, Row, Summary
from deltaproof.bench.statistics import geometric_mean
from deltaproof.bench.workload import DecodeWorkload, Workload

SATURATED = 128
"""Sequences × value heads from which on a program each fills a GPU of 132 multiprocessors, less a few."""
FEW_HEADS = 16
"""Value heads of a sequence up to which it keeps at most an eighth of such a GPU busy, unless it is split."""


def sequences(workload: Workload) -> int:
    """Return how many sequences that are not empty, or rows, a workload has."""
    return workload.rows if isinstance(workload, DecodeWorkload) else sum(length > 0 for length in workload.lengths)


def _independent(workload: Workload) -> int:
    return sequences(workload) * workload.heads[1]


CLASSES: Mapping[str, Callable[[Workload], bool]] = {
    "few_heads": lambda workload: workload.heads[1] <= FEW_HEADS and _independent(workload) < SATURATED,
    "one_sequence": lambda workload: sequences(workload) == 1,
    "saturated": lambda workload: _independent(workload) >= SATURATED,
}
"""Name -> whether a workload is in it; it may be in several, or in none."""


def classes(workload: Workload) -> list[str]:
    """Return the classes of a workload, in order."""
    return [name for name, holds in CLASSES.items() if holds(workload)]


def fastest_peer(report: BenchReport, workload: str) -> Row | None:
    """Return the row of the peer with the smallest median, or None where no peer has a time."""
    peers = {one.name for one in report.backends if one.peer}
    timed = [(row.time.median_ms, row) for row in report.rows if row.time and row.workload == workload]
    return min((pair for pair in timed if pair[1].backend in peers), key=lambda pair: pair[0], default=(0.0, None))[1]


def first_own(report: BenchReport) -> str | None:
    """Return the first of the operator's own backends, as the command named them, that has a time."""
    timed = {row.backend for row in report.rows if row.time is not None}
    return next((one.name for one in report.backends if not one.peer and one.name in timed), None)


def rows_of(report: BenchReport, backend: str) -> dict[str, Row]:
    """Return a backend's rows that have a time, by workload."""
    return {row.workload: row for row in report.rows if row.backend == backend and row.time is not None}


def _milliseconds(row: Row) -> float:
    assert row.time is not None
    return row.time.median_ms


def _ahead(ratios: Mapping[str, float]) -> Ahead:
    worst = min(ratios, key=lambda name: ratios[name], default=None)
    return Ahead(
        workloads=len(ratios),
        geomean_vs_fastest_peer=geometric_mean(list(ratios.values())) if ratios else None,
        worst_vs_fastest_peer=None if worst is None else ratios[worst],
        worst_workload=worst,
    )


def _most(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Return the largest ratio of the pairs; one with nothing to compare with has none."""
    return max((own / other for own, other in pairs if own is not None and other), default=None)


def _beside(own: Mapping[str, Row], peer: Mapping[str, Row]) -> BesidePeer | None:
    both = [(row, peer[name]) for name, row in own.items() if name in peer]
    if not both:
        return None
    ahead = _ahead({row.workload: _milliseconds(other) / _milliseconds(row) for row, other in both})
    assert ahead.geomean_vs_fastest_peer and ahead.worst_vs_fastest_peer and ahead.worst_workload
    errors = [
        (error, other)
        for row, beside in both
        for error in row.errors
        for other in beside.errors
        if error.output == other.output
    ]
    return BesidePeer(
        workloads=ahead.workloads,
        geomean=ahead.geomean_vs_fastest_peer,
        worst=ahead.worst_vs_fastest_peer,
        worst_workload=ahead.worst_workload,
        most_memory=_most((row.peak_memory_bytes, other.peak_memory_bytes) for row, other in both),
        most_rms_error=_most((error.relative_rms, other.relative_rms) for error, other in errors),
        most_largest_error=_most((error.largest, other.largest) for error, other in errors),
    )


def summarize(report: BenchReport) -> Summary | None:
    """Return the summary of a run, or None where no backend of the operator's own has a time."""
    backend = first_own(report)
    if backend is None:
        return None
    own = rows_of(report, backend)
    ratios: dict[str, float] = {}
    for name, row in own.items():
        peer = fastest_peer(report, name)
        if peer is not None:
            ratios[name] = _milliseconds(peer) / _milliseconds(row)
    members: dict[str, Sequence[str]] = {
        name: [one.name for one in report.workloads if one.name in ratios and holds(one.shape)]
        for name, holds in CLASSES.items()
    }
    floors = [row.to_floor for row in own.values() if row.to_floor]
    besides = {one.name: _beside(own, rows_of(report, one.name)) for one in report.backends if one.peer}
    return Summary(
        **_ahead(ratios).model_dump(),
        backend=backend,
        not_timed=[one.name for one in report.workloads if one.name not in own],
        no_peer=[name for name in own if name not in ratios],
        geomean_to_floor=geometric_mean(floors),
        worst_to_floor=max(floors),
        by_class={name: _ahead({x: ratios[x] for x in names}) for name, names in members.items() if names},
        by_peer={name: beside for name, beside in besides.items() if beside is not None},
    )
