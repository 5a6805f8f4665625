"""One run: load the backends, measure the ceilings, then for every workload check and time each backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch

from deltaproof.backends.registry import load
from deltaproof.bench import ceilings
from deltaproof.bench.check import compare, describe
from deltaproof.bench.copies import fastest_copy
from deltaproof.bench.device import Device, device_of
from deltaproof.bench.inputs import call_bytes, dtype_of
from deltaproof.bench.loading import OURS, Loaded, load_backends, reason
from deltaproof.bench.model import BenchReport, Ceilings, CopyWay, OutputError, Row, RowStatus, WorkloadInfo
from deltaproof.bench.statistics import compare as compare_rows
from deltaproof.bench.statistics import times
from deltaproof.bench.summary import summarize
from deltaproof.bench.tokens import SEED
from deltaproof.bench.verbs import VERBS, Call, Outputs, Plan, Unsupported, Verb
from deltaproof.bench.workload import DecodeWorkload, Workload
from deltaproof.contracts.errors import ContractError
from deltaproof.verify.machine import commit, machine, versions

REFERENCE = "torch"


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        operator: name of the operator.
        verb: "prefill", "backward" or "decode".
        backends: as the user names them; None for the default ones (see ``load_backends``).
        workloads: of the verb, no name twice.
        device: "cuda" or "cpu".
        dtype: of q, k, v and beta.
        replays: timed replays a row; None for the device's own number.
    """

    operator: str
    verb: str
    backends: tuple[str, ...] | None
    workloads: tuple[Workload, ...]
    device: str
    dtype: str
    replays: int | None = None


def run(
    settings: Settings,
    command: str,
    progress: Callable[[Row], None] = lambda row: None,
    device: Device | None = None,
    keep: Callable[[BenchReport], None] = lambda report: None,
) -> BenchReport:
    """Run and return the report.

    Args:
        settings: what is run.
        command: the command line, for the report.
        progress: called with every row as it ends, before it has its ratios.
        device: clock and memory; by default those of ``settings.device``.
        keep: called with the report so far before the first workload and after every one; it is ``complete`` after the
            last.

    Raises:
        ContractError: see ``load_backends``.
    """
    start = time.monotonic()
    loaded = load_backends(settings.operator, settings.device, settings.backends)
    device = device or device_of(settings.device)
    ceiling = ceilings.measure(device)
    bench = _Bench(settings, VERBS[settings.verb](settings.operator), device, ceiling, loaded, progress)
    report = BenchReport(
        complete=not settings.workloads,
        operator=settings.operator,
        verb=cast(Literal["prefill", "backward", "decode"], settings.verb),
        device=settings.device,
        dtype=settings.dtype,
        seed=SEED,
        command=command,
        machine=machine(settings.device),
        versions=versions(),
        commit=commit(),
        cache_bytes=device.cache_bytes,
        ceilings=ceiling,
        backends=[one.info for one in loaded],
        workloads=[],
        rows=[],
    )
    # once before the first workload, so that no file of an earlier run is taken for this one's
    keep(report)
    for done, workload in enumerate(settings.workloads, start=1):
        info, rows = bench.workload(workload, report)
        report.workloads.append(info)
        report.rows.extend(rows)
        report.summary = summarize(report)
        report.seconds = time.monotonic() - start
        report.complete = done == len(settings.workloads)
        keep(report)
    return report


def exit_code(report: BenchReport) -> int:
    """Return 1 where a backend failed its check or raised, 2 where nothing was timed, else 0."""
    if report.of(RowStatus.FAIL, RowStatus.ERROR):
        return 1
    return 0 if report.of(RowStatus.TIMED) else 2


