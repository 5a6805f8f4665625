"""The result of a bench run, as data: what the table shows and what the JSON schema describes. Imports no torch."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload

BENCH_SCHEMA_VERSION = 1
CopyWay = Literal["driver", "kernel"]


class RowStatus(str, Enum):
    """What came of one backend on one workload."""

    TIMED = "timed"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    ERROR = "error"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Times(_Model):
    """Milliseconds a call, over replays of several calls each."""

    median_ms: float
    min_ms: float
    p10_ms: float
    p90_ms: float
    replays: int
    calls: int = Field(description="calls in one replay")
    method: str = Field(description="cuda-graph, cuda-events (launches from the host count) or perf-counter")
    note: str | None = Field(default=None, description="why no CUDA graph was taken")


class OutputError(_Model):
    """How far one output lies from the float32 reference; an error that is not finite is null and fails."""

    output: str
    relative_rms: float | None = Field(
        description="root mean square of the error ÷ that of the reference, or of a sum's terms where these cancel"
    )
    rms_bound: float
    largest: float | None = Field(description="largest absolute error")
    largest_bound: float
    where: list[int] | None = Field(default=None, description="index of the largest error")
    problem: str | None = Field(default=None, description="a wrong shape or dtype; nothing is compared then")
    ok: bool


class Row(_Model):
    """One backend on one workload."""

    workload: str
    backend: str
    form: str
    status: RowStatus
    reason: str | None = Field(default=None, description="why fail, unsupported or error")
    chosen: str | None = Field(default=None, description="of the backend `ours`: which it was for this call")
    notes: list[str] = Field(default_factory=list)
    errors: list[OutputError] = Field(default_factory=list)
    time: Times | None = Field(default=None, description="the call; in a backward run the backward alone")
    forward_backward: Times | None = Field(default=None, description="forward and backward; of a backward run")
    to_floor: float | None = Field(default=None, description="median time ÷ floor")
    to_peers: dict[str, float] = Field(
        default_factory=dict,
        description="on rows of the operator's own backends: median time ÷ each peer's, below 1 where it is faster",
    )
    to_copy: float | None = Field(
        default=None, description="time of the workload's copy ÷ median time; of a decode run"
    )
    to_one_token: float | None = Field(
        default=None,
        description="of a speculative step: median time ÷ that of one token with the same rows in this run",
    )
    peak_memory_bytes: int | None = Field(
        default=None, description="peak of one plain call beyond its inputs, with the forward in a backward run"
    )


class WorkloadInfo(_Model):
    """A workload with its floor on this machine."""

    name: str
    shape: SequenceWorkload | DecodeWorkload
    bytes: int
    flops: int
    floor_ms: float
    bound_by: Literal["memory", "matmul"]
    sets: int = Field(description="input sets that the timed calls take in turn")
    set_bytes: int = Field(description="bytes of one set")
    copy_time: Times | None = Field(
        default=None, description="of a decode run: the fastest copy of as many bytes, timed as the rows are"
    )
    copy_way: CopyWay | None = Field(default=None, description="how that copy was made; null: by the driver alone")


class Ceilings(_Model):
    """What the machine does at best, measured in the same run."""

    copy_bytes_per_s: float = Field(description="of a device copy, read + written")
    copy_bytes: int = Field(description="bytes of the copied buffer")
    copy_way: CopyWay | None = Field(default=None, description="which way of copying was the fastest")
    matmul_flops_per_s: float
    matmul_size: int = Field(description="rows and columns of its square matrices")
    matmul_dtype: str


class BenchBackend(_Model):
    """A backend of the run, or why it is not here."""

    name: str
    spec: str = Field(description="as the command named it")
    version: str | None = None
    peer: bool = Field(description="none of the operator's own backends")
    not_loaded: str | None = Field(default=None, description="why it could not be loaded")


class Ahead(_Model):
    """One backend beside the fastest peer of each workload: that peer's time ÷ its own, above 1 where it is faster."""

    workloads: int = Field(description="with a time of the backend and of a peer")
    geomean_vs_fastest_peer: float | None = Field(description="geometric mean; null where no workload has both times")
    worst_vs_fastest_peer: float | None
    worst_workload: str | None


class BesidePeer(_Model):
    """One backend beside one peer, over the workloads that both have a time of."""

    workloads: int
    geomean: float = Field(description="geometric mean of the peer's time ÷ the backend's, above 1 where it is faster")
    worst: float
    worst_workload: str
    most_memory: float | None = Field(description="largest ratio of peak memory, the backend's ÷ the peer's")
    most_rms_error: float | None = Field(
        description="largest ratio of an output's relative RMS error, the backend's ÷ the peer's"
    )
    most_largest_error: float | None = Field(description="largest ratio of an output's largest error")


class Summary(Ahead):
    """The first of the operator's own backends that has a time, over the whole run."""

    backend: str
    not_timed: list[str] = Field(description="workloads that the backend has no time of")
    no_peer: list[str] = Field(description="workloads that it has a time of and no peer has")
    geomean_to_floor: float
    worst_to_floor: float
    by_class: dict[str, Ahead] = Field(
        description="few_heads: at most 16 value heads and less than 128 sequences × value heads; one_sequence: one "
        "that is not empty; saturated: at least 128 sequences × value heads. A workload is in each class that fits, or "
        "in none; rows count as sequences"
    )
    by_peer: dict[str, BesidePeer]


class BenchReport(_Model):
    """A run of ``deltaproof bench``, or as much of it as was done when it was cut off."""

    schema_name: Literal["deltaproof.bench"] = "deltaproof.bench"
    schema_version: int = BENCH_SCHEMA_VERSION
    complete: bool = Field(default=True, description="false: the run did not reach its end; later workloads are absent")
    operator: str
    verb: Literal["prefill", "backward", "decode"]
    device: str
    dtype: str
    seed: int
    command: str
    machine: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    seconds: float = 0.0
    cache_bytes: int = Field(default=0, description="L2 cache of the GPU; 0 on a CPU, where it is not asked for")
    ceilings: Ceilings
    backends: list[BenchBackend]
    workloads: list[WorkloadInfo]
    rows: list[Row]
    summary: Summary | None = Field(default=None, description="null where no backend of the operator's own has a time")

    def of(self, *statuses: RowStatus) -> list[Row]:
        """Return the rows that ended in one of ``statuses``."""
        return [row for row in self.rows if row.status in statuses]
