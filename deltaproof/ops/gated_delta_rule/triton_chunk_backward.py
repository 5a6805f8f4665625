"""Launching the backward kernels of the form ``chunk``; the derivation stands in this folder's README."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_chunks import Chunks, Saved, reverse_states, states, transform
from deltaproof.ops.common.triton_host import aligned, zero_tail
from deltaproof.ops.common.triton_input_gradients import Gradients, gate_gradients, head_gradients
from deltaproof.ops.gated_delta_rule.triton_chunk import Prepared, cut, operands
from deltaproof.ops.gated_delta_rule.triton_gradients import (
    key_gradients_kernel,
    local_gradients_kernel,
    score_gradients_kernel,
)
from deltaproof.ops.gated_delta_rule.triton_tables import ChunkTable


def backward(call: SequenceCall, saved: Saved, do: torch.Tensor, d_final: torch.Tensor | None) -> Gradients:
    """Return the gradients of ``forward`` from those of o [B, T, HV, V] and of the final state."""
    B, T, _, HV, K, V = call.dims
    chunks, table = cut(call)
    G, strength, inverse = saved
    prepared = (G, strength, inverse)
    known = operands(chunks, prepared)
    do = aligned(do)
    d_final = None if d_final is None else aligned(d_final)
    state = None if call.initial_state is None else aligned(call.initial_state)
    w, errors = transform(chunks, known, table.transform)
    before = states(chunks, known, w, errors, state, None, table.states)
    d_errors = _local(chunks, table, prepared, do)
    after, fade, d_initial = reverse_states(chunks, known, w, do, d_errors, before, d_final, table.reverse)
    del w
    dv, dq, dk, d_gate, d_strength = _inside(chunks, table, prepared, do, errors, d_errors, before, after, fade)
    zero_tail(dv, call.cu_seqlens)
    dg, dbeta, dA_log, ddt_bias = gate_gradients(call, d_gate, d_strength)
    return Gradients(
        head_gradients(call, "q", dq), head_gradients(call, "k", dk), dv.to(call.v.dtype), dg, dbeta, dA_log, ddt_bias,
        d_initial,
    )  # fmt: skip


def _local(chunks: Chunks, table: ChunkTable, prepared: Prepared, do: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the errors by the outputs of their own chunk."""
    call = chunks.call
    B, T, _, HV, _, V = call.dims
    found = chunks.new(B, T, HV, V)
    launch = table.local
    G, strength, _ = prepared
    if chunks.count:
        local_gradients_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, do, G, strength, found, *chunks.pack, call.options.scale, T,
            call.sequences, **chunks.flags, V=V, **launch.tiles, **launch.options,
        )  # fmt: skip
    return found


def _inside(
    chunks: Chunks,
    table: ChunkTable,
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
    scores, keys = table.scores, table.keys
    G, strength, inverse = prepared
    parts = triton.cdiv(K, keys.BK)
    dv = chunks.new(B, T, HV, V)
    d_attention, d_system = (chunks.new(chunks.count, HV, C, C) for _ in range(2))
    d_gate, d_strength = (chunks.new(1 + parts, B, T, HV, dtype=torch.float32) for _ in range(2))
    if chunks.count:
        score_gradients_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, do, G, strength, inverse, errors, d_errors, dv, d_attention,
            d_system, d_gate, d_strength, *chunks.pack, call.options.scale, T, call.sequences, **chunks.flags, V=V,
            **scores.tiles, **scores.options,
        )  # fmt: skip
    dq, dk = (chunks.new(1, B, T, HV, K) for _ in range(2))
    if chunks.count:
        key_gradients_kernel[(chunks.count * HV * parts,)](
            chunks.q, chunks.k, do, G, strength, before, after, errors, dv, d_attention, d_system,
            fade, dq, dk, d_gate, d_strength, *chunks.pack, call.options.scale, T, call.sequences, B * T,
            **chunks.flags, V=V, PARTS=fade.shape[2], **keys.tiles, **keys.options,
        )  # fmt: skip
    return dv, dq, dk, d_gate, d_strength
