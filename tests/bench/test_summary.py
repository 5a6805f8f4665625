"""The numbers that sum up a run: classes, the fastest peer, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltaproof.bench.model import (
    BenchBackend,
    BenchReport,
    Ceilings,
    OutputError,
    Row,
    RowStatus,
    Times,
    WorkloadInfo,
)
from deltaproof.bench.statistics import compare as with_ratios
from deltaproof.bench.statistics import speedups
from deltaproof.bench.summary import classes, fastest_peer, first_own, summarize
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FEW = SequenceWorkload(heads=(2, 8), lengths=(2048,))
MANY = SequenceWorkload(heads=(16, 64), lengths=(1024,) * 8)


def times(median):
    return Times(median_ms=median, min_ms=median, p10_ms=median, p90_ms=median, replays=1, calls=1, method="cuda-graph")


def row(workload, backend, median, memory=None, rms=None):
    errors = []
    if rms is not None:
        errors = [OutputError(output="o", relative_rms=rms, rms_bound=1, largest=3 * rms, largest_bound=9, ok=True)]
    status = RowStatus.FAIL if median is None else RowStatus.TIMED
    return Row(
        workload=workload.name, backend=backend, form="chunk", status=status, errors=errors,
        time=None if median is None else times(median), peak_memory_bytes=memory,
    )  # fmt: skip


def report(workloads, rows, backends=(("ours", False), ("fla", True), ("qla", True))):
    infos = [
        WorkloadInfo(name=w.name, shape=w, bytes=1, flops=1, floor_ms=0.5, bound_by="memory", sets=2, set_bytes=1)
        for w in workloads
    ]
    peers = dict(backends)
    named = [BenchBackend(name=name, spec=name, peer=peer) for name, peer in backends]
    found = [x for w in workloads for x in with_ratios([r for r in rows if r.workload == w.name], 0.5, peers)]
    return BenchReport(
        operator="gated_delta_rule", verb="prefill", device="cuda", dtype="bfloat16", seed=0, command="",
        ceilings=Ceilings(
            copy_bytes_per_s=1, copy_bytes=1, matmul_flops_per_s=1, matmul_size=1, matmul_dtype="bfloat16"
        ),
        backends=named, workloads=infos, rows=found,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "lengths", "expected"),
    [
        ((2, 8), (32768,), ["few_heads", "one_sequence"]),
        ((2, 8), (1024,) * 8, ["few_heads"]),
        ((4, 16), (1024,) * 7, ["few_heads"]),
        ((4, 16), (1024,) * 8, ["saturated"]),
        ((16, 64), (32768,), ["one_sequence"]),
        ((16, 64), (4096, 0, 0), ["one_sequence"]),
        ((16, 64), (4096, 1), ["saturated"]),
        ((16, 48), (4096, 1), []),
        ((16, 32), (0, 0), []),
    ],
)
def test_a_sequence_workload_is_in_each_class_that_fits(heads, lengths, expected):
    assert classes(SequenceWorkload(heads=heads, lengths=lengths)) == expected


def test_rows_of_a_decode_count_as_sequences():
    assert classes(DecodeWorkload(heads=(16, 32), rows=1)) == ["one_sequence"]
    assert classes(DecodeWorkload(heads=(16, 32), rows=3)) == []
    assert classes(DecodeWorkload(heads=(16, 32), rows=4)) == ["saturated"]


def test_the_fastest_peer_of_each_workload_counts_and_more_than_one_is_faster():
    rows = [
        row(FEW, "ours", 1.0), row(FEW, "fla", 4.0), row(FEW, "qla", 2.0),
        row(MANY, "ours", 1.0), row(MANY, "fla", 0.5), row(MANY, "qla", 8.0),
    ]  # fmt: skip
    found = summarize(report((FEW, MANY), rows))
    assert (found.backend, found.workloads) == ("ours", 2)
    assert found.geomean_vs_fastest_peer == pytest.approx(1.0)  # of 2 and 1/2
    assert (found.worst_vs_fastest_peer, found.worst_workload) == (0.5, MANY.name)
    assert {name: ahead.worst_vs_fastest_peer for name, ahead in found.by_class.items()} == {
        "few_heads": 2.0, "one_sequence": 2.0, "saturated": 0.5,
    }  # fmt: skip
    assert found.by_peer["fla"].geomean == pytest.approx(2**0.5) and found.by_peer["qla"].worst == 2.0
    assert found.geomean_to_floor == pytest.approx(2.0) == found.worst_to_floor
    assert not found.not_timed and not found.no_peer


def test_a_workload_without_a_time_is_left_out_and_named():
    third = SequenceWorkload(heads=(4, 16), lengths=(64,))
    rows = [
        row(FEW, "ours", 1.0), row(FEW, "fla", 3.0), row(FEW, "qla", None),
        row(MANY, "ours", None), row(MANY, "fla", 0.5),
        row(third, "ours", 1.0), row(third, "fla", None),
    ]  # fmt: skip
    found = summarize(report((FEW, MANY, third), rows))
    assert (found.workloads, found.worst_vs_fastest_peer) == (1, 3.0)
    assert (found.not_timed, found.no_peer) == ([MANY.name], [third.name])
    assert set(found.by_peer) == {"fla"} and "saturated" not in found.by_class


def test_memory_and_errors_are_the_largest_ratios_to_a_peer():
    rows = [
        row(FEW, "ours", 1.0, 300, 0.002), row(FEW, "fla", 1.0, 200, 0.004),
        row(MANY, "ours", 1.0, 100, 0.003), row(MANY, "fla", 1.0, 200, 0.002),
    ]  # fmt: skip
    beside = summarize(report((FEW, MANY), rows)).by_peer["fla"]
    assert beside.most_memory == 1.5
    assert beside.most_rms_error == pytest.approx(1.5) and beside.most_largest_error == pytest.approx(1.5)
    bare = summarize(report((FEW,), [row(FEW, "ours", 1.0), row(FEW, "fla", 1.0)])).by_peer["fla"]
    assert bare.most_memory is bare.most_rms_error is bare.most_largest_error is None


def test_without_a_peer_there_is_the_floor_and_without_an_own_backend_nothing():
    alone = summarize(report((FEW,), [row(FEW, "ours", 1.0)]))
    assert alone.geomean_vs_fastest_peer is None and alone.workloads == 0 and alone.geomean_to_floor == 2.0
    assert alone.no_peer == [FEW.name] and alone.by_class == {} == alone.by_peer
    assert summarize(report((FEW,), [row(FEW, "ours", None), row(FEW, "fla", 1.0)])) is None
    assert fastest_peer(report((FEW,), [row(FEW, "ours", 1.0)]), FEW.name) is None


def test_the_first_own_backend_of_the_command_that_has_a_time_is_summed_up():
    backends = (("fla", True), ("triton", False), ("ours", False))
    rows = [row(FEW, "triton", None), row(FEW, "ours", 1.0), row(FEW, "fla", 2.0)]
    assert first_own(report((FEW,), rows, backends)) == "ours"
    rows[0] = row(FEW, "triton", 3.0)
    assert first_own(report((FEW,), rows, backends)) == "triton"


def _parts(values: dict[str, Any], under: str = "") -> tuple[dict[str, float], dict[str, Any]]:
    """Return a summary's fractions, and all else, by their paths."""
    fractions: dict[str, float] = {}
    others: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inner = _parts(value, f"{under}{name}.")
            fractions |= inner[0]
            others |= inner[1]
        else:
            (fractions if isinstance(value, float) else others)[under + name] = value
    return fractions, others


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bench-*.json")), ids=lambda path: path.stem)
def test_every_kept_run_can_be_read_and_summed_up_from_its_rows(path):
    kept = BenchReport.model_validate_json(path.read_text())
    found = summarize(kept)
    ratios = [values for (_, own), values in speedups(kept).items() if own == found.backend]
    assert found.worst_vs_fastest_peer == pytest.approx(min(min(one.values()) for one in ratios))
    assert found.workloads + len(found.not_timed) + len(found.no_peer) == len(kept.workloads)
    if kept.summary is not None:
        fractions, others = _parts(kept.summary.model_dump())
        # a mean's last bit is another one on another Python
        assert fractions == pytest.approx(_parts(found.model_dump())[0], rel=1e-12)
        assert others == _parts(found.model_dump())[1]
