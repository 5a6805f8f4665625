"""What each verb times: its inputs, the calls it makes of a backend, the reference and the outputs held to it.

A further verb is a further class here and a row in ``VERBS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch

from deltaproof.backends.conversion import beforehand, converted
from deltaproof.backends.protocol import Backend
from deltaproof.backends.registry import missing
from deltaproof.bench.check import Rounding, chunked, chunked_backward, single_token
from deltaproof.bench.device import Run
from deltaproof.bench.floors import FLOORS, Work
from deltaproof.bench.gradients import (
    Outputs,
    by_heads,
    leaves,
    named,
    sum_scales,
    summed,
    with_gradients,
    with_leaves,
)
from deltaproof.bench.inputs import decode_sets, dense_call, output_gradients, sequence_sets
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload
from deltaproof.ops.common.calls import DecodeCall, Drafts, SequenceCall
from deltaproof.ops.common.torch_inputs import normalize, sigmoid
from deltaproof.ops.gated_delta_rule import gate as gated_delta_rule
from deltaproof.ops.kda import gate as kda

Call = SequenceCall | DecodeCall
LOG_GATES: Mapping[str, Callable[[SequenceCall, torch.dtype], torch.Tensor]] = {
    "gated_delta_rule": gated_delta_rule.log_gate,
    "kda": kda.log_gate,
}
"""Operator -> what computes its log gate beforehand, for a backend that cannot."""


class Unsupported(Exception):
    """The backend declares that it cannot make the call."""


@dataclass(frozen=True)
class Plan:
    """What is done with one backend on one workload.

    Attributes:
        form: the backend's form.
        call: the first set's call, for the reference.
        outputs: makes the first set's call; every output and gradient by name.
        stored: output -> the dtype it must have.
        roundings: output -> how it may be rounded.
        runs: makes the calls to be timed, one an input set.
        both: the same for forward and backward together, or None.
        plain: one call for the peak of memory.
        least: from the reference, what errors of an output are set against at least (see ``compare``).
        notes: what differs from what other backends do.
    """

    form: str
    call: Call
    outputs: Callable[[], Outputs]
    stored: dict[str, torch.dtype]
    roundings: dict[str, Rounding]
    runs: Callable[[], list[Run]]
    plain: Run
    both: Callable[[], list[Run]] | None = None
    least: Callable[[Outputs], dict[str, float]] = field(default=lambda want: {})
    notes: tuple[str, ...] = ()


class Verb(Protocol):
    """Inputs, calls and reference of one verb on one operator."""

    name: ClassVar[str]
    form: ClassVar[str]
    """What ``ours`` is chosen for."""

    def asked(self, call: Any) -> Call: ...

    def mode(self) -> AbstractContextManager[Any]: ...

    def work(self, workload: Any, dtype: str) -> Work: ...

    def draw(self, workload: Any, dtype: torch.dtype, device: str, cache_bytes: int) -> list[Any]: ...

    def plan(self, backend: Backend, calls: list[Any]) -> Plan: ...

    def reference(self, backend: Backend, call: Any) -> Outputs: ...


def widened(call: Any) -> Any:
    """Return the call with its tokens in float32 and a state of its own."""
    tokens = {name: getattr(call, name).float() for name in ("q", "k", "v", "g", "beta")}
    if isinstance(call, DecodeCall):
        drafts = None if call.drafts is None else Drafts(*(x.float() for x in call.drafts))
        return call.with_(**tokens, pool=call.pool.clone(), out=None, drafts=drafts)
    return call.with_(**tokens)


def _refuse(backend: Backend, form: str, call: Call) -> None:
    if lacks := missing(backend, form, call):
        raise Unsupported("; ".join(f"{name}: {reason}" for name, reason in lacks.items()))


def _form(backend: Backend, form: str) -> Callable[[Any], Any]:
    run: Callable[[Any], Any] = getattr(backend, form)
    return run


def _each(run: Callable[[Any], Any], calls: Sequence[Any]) -> list[Run]:
    return [partial(run, call) for call in calls]


def _states(call: SequenceCall) -> torch.dtype:
    assert call.initial_state is not None
    return call.initial_state.dtype


def _sequence_plan(backend: Backend, form: str, calls: list[SequenceCall], rounding: Rounding) -> Plan:
    _refuse(backend, form, calls[0])
    run = _form(backend, form)
    given = [converted(backend.conventions, call) for call in calls]
    computed = beforehand(backend.conventions, calls[0])

    def outputs() -> Outputs:
        o, final = run(given[0])
        return {"o": o, "final_state": final}

    stored = {"o": calls[0].v.dtype, "final_state": _states(calls[0])}
    return Plan(
        form=form,
        call=calls[0],
        outputs=outputs,
        stored=stored,
        roundings=dict.fromkeys(stored, rounding),
        runs=lambda: _each(run, given),
        plain=lambda: run(given[0]),
        notes=(f"computed beforehand: {', '.join(computed)}",) if computed else (),
    )


@dataclass(frozen=True)
class Prefill:
    """The chunk form's forward, from an initial to a final state, without gradients."""

    operator: str
    name: ClassVar[str] = "prefill"
    form: ClassVar[str] = "chunk"

    def asked(self, call: SequenceCall) -> Call:
        """Return the call as a backend is asked for it."""
        return call

    def mode(self) -> AbstractContextManager[Any]:
        """Serve: nothing is kept for a backward."""
        return torch.inference_mode()

    def work(self, workload: SequenceWorkload, dtype: str) -> Work:
        """Return its least work."""
        return FLOORS[self.operator].prefill(workload, dtype)

    def draw(self, workload: SequenceWorkload, dtype: torch.dtype, device: str, cache_bytes: int) -> list[SequenceCall]:
        """Return one call a set."""
        return sequence_sets(self.operator, workload, dtype, device, cache_bytes)

    def plan(self, backend: Backend, calls: list[SequenceCall]) -> Plan:
        """Return what is timed."""
        return _sequence_plan(backend, "chunk", calls, chunked(self.operator, calls[0].q.dtype))

    def reference(self, backend: Backend, call: SequenceCall) -> Outputs:
        """Return the outputs in float32."""
        o, final = _form(backend, "chunk")(widened(call))
        return {"o": o, "final_state": final.float()}


