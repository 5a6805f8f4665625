"""Graph: capture and replay, no host synchronisation, the caller's stream, no memory taken (GPUs only)

What it does
    Captures a call in a CUDA graph and replays it after tokens, indices, pool and bounds were changed in place, with
    padding rows that come and go. Makes a warm call with host synchronisation forbidden. Makes a call on a side stream
    behind work that delays its inputs. Counts what a warm decode with ``out=`` takes from the allocator.

What it shows
    Indices read on the host or baked into a launch, a padding row decided at capture, a result kept from the first
    call, a kernel launched on another stream than the caller's, a copy to the host.

How it judges
    Every replay and the call on the side stream must give the bits of an eager call on the same inputs, pool included.
    A synchronisation, a capture that fails and an allocation are failures where the backend does not declare "graph",
    "sync_free_varlen" or "allocation_free" unsupported.

What it cannot see
    Synchronisations and allocations that go round PyTorch; graphs of the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from deltaproof.contracts.conventions import GateSpace, Padding
from deltaproof.verify.case import Case
from deltaproof.verify.observation import HarnessError, Observation, Skipped, Unsupported
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes._cuda import Cuda, Device
from deltaproof.verify.probes._exact import exact, snapshot
from deltaproof.verify.probes._runs import arguments, make, require
from deltaproof.verify.target import Outputs

ORDER = 81
REPLAY, SYNC, STREAM, MEMORY = "replay", "no sync", "side stream", "no allocation"
SLOTS = 9


class Graph(Probe):
    """Clause P6."""

    name = "graph"
    clause = "P6"
    clauses = ("P6",)
    hazards = ("padding-slot-address", "incomplete-cache-key")
    forms = ("decode", "prefill", "chunk")
    cuda_only = True
    timeout = 180.0

    def __init__(self, device: Device | None = None) -> None:
        self.device: Device = device or Cuda()

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, B=5, T=1, K=64, V=48, slots=SLOTS, read=(1, 2, 3, 4, 5))
        moved = base.but(read=(1, 2, 3, 1, 4), write=(5, 6, 7, 8, 0), fresh=(False, True, False, False, True))
        if form == "chunk":
            base = moved = Case(form, B=3, T=150, K=64, V=48)
        elif form == "prefill":
            base = base.but(B=3, T=150, read=(1, 2, 3))
            moved = base.but(read=(1, 2, 1), write=(5, 6, 7), fresh=(False, True, False))
        low = moved.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True, layout="v_first")
        ragged = low.but(T=4, num_tokens=(4, 2, 0, 1, 3), write=_token_writes(5, 4), slots=30)
        pack = low.but(seqlens=(5, 100, 40), tail=3)
        speculative = low.but(T=3, drafts=4, halves=(0, 1, -1, 0, 1), accepted=(2, 0, 0, 4, 1))
        for label in (REPLAY, SYNC, STREAM):
            yield base.but(label=label)
            yield low.but(label=label, **({} if form == "decode" else {"chunk_size": 32}))
            yield ragged.but(label=label) if form == "decode" else pack.but(label=label)
            if form == "decode":
                yield speculative.but(label=label)
            if plan.full:
                for K, V in ((128, 128), (96, 160)):
                    for dtype in ("float32", "bfloat16", "float16"):
                        yield base.but(label=label, K=K, V=V, dtype=dtype)
        if form == "decode":
            yield base.but(label=MEMORY)
            yield low.but(label=MEMORY)
            yield speculative.but(label=MEMORY)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.seqlens is not None and case.label != STREAM:
            require(context, "sync_free_varlen")
        if case.label == REPLAY:
            require(context, "graph")
            yield from self._replay(case, context)
        elif case.label == SYNC:
            yield from self._sync(case, context)
        elif case.label == STREAM:
            yield from self._stream(case, context)
        else:
            require(context, "allocation_free")
            yield self._memory(case, context)

    def _replay(self, case: Case, context: Context) -> Iterator[Observation]:
        """Capture once, replay with other inputs, and compare with eager calls."""
        steps = list(enumerate(_steps(case, context)))
        eager = [snapshot(make(step, context, context.call(step, turn=turn)).results) for turn, step in steps]
        static = context.call(case)
        replay = None
        try:
            replay = self.device.capture(lambda: context.target.launch(case.form, static))
        except (Unsupported, Skipped, HarnessError):
            raise
        except Exception as error:
            yield Observation(False, "P6", f"the call could not be captured: {_line(error)}", "padding-slot-address")
        if replay is None:
            return
        outputs: Outputs | None = None
        for turn, step in steps:
            _load(static, context.call(step, turn=turn))
            if outputs is not None:
                # what a replay does not write must not look right by chance
                outputs.o.fill_(float("nan"))
            self.device.synchronize()
            outputs = replay()
            results = snapshot(_results(static, outputs))
            read = "" if step.read is None else f", read_index {list(step.read)}"
            what = f"replay {turn + 1} of a captured graph{read}, and an eager call on the same inputs"
            hazard = "padding-slot-address" if _has_padding(step) else "incomplete-cache-key"
            for name, want in eager[turn].items():
                yield exact(name, results[name], want, "P6", hazard, what)

    def _sync(self, case: Case, context: Context) -> Iterator[Observation]:
        """Make a warm call while host synchronisation raises."""
        want = snapshot(make(case, context, context.call(case, turn=1)).results)
        make(case, context)
        call = context.call(case, turn=1)
        outputs = None
        try:
            with self.device.no_sync():
                outputs = context.target.launch(case.form, call)
        except (Unsupported, Skipped, HarnessError):
            raise
        except Exception as error:
            text = f"the call waits for the device, or failed where it may not: {_line(error)}"
            yield Observation(False, "P6", text, "padding-slot-address")
        if outputs is None:
            return
        self.device.synchronize()
        for name, x in snapshot(_results(call, outputs)).items():
            yield exact(name, x, want[name], "P6", "incomplete-cache-key", "a call that may not wait and one that may")

    def _stream(self, case: Case, context: Context) -> Iterator[Observation]:
        """Make a call on a side stream behind the copy that gives it its inputs."""
        want = snapshot(make(case, context, context.call(case, turn=1)).results)
        source, call = context.call(case, turn=1), context.call(case, turn=2)
        outputs = self.device.behind(lambda: _load(call, source), lambda: context.target.launch(case.form, call))
        what = "a call on a side stream whose inputs come late, and one on the default stream"
        for name, x in snapshot(_results(call, outputs)).items():
            yield exact(name, x, want[name], "P6", "incomplete-cache-key", what)

    def _memory(self, case: Case, context: Context) -> Observation:
        """Count the allocations of a warm call with ``out=``."""
        call = context.call(case)
        call = replace(call, out=torch.empty_like(call.v))
        make(case, context, call)
        for _ in range(2):
            context.target.launch(case.form, call)
        self.device.synchronize()
        before = self.device.allocations()
        context.target.launch(case.form, call)
        count = self.device.allocations() - before
        if context.target.backend.conventions.gate is GateSpace.LINEAR and not case.gate_in_kernel:
            count -= 1  # the gate that was converted for the backend
        text = f"a warm decode with out= took memory {count} times" if count else ""
        return Observation(count == 0, "P6", text, value=str(count), expected="0")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).strip().splitlines()[:1])}"


def _token_writes(rows: int, tokens: int, first: int = 6) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(first + n * tokens, first + (n + 1) * tokens)) for n in range(rows))


def _has_padding(case: Case) -> bool:
    return case.read is not None and any(not 0 <= slot < case.slots for slot in case.read)


def _steps(case: Case, context: Context) -> Iterator[Case]:
    """Yield the case and others of the same shapes, with other indices, padding rows and bounds."""
    yield case
    if case.seqlens is not None:
        first, second, *others = case.seqlens
        yield case.but(seqlens=(0, first + second, *others))
        case = case.but(seqlens=(second, *others, first))
        yield case
    if case.read is None:
        yield case
        return
    N = case.sequences
    other = (4, 0, 2, 5, 1)[:N]
    if case.num_tokens is not None:
        assert case.write is not None
        yield case.but(read=other, num_tokens=(1, 4, 3, 0, 2)[:N], write=tuple(reversed(case.write)))
    elif case.write is not None:
        yield case.but(read=other, write=(8, 7, 6, 3, -1)[:N], fresh=(True, False, False, True, False)[:N])
    else:
        yield case.but(read=other)
    padding = context.target.backend.conventions.padding
    if padding is not Padding.NONE:
        far = case.slots + 3 if padding is Padding.SKIP else -3
        for read in ((-1, 2, -1, 4, -1), (3, far, 1, -1, 5), (-1,) * 5, (5, 4, 3, 2, 1)):
            yield case.but(read=read[:N])
    else:
        yield case.but(read=(5, 4, 3, 2, 1)[:N])
    yield case


def _load(static: Call, fresh: Call) -> None:
    """Copy every argument of one call over another's, pool included."""
    sources: dict[str, Any] = arguments(fresh)
    for name, x in arguments(static).items():
        x.copy_(sources[name])


def _results(call: Call, outputs: Outputs) -> dict[str, torch.Tensor]:
    """Return what a call returned and left in its pool."""
    found = {"o": outputs.o}
    if outputs.final_state is not None:
        found["final_state"] = outputs.final_state
    if "pool" in arguments(call):
        found["pool"] = arguments(call)["pool"]
    return found


PROBE = Graph()
