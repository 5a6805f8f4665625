"""The Triton forms as torch custom operators, which ``torch.compile`` and ``torch.library.opcheck`` see through.

Each operator takes a call as flat arguments. Operators of a sequence return what a backward pass needs beside the
results, and an empty tensor where a result was not asked for; those of a pool write into ``pool`` and ``out``.
Autocast does not touch them: operands keep the dtypes they were given in.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.allocation import Allocator, current_forced, forced_init
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule import triton_chunk, triton_recurrent
from deltaproof.ops.gated_delta_rule.triton_chunk_backward import Gradients, chunk_backward
from deltaproof.ops.gated_delta_rule.triton_recurrent_backward import recurrent_backward

_OPTIONS = (
    "float scale, bool normalize_qk, bool gate_in_kernel, bool beta_sigmoid, bool neg_eigval, bool v_first, "
    "int chunk_size, str? out_init"
)
_TOKENS = "Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? A_log, Tensor? dt_bias"
_SEQUENCE = f"{_TOKENS}, Tensor? initial_state, Tensor? cu_seqlens, bool final, {_OPTIONS}"
_DRAFTED = len(Drafts._fields) + 2
"""Arguments of ``decode_op`` that a speculative step adds."""
_INPUTS = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")


def _options(arguments: tuple[Any, ...]) -> tuple[DeltaRuleOptions, Allocator]:
    scale, normalize, gate, sigmoid, negative, v_first, chunk_size, out_init = arguments
    layout = StateLayout.V_FIRST if v_first else StateLayout.K_FIRST
    return DeltaRuleOptions(scale, normalize, gate, sigmoid, negative, layout, chunk_size), Allocator(out_init)


def _flat_options(call: SequenceCall | DecodeCall | PrefillCall) -> tuple[Any, ...]:
    options = call.options
    return (
        options.scale, options.normalize_qk, options.gate_in_kernel, options.beta_sigmoid, options.neg_eigval,
        options.layout is StateLayout.V_FIRST, options.chunk_size, call.allocate.out_init,
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
    """Return the arguments of ``chunk_op`` and ``recurrent_op``."""
    sequence = (call.initial_state, call.cu_seqlens, call.output_final_state)
    return *_flat_tokens(call), *sequence, *_flat_options(call)


def flat_decode(call: DecodeCall, out: Tensor) -> tuple[Any, ...]:
    """Return the arguments of ``decode_op``."""
    rows = (call.read_index, call.write_index, call.num_tokens, call.has_initial_state)
    drafts = (None,) * len(Drafts._fields) if call.drafts is None else call.drafts
    halves = (*drafts, call.draft_half, call.accepted)
    return call.pool, out, *_flat_tokens(call), *rows, *halves, *_flat_options(call)


def flat_prefill(call: PrefillCall, out: Tensor) -> tuple[Any, ...]:
    """Return the arguments of ``prefill_op``."""
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


def _chunk(*arguments: Any) -> tuple[Tensor, ...]:
    call = _sequence(arguments)
    o, final, prepared = triton_chunk.chunk_forward(call)
    return o, _absent(o) if final is None else final, prepared.G, prepared.strength, prepared.inverse


def _chunk_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call = _sequence(arguments)
    B, T, _, HV, _, _ = call.dims
    C, N = call.options.chunk_size, call.sequences
    chunks = B * triton.cdiv(T, C)
    if call.cu_seqlens is not None:
        chunks = triton.cdiv(T, C) + N - 1 if N and T else 0
    low = torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)
    gates = [call.v.new_empty(B, T, HV, dtype=torch.float32) for _ in range(2)]
    return *_results_like(call), *gates, call.v.new_empty(chunks, HV, C, C, dtype=triton_chunk.inverse_dtype(low))


def _chunk_backward(
    do: Tensor, d_final: Tensor | None, G: Tensor, strength: Tensor, inverse: Tensor, *arguments: Any
) -> list[Tensor]:
    call = _sequence(arguments)
    return _returned(call, chunk_backward(call, triton_chunk.Prepared(G, strength, inverse), do, d_final))


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


def _prefill(pool: Tensor, out: Tensor, *arguments: Any) -> None:
    q, k, v, g, beta, A_log, dt_bias, read, write, fresh, cu_seqlens, every, checkpoints, *rest = arguments
    options, allocate = _options(tuple(rest))
    call = PrefillCall(
        q, k, v, g, beta, options, A_log, dt_bias, pool=pool, read_index=read, write_index=write,
        has_initial_state=fresh, cu_seqlens=cu_seqlens, checkpoint_every=every, checkpoint_index=checkpoints,
        allocate=allocate,
    )  # fmt: skip
    triton_chunk.prefill(call, out)


def _define(name: str, schema: str, kernel: Any, fake: Any) -> Any:
    """Register one operator and return it."""
    full = f"deltaproof::gated_delta_rule_{name}"
    torch.library.define(full, schema)
    # after a break in its graph Dynamo would look into this frame too, and compile the launches in it
    torch.library.impl(full, "default", torch._disable_dynamo(kernel))
    torch.library.register_fake(full, fake)
    return getattr(torch.ops.deltaproof, f"gated_delta_rule_{name}").default


_three = "Tensor G, Tensor strength, Tensor inverse"
chunk_op = _define("chunk", f"({_SEQUENCE}) -> (Tensor o, Tensor final, {_three})", _chunk, _chunk_fake)
chunk_backward_op = _define(
    "chunk_backward",
    f"(Tensor do, Tensor? d_final, {_three}, {_SEQUENCE}) -> Tensor[]",
    _chunk_backward,
    lambda do, d_final, G, strength, inverse, *arguments: _gradients_like(_sequence(arguments)),
)
recurrent_op = _define(
    "recurrent",
    f"({_SEQUENCE}) -> (Tensor o, Tensor final)",
    _recurrent,
    lambda *arguments: _results_like(_sequence(arguments)),
)
recurrent_backward_op = _define(
    "recurrent_backward",
    f"(Tensor do, Tensor? d_final, {_SEQUENCE}) -> Tensor[]",
    _recurrent_backward,
    lambda do, d_final, *arguments: _gradients_like(_sequence(arguments)),
)
_POOL = f"Tensor(a!) pool, Tensor(b!) out, {_TOKENS}, Tensor read_index, Tensor? write_index"
_PARTS = ", ".join(f"Tensor({alias}!)? draft_{name}" for alias, name in zip("cdef", Drafts._fields, strict=True))
decode_op = _define(
    "decode",
    f"({_POOL}, Tensor? num_tokens, Tensor? has_initial_state, {_PARTS}, Tensor? draft_half, Tensor? accepted, "
    f"{_OPTIONS}) -> ()",
    _decode,
    lambda *arguments: None,
)
prefill_op = _define(
    "prefill",
    f"({_POOL}, Tensor? has_initial_state, Tensor? cu_seqlens, int? checkpoint_every, "
    f"Tensor? checkpoint_index, {_OPTIONS}) -> ()",
    _prefill,
    lambda *arguments: None,
)


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


_GATE = 3
"""Where gate_in_kernel stands among the options of a sequence operator."""

torch.library.register_autograd(chunk_op, _gradients(chunk_backward_op), setup_context=_save)
torch.library.register_autograd(recurrent_op, _gradients(recurrent_backward_op), setup_context=_save)


def chunk(call: SequenceCall) -> tuple[Tensor, Tensor | None]:
    """Run the form ``chunk``; differentiable."""
    o, final, *_ = chunk_op(*flat(call))
    return o, final if call.output_final_state else None


def recurrent(call: SequenceCall) -> tuple[Tensor, Tensor | None]:
    """Run the form ``recurrent``; differentiable."""
    o, final = recurrent_op(*flat(call))
    return o, final if call.output_final_state else None


def decode(call: DecodeCall) -> Tensor:
    """Run the form ``decode``."""
    B, T, _, HV, _, V = call.dims
    out = call.out
    if out is None:
        out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    if not torch.compiler.is_compiling():
        # an operator's dispatch costs more than the launch
        triton_recurrent.decode(call, out)
        return out
    decode_op(*flat_decode(call, out))
    return out


def prefill(call: PrefillCall) -> Tensor:
    """Run the form ``prefill``."""
    B, T, _, HV, _, V = call.dims
    out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    if not torch.compiler.is_compiling():
        triton_chunk.prefill(call, out)
        return out
    prefill_op(*flat_prefill(call, out))
    return out
