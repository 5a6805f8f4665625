"""Launching the chunk kernels of the gated delta rule: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.triton_chunks import Call, Chunks, Operands, inverse_dtype, states, transform
from deltaproof.ops.common.triton_host import aligned, given, zero_tail
from deltaproof.ops.gated_delta_rule.triton_outputs import outputs_kernel
from deltaproof.ops.gated_delta_rule.triton_prepare import prepare_kernel
from deltaproof.ops.gated_delta_rule.triton_tables import ChunkTable

Prepared = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a chunk needs that does not depend on the state: G and strength [B, T, HV], the inverse [chunks, HV, C, C]."""


def cut(call: Call) -> tuple[Chunks, ChunkTable]:
    """Return a call's chunks and the launches for them."""
    chunks = Chunks.of(call, normalize=call.options.normalize_qk)
    _, _, _, HV, K, V = call.dims
    return chunks, ChunkTable.of(K, V, HV, chunks.q.dtype)


def operands(chunks: Chunks, prepared: Prepared) -> Operands:
    """Return what the walk over chunks takes."""
    return Operands(chunks.q, chunks.k, chunks.k, *prepared, per_channel=False)


def _prepare(chunks: Chunks, table: ChunkTable) -> Prepared:
    """Compute the gates, write strengths and inverses of all chunks."""
    call, options = chunks.call, chunks.call.options
    B, T, _, HV, _, _ = call.dims
    C = options.chunk_size
    G, strength = (chunks.new(B, T, HV, dtype=torch.float32) for _ in range(2))
    inverse = chunks.new(chunks.count, HV, C, C, dtype=inverse_dtype(chunks.q.dtype))
    g, beta = aligned(call.g), aligned(call.beta)
    if chunks.count:
        prepare_kernel[(chunks.count * HV,)](
            chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), G, strength, inverse, *chunks.pack, T,
            call.sequences, **chunks.flags, BK=table.prepare.BK, GATE=options.gate_in_kernel,
            DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval,
            **table.prepare.options,
        )  # fmt: skip
    return G, strength, inverse


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Prepared:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``."""
    chunks, table = cut(call)
    _, T, _, HV, _, V = call.dims
    prepared = _prepare(chunks, table)
    known = operands(chunks, prepared)
    w, u = transform(chunks, known, table.transform)
    before = states(chunks, known, w, u, source, sink, table.states)
    launch = table.outputs
    pool = call if isinstance(call, PrefillCall) else None
    if chunks.count:
        outputs_kernel[(chunks.count * HV * triton.cdiv(V, launch.BV),)](
            chunks.q, chunks.k, u, known.G, known.strength, before, o,
            u if pool is None else pool.read_index.contiguous(), *chunks.pack, call.options.scale, T, call.sequences,
            0 if pool is None else pool.pool.shape[0], **chunks.flags, V=V, **launch.tiles,
            POOL=pool is not None, **launch.options,
        )  # fmt: skip
    zero_tail(o, call.cu_seqlens)
    return prepared