@dataclass
class _Bench:
    settings: Settings
    verb: Verb
    device: Device
    ceilings: Ceilings
    loaded: list[Loaded]
    progress: Callable[[Row], None]

    def workload(self, workload: Workload, before: BenchReport) -> tuple[WorkloadInfo, list[Row]]:
        work = self.verb.work(workload, self.settings.dtype)
        rate = (self.ceilings.copy_bytes_per_s, self.ceilings.matmul_flops_per_s)
        failure = None
        calls: list[Any] = []
        try:
            calls = self.verb.draw(
                workload, dtype_of(self.settings.dtype), self.settings.device, self.device.cache_bytes
            )
        except Exception as error:
            failure = f"the inputs could not be drawn: {reason(error)}"
        references: dict[int, tuple[Call, Outputs]] = {}
        rows = []
        for one in self.loaded:
            if one.info.not_loaded is not None:
                continue
            if failure is not None:
                row = self._row(workload, one, "", RowStatus.ERROR, reason=failure)
            else:
                row = self._measured(workload, one, calls, references)
            self.progress(row)
            rows.append(row)
            self.device.free()
        floor = work.floor_ms(*rate)
        way, copy = None, None
        if isinstance(workload, DecodeWorkload) and calls:
            replays = self.settings.replays or self.device.replays
            way, samples = fastest_copy(self.device, len(calls), work.bytes, replays)
            copy = times(samples)
        info = WorkloadInfo(
            name=workload.name,
            shape=workload,
            bytes=work.bytes,
            flops=work.flops,
            floor_ms=floor,
            bound_by=cast(Literal["memory", "matmul"], work.bound_by(*rate)),
            sets=len(calls),
            set_bytes=call_bytes(calls[0]) if calls else 0,
            copy_time=copy,
            copy_way=cast(CopyWay | None, way),
        )
        plain: dict[str, float] = {}
        if isinstance(workload, DecodeWorkload) and workload.drafts:
            name = replace(workload, drafts=0).name
            plain = {row.backend: row.time.median_ms for row in before.rows if row.workload == name and row.time}
        copy_ms = None if copy is None else copy.median_ms
        peers = {one.info.name: one.info.peer for one in self.loaded}
        return info, compare_rows(rows, floor, peers, copy_ms, plain)

    @staticmethod
    def _row(workload: Workload, one: Loaded, form: str, status: RowStatus, **more: Any) -> Row:
        return Row(workload=workload.name, backend=one.info.name, form=form, status=status, **more)

    def _measured(
        self,
        workload: Workload,
        one: Loaded,
        calls: list[Any],
        references: dict[int, tuple[Call, Outputs]],
    ) -> Row:
        form = ""
        errors: list[OutputError] = []
        more: dict[str, Any] = {}
        try:
            with self.device.scope(), self.verb.mode():
                backend = one.for_call(self.settings.operator, self.verb.form, self.verb.asked(calls[0]))
                more = {"chosen": backend.name} if one.info.name == OURS else {}
                plan = self.verb.plan(backend, calls)
                form, more = plan.form, {**more, "notes": list(plan.notes)}
                errors = self._check(plan, references)
                if wrong := describe(errors):
                    return self._row(workload, one, form, RowStatus.FAIL, reason=wrong, errors=errors, **more)
                self.device.free()
                replays = self.settings.replays or self.device.replays
                peak = self.device.peak_bytes(plan.plain)
                measured = times(self.device.measure(plan.runs(), replays))
                both = None if plan.both is None else times(self.device.measure(plan.both(), replays))
                return self._row(
                    workload, one, form, RowStatus.TIMED, errors=errors, time=measured,
                    forward_backward=both, peak_memory_bytes=peak, **more,
                )  # fmt: skip
        except Unsupported as why:
            return self._row(workload, one, form, RowStatus.UNSUPPORTED, reason=str(why))
        except Exception as error:
            return self._row(workload, one, form, RowStatus.ERROR, reason=reason(error), errors=errors, **more)

    def _check(self, plan: Plan, references: dict[int, tuple[Call, Outputs]]) -> list[OutputError]:
        """Return how far the first set's outputs lie from the reference, which backends with the same call share."""
        if id(plan.call) not in references:
            with _full_precision():
                reference = self.verb.reference(load(REFERENCE, self.settings.operator), plan.call)
            # the call is kept with its outputs: its id would else be given again
            references[id(plan.call)] = (plan.call, reference)
        want = references[id(plan.call)][1]
        got, least = plan.outputs(), plan.least(want)
        return [
            compare(name, got[name], want[name], stored, plan.roundings[name], least.get(name, 0.0))
            for name, stored in plan.stored.items()
        ]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 matrix products of the reference in float32, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in "a,b"; None for None.

    Raises:
        ContractError: there is none.
    """
    if text is None:
        return None
    found: Sequence[str] = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ContractError("--backends", "names with commas between them", repr(text))
    return tuple(found)
