"""From samples to medians, spreads and ratios."""

from __future__ import annotations

import pytest

from deltaproof.bench.model import Row, RowStatus
from deltaproof.bench.statistics import Samples, compare, geometric_mean, quantile, times


def timed(backend: str, median: float) -> Row:
    samples = Samples((median,) * 3, 4, "perf-counter")
    return Row(workload="w", backend=backend, form="chunk", status=RowStatus.TIMED, time=times(samples))


def test_a_quantile_lies_between_its_neighbours_whatever_the_order():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile(range(11), 0.9) == 9.0
    assert quantile([7.0], 0.1) == 7.0


def test_one_slow_replay_moves_the_spread_and_not_the_median():
    found = times(Samples((1.0,) * 20 + (50.0,), 6, "cuda-graph"))
    assert (found.median_ms, found.min_ms, found.p10_ms, found.p90_ms) == (1.0, 1.0, 1.0, 1.0)
    found = times(Samples((2.0, 1.0, 3.0, 50.0, 4.0), 6, "cuda-graph"))
    assert (found.median_ms, found.min_ms, found.replays, found.calls) == (3.0, 1.0, 5, 6)
    assert found.p90_ms > 4.0


def test_own_rows_are_set_beside_every_timed_peer_and_all_beside_the_floor():
    rows = [timed("ours", 2.0), timed("also", 6.0), timed("fla", 4.0), timed("qla", 1.0)]
    rows.append(Row(workload="w", backend="broken", form="chunk", status=RowStatus.FAIL))
    peers = {"ours": False, "also": False, "fla": True, "qla": True, "broken": True}
    found = {row.backend: row for row in compare(rows, 0.5, peers)}
    assert found["ours"].to_peers == {"fla": 0.5, "qla": 2.0}
    assert found["also"].to_peers == {"fla": 1.5, "qla": 6.0}
    assert found["fla"].to_peers == {} and found["fla"].to_floor == 8.0
    assert found["broken"].to_floor is None


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1.0)
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