@dataclass(frozen=True)
class Backward:
    """Gradients of every input that has one, through the chunk form."""

    operator: str
    name: ClassVar[str] = "backward"
    form: ClassVar[str] = "chunk"

    def asked(self, call: SequenceCall) -> Call:
        """Return the call as a backend is asked for it."""
        return with_leaves(call)

    def mode(self) -> AbstractContextManager[Any]:
        """Train."""
        return torch.enable_grad()

    def work(self, workload: SequenceWorkload, dtype: str) -> Work:
        """Return the least work of the backward alone."""
        return FLOORS[self.operator].backward(workload, dtype)

    def draw(self, workload: SequenceWorkload, dtype: torch.dtype, device: str, cache_bytes: int) -> list[SequenceCall]:
        """Return one call a set."""
        return sequence_sets(self.operator, workload, dtype, device, cache_bytes)

    def plan(self, backend: Backend, calls: list[SequenceCall]) -> Plan:
        """Return what is timed: backwards through forwards that ran before, and both together."""
        given = [with_leaves(call) for call in calls]
        first = given[0]
        _refuse(backend, "chunk", first)
        if beforehand(backend.conventions, first):
            raise Unsupported("it takes linear gates or float32 alone: its gradient is another one")
        chunk = _form(backend, "chunk")
        gradients = output_gradients(calls[0])

        def backward(call: SequenceCall, through: Any, keep: bool) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(through, leaves(call), gradients, retain_graph=keep)

        def both(call: SequenceCall) -> tuple[torch.Tensor, ...]:
            return backward(call, chunk(call), False)

        def outputs() -> Outputs:
            o, final = chunk(first)
            return {"o": o, "final_state": final, **named(first, backward(first, (o, final), False))}

        def runs() -> list[Run]:
            through = [chunk(call) for call in given]
            return [partial(backward, call, out, True) for call, out in zip(given, through, strict=True)]

        dtype = first.q.dtype
        stored = {"o": first.v.dtype, "final_state": _states(first)}
        into = {f"d{name}": leaf.dtype for name, leaf in zip(with_gradients(first), leaves(first), strict=True)}
        forward, sums = chunked(self.operator, dtype), summed(first)
        back = {name: chunked_backward(self.operator, dtype, sums.get(name, 0)) for name in into}
        return Plan(
            form="chunk",
            call=calls[0],
            outputs=outputs,
            stored={**stored, **into},
            roundings={**dict.fromkeys(stored, forward), **back},
            runs=runs,
            both=lambda: _each(both, given),
            plain=lambda: both(first),
            least=partial(sum_scales, calls[0]),
        )

    def reference(self, backend: Backend, call: SequenceCall) -> Outputs:
        """Return outputs and gradients in float32."""
        do, dht = output_gradients(call)
        return by_heads(_form(backend, "chunk"), widened(call), (do.float(), dht))


IN_KERNEL = ("normalize_qk", "gate_in_kernel", "beta_sigmoid")


