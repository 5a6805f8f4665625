"""From samples to what a row says of them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltaproof.bench.model import BenchReport, Row, Times


@dataclass(frozen=True)
class Samples:
    """Milliseconds a call, one number a replay.

    Attributes:
        ms: the numbers.
        calls: calls in one replay.
        method: how they were taken.
        note: why not in a CUDA graph, where one was possible.
    """

    ms: tuple[float, ...]
    calls: int
    method: str
    note: str | None = None


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of some numbers, between two of them by their distance."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def times(samples: Samples) -> Times:
    """Return the median, the smallest and the tenth and ninetieth percentile."""
    return Times(
        median_ms=quantile(samples.ms, 0.5),
        min_ms=min(samples.ms),
        p10_ms=quantile(samples.ms, 0.1),
        p90_ms=quantile(samples.ms, 0.9),
        replays=len(samples.ms),
        calls=samples.calls,
        method=samples.method,
        note=samples.note,
    )


def compare(
    rows: Sequence[Row], floor_ms: float, peers: Mapping[str, bool], copy_ms: float | None = None,
    one_token_ms: Mapping[str, float] | None = None,
) -> list[Row]:  # fmt: skip
    """Return the rows of one workload with their ratios to the floor, to each timed peer, and to what else is given.

    Args:
        rows: of one workload.
        floor_ms: its floor.
        peers: backend -> whether it is a peer.
        copy_ms: time of a copy of as many bytes.
        one_token_ms: backend -> its time for one token, where the workload is a speculative step.
    """
    found = []
    for row in rows:
        if row.time is None:
            found.append(row)
            continue
        own = row.time.median_ms
        others = (
            {} if peers[row.backend] else {r.backend: r.time.median_ms for r in rows if r.time and peers[r.backend]}
        )
        ratios = {name: own / other for name, other in others.items()}
        plain = (one_token_ms or {}).get(row.backend)
        more = {"to_copy": copy_ms and copy_ms / own, "to_one_token": plain and own / plain}
        found.append(row.model_copy(update={"to_floor": own / floor_ms, "to_peers": ratios, **more}))
    return found


def speedups(report: BenchReport) -> dict[tuple[str, str], dict[str, float]]:
    """Return (peer, own backend) -> workload -> the peer's time ÷ the backend's: above 1 the backend is faster."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in report.rows:
        for peer, ratio in row.to_peers.items():
            found.setdefault((peer, row.backend), {})[row.workload] = 1 / ratio
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))
