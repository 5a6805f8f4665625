"""Launching the backward kernels of the form ``chunk``; the derivation stands in this folder's README."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_host import aligned, state_strides, zero_tail
from deltaproof.ops.common.triton_input_gradients import gate_gradients, head_gradients
from deltaproof.ops.gated_delta_rule.triton_chunk import Chunks, Prepared, states, transform
from deltaproof.ops.gated_delta_rule.triton_gradients import (
    key_gradients_kernel,
    local_gradients_kernel,
    score_gradients_kernel,
)
from deltaproof.ops.gated_delta_rule.triton_states import reverse_states_kernel


@dataclass(frozen=True)
class Gradients:
    """The gradients of a call's inputs; None for inputs that were not given."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    A_log: torch.Tensor | None
    dt_bias: torch.Tensor | None
    initial_state: torch.Tensor | None


def chunk_backward(call: SequenceCall, prepared: Prepared, do: torch.Tensor, d_final: torch.Tensor | None) -> Gradients:
    """Return the gradients of ``chunk_forward`` from those of o [B, T, HV, V] and of the final state."""
    B, T, _, HV, K, V = call.dims
    chunks = Chunks.of(call)
    do = aligned(do)
    d_final = None if d_final is None else aligned(d_final)
    state = None if call.initial_state is None else aligned(call.initial_state)
    w, errors = transform(chunks, prepared)
    before = states(chunks, prepared, w, errors, state, None)
    d_errors = _local(chunks, prepared, do)
    after, fade, d_initial = _reverse(chunks, prepared, w, do, d_errors, before, d_final)
    del w
    dv, dq, dk, d_gate, d_strength = _inside(chunks, prepared, do, errors, d_errors, before, after, fade)
    zero_tail(dv, call.cu_seqlens)
    dg, dbeta, dA_log, ddt_bias = gate_gradients(call, d_gate, d_strength)
    return Gradients(
        head_gradients(call, "q", dq), head_gradients(call, "k", dk), dv.to(call.v.dtype), dg, dbeta, dA_log, ddt_bias,
        d_initial,
    )  # fmt: skip


def _local(chunks: Chunks, prepared: Prepared, do: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the errors by the outputs of their own chunk."""
    call = chunks.call
    B, T, _, HV, _, V = call.dims
    found = chunks.new(B, T, HV, V)
    launch = chunks.table.local
    if chunks.count:
        local_gradients_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, do, prepared.G, prepared.strength, found, *chunks.pack, call.options.scale, T,
            call.sequences, **chunks.flags, V=V, **launch.tiles, **launch.options,
        )  # fmt: skip
    return found


def _reverse(
    chunks: Chunks,
    prepared: Prepared,
    w: torch.Tensor,
    do: torch.Tensor,
    d_errors: torch.Tensor,
    before: torch.Tensor,
    d_final: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Complete ``d_errors``; return gradients of the states after each chunk, of fading and of the initial state."""
    call = chunks.call
    assert isinstance(call, SequenceCall)
    layout = call.options.layout
    _, T, _, HV, K, V = call.dims
    after = chunks.new(chunks.count, HV, K, V)
    launch = chunks.table.reverse
    parts = triton.cdiv(V, launch.BV)
    fade = chunks.new(call.sequences, HV, parts, dtype=torch.float32)
    state = call.initial_state
    d_initial = None if state is None else call.allocate(state.shape, dtype=state.dtype, device=state.device)
    if call.sequences:
        reverse_states_kernel[(call.sequences * HV * parts,)](
            chunks.q, chunks.k, w, prepared.G, prepared.strength, do, d_errors, before, after, fade,
            do if state is None else state, do if d_final is None else d_final, do if d_initial is None else d_initial,
            *chunks.pack[:2], call.options.scale, T, *state_strides(state, layout), *state_strides(d_final, layout),
            *state_strides(d_initial, layout), **chunks.flags, V=V, BK=launch.BK, BV=launch.BV,
            READ=state is not None, FINAL=d_final is not None, **launch.options,
        )  # fmt: skip
    return after, fade, d_initial


def _inside(
    chunks: Chunks,
    prepared: Prepared,
    do: torch.Tensor,
    errors: torch.Tensor,
    d_errors: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    fade: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Return dv, and dq, dk, d_gate, d_strength in parts, from everything that comes into the chunks."""
    call = chunks.call
    B, T, _, HV, K, V = call.dims
    C = call.options.chunk_size
    scores, keys = chunks.table.scores, chunks.table.keys
    parts = triton.cdiv(K, keys.BK)
    dv = chunks.new(B, T, HV, V)
    d_attention, d_system = (chunks.new(chunks.count, HV, C, C) for _ in range(2))
    d_gate, d_strength = (chunks.new(1 + parts, B, T, HV, dtype=torch.float32) for _ in range(2))
    if chunks.count:
        score_gradients_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, do, prepared.G, prepared.strength, prepared.inverse, errors, d_errors, dv, d_attention,
            d_system, d_gate, d_strength, *chunks.pack, call.options.scale, T, call.sequences, **chunks.flags, V=V,
            **scores.tiles, **scores.options,
        )  # fmt: skip
    dq, dk = (chunks.new(1, B, T, HV, K) for _ in range(2))
    if chunks.count:
        key_gradients_kernel[(chunks.count * HV * parts,)](
            chunks.q, chunks.k, do, prepared.G, prepared.strength, before, after, errors, dv, d_attention, d_system,
            fade, dq, dk, d_gate, d_strength, *chunks.pack, call.options.scale, T, call.sequences, B * T,
            **chunks.flags, V=V, PARTS=fade.shape[2], **keys.tiles, **keys.options,
        )  # fmt: skip
    return dv, dq, dk, d_gate, d_strength
