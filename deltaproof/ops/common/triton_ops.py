"""The Triton forms of a delta rule as torch custom operators, which ``torch.compile`` and ``opcheck`` see through.

Each operator takes a call as flat arguments. Operators of a sequence return what a backward pass needs beside the
results, and an empty tensor where a result was not asked for; those of a pool write into ``pool`` and ``out``.
Autocast does not touch them: operands keep the dtypes they were given in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common import triton_recurrent
from deltaproof.ops.common.allocation import Allocator, current_forced, forced_init
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.common.capabilities import differentiated
from deltaproof.ops.common.triton_chunks import Forward, Saved, chunk_forward
from deltaproof.ops.common.triton_input_gradients import Gradients
from deltaproof.ops.common.triton_recurrent_backward import recurrent_backward

_OPTIONS = (
    "float scale, bool normalize_qk, bool gate_in_kernel, bool beta_sigmoid, bool neg_eigval, bool v_first, "
    "int chunk_size, bool batch_invariant, float? lower_bound, bool safe_gate, str? out_init"
)
_TOKENS = "Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? A_log, Tensor? dt_bias"
_SEQUENCE = f"{_TOKENS}, Tensor? initial_state, Tensor? cu_seqlens, bool final, {_OPTIONS}"
_POOL = f"Tensor(a!) pool, Tensor(b!) out, {_TOKENS}, Tensor read_index, Tensor? write_index"
_DRAFTS = ", ".join(f"Tensor({alias}!)? draft_{name}" for alias, name in zip("cdef", Drafts._fields, strict=True))
_DRAFTED = len(Drafts._fields) + 2
"""Arguments of ``decode`` that a speculative step adds."""
_INPUTS = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")
_GATE = 3
"""Where gate_in_kernel stands among the options of a sequence operator."""


def _options(arguments: tuple[Any, ...]) -> tuple[DeltaRuleOptions, Allocator]:
    scale, normalize, gate, sigmoid, negative, v_first, chunk_size, invariant, *bounds, out_init = arguments
    layout = StateLayout.V_FIRST if v_first else StateLayout.K_FIRST
    lower_bound, safe_gate = bounds
    options = DeltaRuleOptions(
        scale, normalize, gate, sigmoid, negative, layout, chunk_size, invariant, lower_bound, safe_gate
    )
    return options, Allocator(out_init)


def _flat_options(call: SequenceCall | DecodeCall | PrefillCall) -> tuple[Any, ...]:
    options = call.options
    return (
        options.scale, options.normalize_qk, options.gate_in_kernel, options.beta_sigmoid, options.neg_eigval,
        options.layout is StateLayout.V_FIRST, options.chunk_size, options.batch_invariant, options.lower_bound,
        options.safe_gate, call.allocate.out_init,
    )  # fmt: skip


def _sequence(arguments: tuple[Any, ...]) -> SequenceCall:
    q, k, v, g, beta, A_log, dt_bias, state, cu_seqlens, final, *rest = arguments
    options, allocate = _options(tuple(rest))
    return SequenceCall(
        q, k, v, g, beta, options, A_log, dt_bias, initial_state=state, output_final_state=final,
        cu_seqlens=cu_seqlens, allocate=allocate,
    )  # fmt: skip


def _flat_tokens(call: SequenceCall | DecodeCall | PrefillCall) -> tuple[Any, ...]:
    return call.q, call.k, call.v, call.g, call.beta, call.A_log, call.dt_bias


def flat(call: SequenceCall) -> tuple[Any, ...]:
    """Return the arguments of the operators ``chunk`` and ``recurrent``."""
    sequence = (call.initial_state, call.cu_seqlens, call.output_final_state)
    return *_flat_tokens(call), *sequence, *_flat_options(call)


def flat_decode(call: DecodeCall, out: Tensor) -> tuple[Any, ...]:
    """Return the arguments of the operator ``decode``."""
    rows = (call.read_index, call.write_index, call.num_tokens, call.has_initial_state)
    drafts = (None,) * len(Drafts._fields) if call.drafts is None else call.drafts
    halves = (*drafts, call.draft_half, call.accepted)
    return call.pool, out, *_flat_tokens(call), *rows, *halves, *_flat_options(call)


def flat_prefill(call: PrefillCall, out: Tensor) -> tuple[Any, ...]:
    """Return the arguments of the operator ``prefill``."""
    rows = (call.read_index, call.write_index, call.has_initial_state, call.cu_seqlens)
    checkpoints = (call.checkpoint_every, call.checkpoint_index)
    return call.pool, out, *_flat_tokens(call), *rows, *checkpoints, *_flat_options(call)


def _absent(like: Tensor) -> Tensor:
    """Return the empty tensor that stands for a result that is not there: operators return tensors only."""
    return like.new_empty(0, dtype=torch.float32)


def _results_like(call: SequenceCall) -> tuple[Tensor, Tensor]:
    B, T, _, HV, K, V = call.dims
    o = call.v.new_empty(B, T, HV, V)
    if not call.output_final_state:
        return o, _absent(o)
    dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
    return o, o.new_empty(call.sequences, HV, *call.options.layout.inner_shape(K, V), dtype=dtype)


def _gradients_like(call: SequenceCall) -> list[Tensor]:
    given = [getattr(call, name) for name in _INPUTS]
    gates = ("A_log", "dt_bias") if not call.options.gate_in_kernel else ()
    return [
        _absent(call.q) if x is None or name in gates else x.new_empty(x.shape)
        for name, x in zip(_INPUTS, given, strict=True)
    ]


def _returned(call: SequenceCall, gradients: Gradients) -> list[Tensor]:
    found = [getattr(gradients, name) for name in _INPUTS]
    return [_absent(call.q) if x is None else x for x in found]


def _recurrent(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = _sequence(arguments)
    o, final = triton_recurrent.recurrent_forward(call)
    return o, _absent(o) if final is None else final


def _recurrent_backward(do: Tensor, d_final: Tensor | None, *arguments: Any) -> list[Tensor]:
    call = _sequence(arguments)
    return _returned(call, recurrent_backward(call, do, d_final))


def _decode(pool: Tensor, out: Tensor, *arguments: Any) -> None:
    q, k, v, g, beta, A_log, dt_bias, read, write, num_tokens, fresh, *rest = arguments
    *drafts, half, accepted = rest[:_DRAFTED]
    options, allocate = _options(tuple(rest[_DRAFTED:]))
    call = DecodeCall(
        q, k, v, g, beta, options, A_log, dt_bias, pool=pool, read_index=read, write_index=write,
        num_tokens=num_tokens, has_initial_state=fresh, out=out, allocate=allocate,
        drafts=None if half is None else Drafts(*drafts), draft_half=half, accepted=accepted,
    )  # fmt: skip
    triton_recurrent.decode(call, out)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, options = inputs[:9], inputs[9:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], *tensors)
    ctx.saved, ctx.options = len(output) - 2, options
    # the backward pass of a GPU runs in a thread of its own, which knows nothing of this one's context
    ctx.forced = None if torch.compiler.is_compiling() else current_forced()


def _gradients(op: Any) -> Any:
    def backward(ctx: Any, do: Tensor | None, d_final: Tensor | None, *_: Any) -> tuple[Any, ...]:
        saved, tensors = ctx.saved_tensors[: ctx.saved], ctx.saved_tensors[ctx.saved :]
        if do is None:
            do = torch.zeros_like(tensors[2], memory_format=torch.contiguous_format)
        # an operator does not return None, nor does it return a final state that was not asked for
        d_final = d_final if ctx.options[0] else None
        with forced_init(ctx.forced):
            found = op(do, d_final, *saved, *tensors, *ctx.options)
        gate = ctx.options[_GATE]
        named = zip(_INPUTS, tensors[:8], strict=True)
        present = [x is not None and (gate or name not in ("A_log", "dt_bias")) for name, x in named]
        gradients = (x if there else None for x, there in zip(found, present, strict=True))
        return *gradients, None, *(None for _ in ctx.options)

    return backward


def _no_gradients(ctx: Any, *_: Any) -> Any:
    """Stand in for gradients of what nobody was seen to differentiate: better an error than none."""
    raise RuntimeError(
        "gradients were asked of a call that did not look as if they would be; do its inputs require them?"
    )


@dataclass(frozen=True)
class ChunkRule:
    """The chunked form of one operator.

    Attributes:
        forward: fills o and the final states; returns what ``backward`` needs.
        inference: does the same where nothing is differentiated; what it returns is dropped.
        saved: the names of what it returns.
        saved_like: returns empty tensors that look like it.
        backward: takes a call, what ``forward`` returned and the gradients of o and of the final state.
    """

    forward: Forward
    inference: Forward
    saved: tuple[str, ...]
    saved_like: Callable[[SequenceCall], Saved]
    backward: Callable[[SequenceCall, Saved, Tensor, Tensor | None], Gradients]


class TritonOperators:
    """The custom operators of one delta rule, ``deltaproof::NAME_chunk`` and so on, and its forms made of them."""

    def __init__(self, name: str, rule: ChunkRule) -> None:
        """Register the operators; once a process and name."""
        self._name, self._rule = name, rule
        saved = ", ".join(f"Tensor {each}" for each in rule.saved)
        self.chunk_op = self._define(
            "chunk", f"({_SEQUENCE}) -> (Tensor o, Tensor final, {saved})", self._chunk, self._chunk_fake
        )
        self.chunk_inference_op = self._define(
            "chunk_inference",
            f"({_SEQUENCE}) -> (Tensor o, Tensor final)",
            self._chunk_inference,
            lambda *arguments: _results_like(_sequence(arguments)),
        )
        self.chunk_backward_op = self._define(
            "chunk_backward",
            f"(Tensor do, Tensor? d_final, {saved}, {_SEQUENCE}) -> Tensor[]",
            self._chunk_backward,
            lambda do, d_final, *rest: _gradients_like(_sequence(rest[len(rule.saved) :])),
        )
        self.chunk_states_op = self._define(
            "chunk_states",
            f"(Tensor(a!) chunk_states, {_SEQUENCE}) -> (Tensor o, Tensor final)",
            self._chunk_states,
            lambda into, *arguments: _results_like(_sequence(arguments)),
        )
        self.recurrent_op = self._define(
            "recurrent",
            f"({_SEQUENCE}) -> (Tensor o, Tensor final)",
            _recurrent,
            lambda *arguments: _results_like(_sequence(arguments)),
        )
        self.recurrent_backward_op = self._define(
            "recurrent_backward",
            f"(Tensor do, Tensor? d_final, {_SEQUENCE}) -> Tensor[]",
            _recurrent_backward,
            lambda do, d_final, *arguments: _gradients_like(_sequence(arguments)),
        )
        self.decode_op = self._define(
            "decode",
            f"({_POOL}, Tensor? num_tokens, Tensor? has_initial_state, {_DRAFTS}, Tensor? draft_half, "
            f"Tensor? accepted, {_OPTIONS}) -> ()",
            _decode,
            lambda *arguments: None,
        )
        self.prefill_op = self._define(
            "prefill",
            f"({_POOL}, Tensor? has_initial_state, Tensor? cu_seqlens, int? checkpoint_every, "
            f"Tensor? checkpoint_index, {_OPTIONS}) -> ()",
            self._prefill,
            lambda *arguments: None,
        )
        for op, backward in (
            (self.chunk_op, self.chunk_backward_op),
            (self.recurrent_op, self.recurrent_backward_op),
        ):
            torch.library.register_autograd(op, _gradients(backward), setup_context=_save)
        torch.library.register_autograd(self.chunk_inference_op, _no_gradients)

    def _define(self, form: str, schema: str, kernel: Any, fake: Any) -> Any:
        """Register one operator and return it."""
        name = f"{self._name}_{form}"

        # after a break in its graph Dynamo would look into this frame too, and compile the launches in it
        @torch._disable_dynamo
        def run(*arguments: Any) -> Any:
            return kernel(*arguments)

        torch.library.define(f"deltaproof::{name}", schema)
        torch.library.impl(f"deltaproof::{name}", "default", run)
        torch.library.register_fake(f"deltaproof::{name}", fake)
        return getattr(torch.ops.deltaproof, name).default

    def _chunk(self, *arguments: Any) -> tuple[Tensor, ...]:
        o, final, saved = chunk_forward(_sequence(arguments), self._rule.forward)
        return o, _absent(o) if final is None else final, *saved

    def _chunk_fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        call = _sequence(arguments)
        return *_results_like(call), *self._rule.saved_like(call)

    def _inferred(self, call: SequenceCall) -> tuple[Tensor, Tensor]:
        o, final, _ = chunk_forward(call, self._rule.inference)
        return o, _absent(o) if final is None else final

    def _chunk_inference(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._inferred(_sequence(arguments))

    def _chunk_backward(self, do: Tensor, d_final: Tensor | None, *rest: Any) -> list[Tensor]:
        count = len(self._rule.saved)
        call = _sequence(rest[count:])
        return _returned(call, self._rule.backward(call, rest[:count], do, d_final))

    def _chunk_states(self, into: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._inferred(_sequence(arguments).with_(chunk_states=into))

    def _prefill(self, pool: Tensor, out: Tensor, *arguments: Any) -> None:
        q, k, v, g, beta, A_log, dt_bias, read, write, fresh, cu_seqlens, every, checkpoints, *rest = arguments
        options, allocate = _options(tuple(rest))
        call = PrefillCall(
            q, k, v, g, beta, options, A_log, dt_bias, pool=pool, read_index=read, write_index=write,
            has_initial_state=fresh, cu_seqlens=cu_seqlens, checkpoint_every=every, checkpoint_index=checkpoints,
            allocate=allocate,
        )  # fmt: skip
        self._rule.inference(call, out, pool, pool)

    def chunk(self, call: SequenceCall) -> tuple[Tensor, Tensor | None]:
        """Run the form ``chunk``; differentiable, but for a call with ``chunk_states``."""
        if call.chunk_states is not None:
            o, final = self.chunk_states_op(call.chunk_states, *flat(call))
        elif differentiated(call):
            o, final, *_ = self.chunk_op(*flat(call))
        else:
            o, final = self.chunk_inference_op(*flat(call))
        return o, final if call.output_final_state else None

    def recurrent(self, call: SequenceCall) -> tuple[Tensor, Tensor | None]:
        """Run the form ``recurrent``; differentiable."""
        o, final = self.recurrent_op(*flat(call))
        return o, final if call.output_final_state else None

    def decode(self, call: DecodeCall) -> Tensor:
        """Run the form ``decode``."""
        B, T, _, HV, _, V = call.dims
        out = call.out
        if out is None:
            out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
        if not torch.compiler.is_compiling():
            # an operator's dispatch costs more than the launch
            triton_recurrent.decode(call, out)
            return out
        self.decode_op(*flat_decode(call, out))
        return out

    def prefill(self, call: PrefillCall) -> Tensor:
        """Run the form ``prefill``."""
        B, T, _, HV, _, V = call.dims
        out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
        if not torch.compiler.is_compiling():
            self._rule.inference(call, out, call.pool, call.pool)
            return out
        self.prefill_op(*flat_prefill(call, out))
        return out
