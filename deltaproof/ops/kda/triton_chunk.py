"""Launching the chunk kernels of Kimi delta attention: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common import hopper_decode
from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.torch_inputs import k_first
from deltaproof.ops.common.triton_chunks import Call, Chunks, Operands, Saved, inverse_dtype, states, transform
from deltaproof.ops.common.triton_host import aligned, gate_constants, given, zero_tail
from deltaproof.ops.common.triton_language import GLUON, INTERPRETED
from deltaproof.ops.kda.triton_decay import channel_decay_kernel
from deltaproof.ops.kda.triton_gates import MOST, SPAN
from deltaproof.ops.kda.triton_outputs import channel_outputs_kernel
from deltaproof.ops.kda.triton_scores import channel_scores_kernel, invert_kernel
from deltaproof.ops.kda.triton_tables import ChunkTable

if GLUON:
    from deltaproof.ops.kda.hopper_scores import hopper_scores_kernel
else:
    hopper_scores_kernel = None


@dataclass(frozen=True)
class Scores:
    """What a chunk needs that does not depend on the state.

    Attributes:
        queries, keys, kept: exp(G) q, exp(G) k and exp(G_end - G) k [B, T, HV, K].
        G: [B, T, HV, K], fp32, for a backward pass.
        left: exp(G_end) [chunks, HV, K], fp32.
        strength: [B, T, HV], fp32.
        lengths: what rows of q and k are multiplied by [2, B, T, HV], fp32, where they are normalised.
        system, attention: scores of keys and of queries with keys [chunks, HV, C, C].
        deep: whether a chunk has rows whose gates are far below 0 [chunks, HV].
        ways: constants of the launches that make scores; those that go back through them take the first.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    kept: torch.Tensor
    G: torch.Tensor
    left: torch.Tensor
    strength: torch.Tensor
    lengths: torch.Tensor
    system: torch.Tensor
    attention: torch.Tensor
    deep: torch.Tensor
    ways: tuple[dict[str, bool], ...]

    def operands(self, inverse: torch.Tensor) -> Operands:
        """Return what the walk over chunks takes."""
        return Operands(self.queries, self.keys, self.kept, self.left, self.strength, inverse, per_channel=True)


def cut(call: Call) -> tuple[Chunks, ChunkTable]:
    """Return a call's chunks, normalised by the kernels, and the launches for them."""
    chunks = Chunks.of(call, normalize=False)
    _, _, _, HV, K, V = call.dims
    return chunks, ChunkTable.of(K, V, HV, chunks.q.dtype)


def _ways(chunks: Chunks) -> tuple[dict[str, bool], ...]:
    """Return the constants of the launches that scores inside blocks take, for a call's dtype and gates.

    One product a block has a factor of up to exp(80), which float16 cannot hold, and whose exponent costs float32
    digits. Where no bound of the gates is known, some rows may need another way, which a second launch goes.
    """
    options = chunks.call.options
    if chunks.q.dtype != torch.bfloat16:
        return ({"HALVED": True, "CHECKED": False},)
    bound = options.lower_bound if options.gate_in_kernel else None
    if bound is not None and SPAN.value * bound >= -MOST.value:
        return ({"HALVED": False, "CHECKED": False},)
    return {"HALVED": False, "CHECKED": True}, {"HALVED": True, "CHECKED": True}


def _on_hopper(chunks: Chunks) -> bool:
    """Return whether the kernel for compute capability 9.0 takes a call's chunks."""
    return (
        hopper_scores_kernel is not None
        and not INTERPRETED
        and hopper_decode.is_hopper(chunks.q.device)
        and chunks.q.dtype == torch.bfloat16
        and chunks.call.options.chunk_size == 64
        and chunks.q.shape[3] in (64, 128)
    )


def scores(chunks: Chunks, table: ChunkTable, *, backward: bool) -> Scores:
    """Compute the scores of all chunks; for a backward pass G too, and scores without the strengths."""
    call, options = chunks.call, chunks.call.options
    B, T, _, HV, K, _ = call.dims
    C, fp32 = options.chunk_size, torch.float32
    wide = torch.promote_types(inverse_dtype(chunks.q.dtype), fp32)
    queries, keys, kept = (chunks.new(B, T, HV, K) for _ in range(3))
    found = Scores(
        queries,
        keys,
        kept,
        chunks.new(B if backward else 0, T, HV, K, dtype=fp32),
        chunks.new(chunks.count, HV, K, dtype=fp32),
        chunks.new(B, T, HV, dtype=fp32),
        chunks.new(2 if options.normalize_qk else 0, B, T, HV, dtype=fp32),
        chunks.new(chunks.count, HV, C, C, dtype=wide),
        chunks.new(chunks.count, HV, C, C),
        chunks.new(chunks.count, HV, dtype=torch.int32),
        _ways(chunks),
    )
    g, beta = aligned(call.g), aligned(call.beta)
    common = {**chunks.flags, "NORMALIZE": options.normalize_qk, **gate_constants(call)}
    ways = list(found.ways)
    if chunks.count and _on_hopper(chunks):
        way = ways.pop(0)
        hopper_scores_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), found.queries, found.keys,
            found.kept, found.G, found.left, found.strength, found.lengths, found.system, found.attention, found.deep,
            *chunks.pack, T, call.sequences, B * T, **common, CHECKED=way["CHECKED"], SCALED=not backward,
            BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval, KEEPS=backward, num_warps=K // 16,
            # two programs of eight warps a multiprocessor
            maxnreg=128 if K == 128 else None,
        )  # fmt: skip
    elif chunks.count:
        launch = table.decay
        channel_decay_kernel[(chunks.count * HV * triton.cdiv(K, launch.BK),)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), found.queries, found.keys,
            found.kept, found.G, found.left, found.strength, found.lengths, *chunks.pack, T, call.sequences, B * T,
            **common, BK=launch.BK, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval, KEEPS=backward,
            **launch.options,
        )  # fmt: skip
    for way in ways if chunks.count else ():
        launch = table.scores
        channel_scores_kernel[(chunks.count * HV,)](
            chunks.q, chunks.k, g, given(call.A_log, g), given(call.dt_bias, g), found.strength, found.lengths,
            found.system, found.attention, found.deep, *chunks.pack, T, call.sequences, B * T, **common, BK=launch.BK,
            **way, MENDS=way is not found.ways[0], SCALED=not backward, **launch.options,
        )  # fmt: skip
    return found


def inverted(chunks: Chunks, system: torch.Tensor) -> torch.Tensor:
    """Return the inverses [chunks, HV, C, C] of chunks' unit lower-triangular matrices."""
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
    inverse = inverted(chunks, found.system)
    known = found.operands(inverse)
    w, u = transform(chunks, known, table.transform)
    asked = None if isinstance(call, PrefillCall) else call.chunk_states
    # outputs take states rounded to the operands' dtype and no further, whatever is asked for
    kept = None if asked is None else torch.promote_types(asked.dtype, chunks.q.dtype)
    before = states(chunks, known, w, u, source, sink, table.states, kept)
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
