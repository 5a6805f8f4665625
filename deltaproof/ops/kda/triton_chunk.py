"""Launching the chunk kernels of Kimi delta attention: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.torch_inputs import k_first
from deltaproof.ops.common.triton_chunks import Call, Chunks, Operands, Saved, inverse_dtype, states, transform
from deltaproof.ops.common.triton_host import aligned, gate_constants, given, zero_tail
from deltaproof.ops.kda.triton_outputs import channel_outputs_kernel
from deltaproof.ops.kda.triton_scores import channel_scores_kernel, invert_kernel
from deltaproof.ops.kda.triton_tables import ChunkTable, span


@dataclass(frozen=True)
class Scores:
    """What a chunk needs that does not depend on the state.

    Attributes:
        queries, keys, kept: exp(G) q, exp(G) k and exp(G_end - G) k [B, T, HV, K].
        left: exp(G_end) [chunks, HV, K], fp32.
        strength: [B, T, HV], fp32.
        G: [chunks, HV, C, K], fp32, of which a forward pass fills what it needs.
        system, attention: scores of keys and of queries with keys [chunks, HV, C, C].
    """

    queries: torch.Tensor
    keys: torch.Tensor
    kept: torch.Tensor
    left: torch.Tensor
    strength: torch.Tensor
    G: torch.Tensor
    system: torch.Tensor
    attention: torch.Tensor

    def operands(self, inverse: torch.Tensor) -> Operands:
        """Return what the walk over chunks takes."""
        return Operands(self.queries, self.keys, self.kept, self.left, self.strength, inverse, per_channel=True)


def cut(call: Call) -> tuple[Chunks, ChunkTable]:
    """Return a call's chunks, normalised by the kernels, and the launches for them."""
    chunks = Chunks.of(call, normalize=False)
    _, _, _, HV, K, V = call.dims
    return chunks, ChunkTable.of(K, V, HV, chunks.q.dtype)


def rows_spanned(chunks: Chunks) -> int:
    """Return how many rows one product of scores may span."""
    options = chunks.call.options
    bound = options.lower_bound if options.gate_in_kernel else None
    return span(bound, options.chunk_size, chunks.q.dtype)


def scores(chunks: Chunks, table: ChunkTable, *, backward: bool) -> Scores:
    """Compute the scores of all chunks; for a backward pass all of G and scores without the strengths."""
    call, options = chunks.call, chunks.call.options
    B, T, _, HV, K, _ = call.dims
    C, fp32 = options.chunk_size, torch.float32
    wide = inverse_dtype(chunks.q.dtype)
    queries, keys, kept = (chunks.new(B, T, HV, K) for _ in range(3))
    found = Scores(
        queries,
        keys,
        kept,
        chunks.new(chunks.count, HV, K, dtype=fp32),
        chunks.new(B, T, HV, dtype=fp32),
        chunks.new(chunks.count, HV, C, K, dtype=fp32),
        chunks.new(chunks.count, HV, C, C, dtype=wide if wide == torch.float64 else fp32),
        chunks.new(chunks.count, HV, C, C),
    )
    g, beta, launch = aligned(call.g), aligned(call.beta), table.scores
    if chunks.count:
        SPAN = rows_spanned(chunks)
        gates = gate_constants(call)
        gates.pop("PER_CHANNEL")
        channel_scores_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), found.queries, found.keys,
            found.kept, found.left, found.strength, found.G, found.system, found.attention, *chunks.pack, T,
            call.sequences, **chunks.flags, BK=launch.BK, SPAN=SPAN, WHOLE=backward or SPAN == 1, SCALED=not backward,
            NORMALIZE=options.normalize_qk, **gates, BETA_SIGMOID=options.beta_sigmoid,
            NEG_EIGVAL=options.neg_eigval, **launch.options,
        )  # fmt: skip
    return found


def _inverted(chunks: Chunks, system: torch.Tensor) -> torch.Tensor:
    call, C = chunks.call, chunks.call.options.chunk_size
    HV = call.v.shape[2]
    inverse = chunks.new(chunks.count, HV, C, C, dtype=inverse_dtype(chunks.q.dtype))
    if chunks.count:
        invert_kernel[(chunks.count * HV,)](
            system, inverse, *chunks.pack, call.q.shape[1], call.sequences, HV=HV, C=C,
            VARLEN=call.cu_seqlens is not None, num_warps=1,
        )  # fmt: skip
    return inverse


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Saved:
    """Fill o [B, T, HV, V], ``sink`` and the call's ``chunk_states``, from the states in ``source``."""
    chunks, table = cut(call)
    _, T, _, HV, K, V = call.dims
    found = scores(chunks, table, backward=False)
    inverse = _inverted(chunks, found.system)
    known = found.operands(inverse)
    w, u = transform(chunks, known, table.transform)
    asked = None if isinstance(call, PrefillCall) else call.chunk_states
    before = states(chunks, known, w, u, source, sink, table.states, None if asked is None else asked.dtype)
    launch = table.outputs
    pool = call if isinstance(call, PrefillCall) else None
    if chunks.count:
        channel_outputs_kernel[(chunks.count * HV * triton.cdiv(V, launch.BV),)](
            found.queries, found.attention, u, before, o, u if pool is None else pool.read_index.contiguous(),
            *chunks.pack, call.options.scale, T, call.sequences, 0 if pool is None else pool.pool.shape[0], HV=HV, K=K,
            V=V, C=call.options.chunk_size, VARLEN=call.cu_seqlens is not None, **launch.tiles, POOL=pool is not None,
            **launch.options,
        )  # fmt: skip
    zero_tail(o, call.cu_seqlens)
    if asked is not None:
        rows = asked.view(-1, *asked.shape[2:])
        k_first(rows, call.options.layout).copy_(before[: rows.shape[0]])
    return (inverse,)
