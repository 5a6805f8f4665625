"""Launching the backward kernels of the form ``chunk``; the derivation stands in this folder's README."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_chunks import Chunks, Saved, reverse_states, states, transform
from deltaproof.ops.common.triton_host import aligned, zero_tail
from deltaproof.ops.common.triton_input_gradients import Gradients, gate_gradients, head_gradients
from deltaproof.ops.kda.triton_chunk import Scores, cut, scores
from deltaproof.ops.kda.triton_gradients import (
    channel_key_gradients_kernel,
    channel_local_gradients_kernel,
    channel_system_gradients_kernel,
)
from deltaproof.ops.kda.triton_score_gradients import channel_score_gradients_kernel
from deltaproof.ops.kda.triton_tables import ChunkTable


def backward(call: SequenceCall, saved: Saved, do: torch.Tensor, d_final: torch.Tensor | None) -> Gradients:
    """Return the gradients of ``forward`` from those of o [B, T, HV, V] and of the final state."""
    chunks, table = cut(call)
    (inverse,) = saved
    found = scores(chunks, table, backward=True)
    known = found.operands(inverse)
    do = aligned(do)
    d_final = None if d_final is None else aligned(d_final)
    state = None if call.initial_state is None else aligned(call.initial_state)
    w, errors = transform(chunks, known, table.transform)
    before = states(chunks, known, w, errors, state, None, table.states)
    d_errors = _local(chunks, table, found, do)
    after, fade, d_initial = reverse_states(chunks, known, w, do, d_errors, before, d_final, table.reverse)
    del w, known
    dv, d_system, d_attention, d_strength = _system(chunks, table, found, inverse, do, errors, d_errors)
    dq, dk, d_gate = _keys(chunks, table, found, do, before, after, errors, dv, d_system, d_attention, fade, d_strength)
    zero_tail(dv, call.cu_seqlens)
    dg, dbeta, dA_log, ddt_bias = gate_gradients(call, d_gate[None], d_strength)
    return Gradients(
        head_gradients(call, "q", dq[None]), head_gradients(call, "k", dk[None]), dv.to(call.v.dtype), dg, dbeta,
        dA_log, ddt_bias, d_initial,
    )  # fmt: skip


def _local(chunks: Chunks, table: ChunkTable, found: Scores, do: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the errors by the outputs of their own chunk."""
    call = chunks.call
    B, T, _, HV, _, V = call.dims
    d_errors = chunks.new(B, T, HV, V)
    launch = table.local
    if chunks.count:
        channel_local_gradients_kernel[(chunks.count * HV * triton.cdiv(V, launch.BV),)](
            found.attention, do, found.strength, d_errors, *chunks.pack, call.options.scale, T, call.sequences, HV=HV,
            V=V, BV=launch.BV, C=call.options.chunk_size, VARLEN=call.cu_seqlens is not None, **launch.options,
        )  # fmt: skip
    return d_errors


def _system(
    chunks: Chunks,
    table: ChunkTable,
    found: Scores,
    inverse: torch.Tensor,
    do: torch.Tensor,
    errors: torch.Tensor,
    d_errors: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Return dv, the gradients of both kinds of scores, and d_strength, of which part 0 is filled."""
    call = chunks.call
    B, T, _, HV, K, V = call.dims
    C, launch = call.options.chunk_size, table.system
    dv = chunks.new(B, T, HV, V)
    d_system, d_attention = (chunks.new(chunks.count, HV, C, C) for _ in range(2))
    d_strength = chunks.new(1 + triton.cdiv(K, table.keys.BK), B, T, HV, dtype=torch.float32)
    if chunks.count:
        channel_system_gradients_kernel[(chunks.count * HV,)](
            do, found.strength, inverse, found.system, found.attention, errors, d_errors, dv, d_system, d_attention,
            d_strength, *chunks.pack, call.options.scale, T, call.sequences, HV=HV, V=V, BV=launch.BV,
            UNROLL=launch.unroll, C=C, VARLEN=call.cu_seqlens is not None, **launch.options,
        )  # fmt: skip
    return dv, d_system, d_attention, d_strength


def _keys(
    chunks: Chunks,
    table: ChunkTable,
    found: Scores,
    do: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    errors: torch.Tensor,
    dv: torch.Tensor,
    d_system: torch.Tensor,
    d_attention: torch.Tensor,
    fade: torch.Tensor,
    d_strength: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk and d_gate [B, T, HV, K], and fill the other parts of ``d_strength``."""
    call = chunks.call
    B, T, _, HV, K, V = call.dims
    launch = table.keys
    C, parts = call.options.chunk_size, table.pairs
    dq, dk = (chunks.new(B, T, HV, K) for _ in range(2))
    dq_scores, dk_scores, d_gate = (chunks.new(B, T, HV, K, dtype=torch.float32) for _ in range(3))
    common = {**chunks.flags, "NORMALIZE": call.options.normalize_qk}
    if chunks.count:
        channel_score_gradients_kernel[(chunks.count * HV * (C // 16) * triton.cdiv(K, parts.BK),)](
            chunks.q, chunks.k, found.G, found.lengths, d_system, d_attention, found.deep, dq_scores, dk_scores,
            d_gate, *chunks.pack, T, call.sequences, B * T, **common, **found.ways[0], BK=parts.BK, **parts.options,
        )  # fmt: skip
        channel_key_gradients_kernel[(chunks.count * HV * triton.cdiv(K, launch.BK),)](
            chunks.q, chunks.k, found.G, found.left, do, found.strength, found.lengths, before, after, errors, dv,
            fade, dq_scores, dk_scores, d_gate, dq, dk, d_strength, *chunks.pack, call.options.scale, T,
            call.sequences, B * T, **common, V=V, PARTS=fade.shape[2], **launch.tiles, **launch.options,
        )  # fmt: skip
    return dq, dk, d_gate