@dataclass(frozen=True)
class Decode:
    """One token a row, or a speculative step: in place in a pool; without a pool the recurrent form on dense states."""

    operator: str
    name: ClassVar[str] = "decode"
    form: ClassVar[str] = "decode"

    def asked(self, call: DecodeCall) -> Call:
        """Return the call as a backend is asked for it."""
        return call

    def mode(self) -> AbstractContextManager[Any]:
        """Serve: nothing is kept for a backward."""
        return torch.inference_mode()

    def work(self, workload: DecodeWorkload, dtype: str) -> Work:
        """Return its least work, the same for both forms."""
        return FLOORS[self.operator].decode(workload, dtype)

    def draw(self, workload: DecodeWorkload, dtype: torch.dtype, device: str, cache_bytes: int) -> list[DecodeCall]:
        """Return one call a set, each on a pool of its own."""
        return decode_sets(self.operator, workload, dtype, device, cache_bytes)

    def plan(self, backend: Backend, calls: list[DecodeCall]) -> Plan:
        """Return what is timed."""
        if callable(getattr(backend, "decode", None)):
            return self._pool(backend, calls)
        return self._dense(backend, calls)

    def _pool(self, backend: Backend, calls: list[DecodeCall]) -> Plan:
        _refuse(backend, "decode", calls[0])
        run = _form(backend, "decode")
        first = calls[0]
        # the drawn pools stay as they are for the reference and for the next backend
        given = [call.with_(pool=_same_strides(call.pool)) for call in calls]
        pool = given[0].pool

        def outputs() -> Outputs:
            pool.copy_(first.pool)
            o = run(given[0])
            changed = (pool != first.pool).flatten(1).any(1)
            changed[first.read_index.long()] = False
            return {"o": o, "state": pool[first.read_index.long()], "other_slots": changed.sum().float()[None]}

        stored = {"o": first.v.dtype, "state": first.pool.dtype, "other_slots": torch.float32}
        return Plan(
            form="decode",
            call=first,
            outputs=outputs,
            stored=stored,
            roundings=dict.fromkeys(stored, single_token()),
            runs=lambda: _each(run, given),
            plain=lambda: run(given[0]),
        )

    def _dense(self, backend: Backend, calls: list[DecodeCall]) -> Plan:
        if calls[0].drafts is not None:
            raise Unsupported("it has no pool, and so no drafts")
        dense = [dense_call(call) for call in calls]
        lacks = set(missing(backend, "recurrent", dense[0]))
        if "lower_bound" in lacks:
            # it has a gate in the kernel, but not this one
            lacks.add("gate_in_kernel")
        beforehand = [name for name in IN_KERNEL if name in lacks]
        dense = [_computed(call, beforehand, LOG_GATES[self.operator]) for call in dense]
        plan = _sequence_plan(backend, "recurrent", dense, single_token())

        def outputs() -> Outputs:
            found = plan.outputs()
            asked, came = plan.stored["final_state"], found["final_state"].dtype
            if came.itemsize > asked.itemsize:
                raise Unsupported(f"its final state is {came}, not {asked}: it moves more than was asked for")
            return found

        notes = ["no pool: dense states, a final state of its own", *plan.notes]
        if beforehand:
            notes.append(f"computed beforehand: {', '.join(beforehand)}")
        return replace(plan, outputs=outputs, notes=tuple(notes))

    def reference(self, backend: Backend, call: Any) -> Outputs:
        """Return the outputs in float32, of the pool form or of the dense one."""
        wide = widened(call)
        if isinstance(call, SequenceCall):
            o, final = _form(backend, "recurrent")(wide)
            return {"o": o, "final_state": final.float()}
        o = _form(backend, "decode")(wide)
        # of all other slots none may change
        return {"o": o, "state": wide.pool[call.read_index.long()].float(), "other_slots": o.new_zeros(1)}


def _same_strides(pool: torch.Tensor) -> torch.Tensor:
    """Return a copy of a pool with the gaps between its slots."""
    memory = torch.zeros(pool.shape[0] * pool.stride(0), dtype=pool.dtype, device=pool.device)
    return memory.as_strided(pool.shape, pool.stride()).copy_(pool)


def _computed(
    call: SequenceCall, names: Sequence[str], log_gate: Callable[[SequenceCall, torch.dtype], torch.Tensor]
) -> SequenceCall:
    """Return the call with some of what the kernel would do computed beforehand."""
    changes: dict[str, Any] = {}
    if "normalize_qk" in names:
        changes.update(q=normalize(call.q.float()).to(call.q.dtype), k=normalize(call.k.float()).to(call.k.dtype))
    if "gate_in_kernel" in names:
        changes.update(g=log_gate(call, torch.float32), A_log=None, dt_bias=None)
    if "beta_sigmoid" in names:
        changes.update(beta=sigmoid(call.beta.float()))
    if not changes:
        return call
    off: dict[str, Any] = dict.fromkeys(names, False)
    bound = None if "gate_in_kernel" in names else call.options.lower_bound
    changed: SequenceCall = call.with_(**changes, options=replace(call.options, lower_bound=bound, **off))
    return changed


VERBS: dict[str, Callable[[str], Verb]] = {verb.name: verb for verb in (Prefill, Backward, Decode)}
"""Verb -> what makes it for an operator."""
