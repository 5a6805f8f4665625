"""Launching the chunk kernels: the forms ``chunk`` (forward) and ``prefill`` of the Triton backend.

No launch depends on the contents of cu_seqlens: chunk grids use the bound cdiv(T, C) + N - 1, and which sequence a
chunk belongs to is worked out on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from deltaproof.ops.common.calls import PrefillCall, SequenceCall
from deltaproof.ops.common.triton_host import aligned, given, state_strides, zero_tail
from deltaproof.ops.common.triton_inputs import normalize_kernel
from deltaproof.ops.common.triton_places import chunk_table_kernel
from deltaproof.ops.gated_delta_rule.triton_outputs import outputs_kernel
from deltaproof.ops.gated_delta_rule.triton_prepare import prepare_kernel, transform_kernel
from deltaproof.ops.gated_delta_rule.triton_states import states_kernel
from deltaproof.ops.gated_delta_rule.triton_tables import ChunkTable

Call = SequenceCall | PrefillCall


@dataclass(frozen=True)
class Chunks:
    """A call cut into chunks: operands in one dtype and, for a pack, the device's own index of chunks."""

    call: Call
    q: torch.Tensor  # [B, T, H, K] normalised if asked
    k: torch.Tensor  # [B, T, H, K]
    v: torch.Tensor  # [B, T, HV, V]
    count: int  # bound of the number of chunks
    pack: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # cu_seqlens, chunk_offsets, chunk_sequence
    table: ChunkTable

    @classmethod
    def of(cls, call: Call) -> Chunks:
        """Cast and normalise the operands and index the chunks."""
        B, T, H, HV, K, V = call.dims
        low = torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)
        q, k, v = (aligned(x) for x in (call.q, call.k, call.v))
        if call.options.normalize_qk:
            q, k = (_normalized(call, x, low) for x in (q, k))
        q, k, v = (x.to(low) for x in (q, k, v))
        C, N, cu_seqlens = call.options.chunk_size, call.sequences, call.cu_seqlens
        table = ChunkTable.of(K, V, HV, low)
        if cu_seqlens is None:
            return cls(call, q, k, v, B * triton.cdiv(T, C), (q, q, q), table)
        bound = triton.cdiv(T, C) + N - 1 if N and T else 0
        cu_seqlens = cu_seqlens.contiguous()
        offsets = call.allocate((N + 1,), dtype=torch.int32, device=q.device)
        sequence = call.allocate((bound,), dtype=torch.int32, device=q.device)
        chunk_table_kernel[(1,)](cu_seqlens, offsets, sequence, N, T, bound, C=C, BLOCK=128, num_warps=4)
        return cls(call, q, k, v, bound, (cu_seqlens, offsets, sequence), table)

    @property
    def flags(self) -> dict[str, Any]:
        """Return the constants that every chunk kernel takes."""
        _, _, H, HV, K, _ = self.call.dims
        varlen = self.call.cu_seqlens is not None
        return {"H": H, "HV": HV, "K": K, "C": self.call.options.chunk_size, "VARLEN": varlen}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Allocate a workspace, in the operands' dtype if none is given."""
        return self.call.allocate(shape, dtype=self.q.dtype if dtype is None else dtype, device=self.q.device)


@dataclass(frozen=True)
class Prepared:
    """What a chunk needs that does not depend on the state; a backward pass starts from it."""

    G: torch.Tensor  # [B, T, HV] fp32, cumulative log gate inside a chunk
    strength: torch.Tensor  # [B, T, HV] fp32
    inverse: torch.Tensor  # [chunks, HV, C, C] in inverse_dtype


def inverse_dtype(operands: torch.dtype) -> torch.dtype:
    """Return the dtype in which a chunk's inverse is kept: the operands', but float64 for float32."""
    return torch.float64 if operands == torch.float32 else operands


def _normalized(call: Call, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = call.allocate(x.shape, dtype=dtype, device=x.device)
    K = x.shape[-1]
    rows = x.numel() // K
    if rows:
        BK = triton.next_power_of_2(K)
        block = max(1, 2048 // BK)
        normalize_kernel[(triton.cdiv(rows, block),)](x, y, rows, K=K, BK=BK, BLOCK=block, num_warps=4)
    return y


def prepare(chunks: Chunks) -> Prepared:
    """Compute the gates, write strengths and inverses of all chunks."""
    call, options = chunks.call, chunks.call.options
    B, T, _, HV, _, _ = call.dims
    C = options.chunk_size
    prepared = Prepared(
        chunks.new(B, T, HV, dtype=torch.float32),
        chunks.new(B, T, HV, dtype=torch.float32),
        chunks.new(chunks.count, HV, C, C, dtype=inverse_dtype(chunks.q.dtype)),
    )
    g, beta = aligned(call.g), aligned(call.beta)
    if chunks.count:
        prepare_kernel[(chunks.count * HV,)](
            chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g),
            prepared.G, prepared.strength, prepared.inverse, *chunks.pack, T, call.sequences, **chunks.flags,
            BK=chunks.table.prepare.BK, GATE=options.gate_in_kernel, DT_BIAS=call.dt_bias is not None,
            BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval, **chunks.table.prepare.options,
        )  # fmt: skip
    return prepared


def transform(chunks: Chunks, prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w [B, T, HV, K] and u [B, T, HV, V]: a chunk's errors are u - w S."""
    B, T, _, HV, K, V = chunks.call.dims
    w, u = chunks.new(B, T, HV, K), chunks.new(B, T, HV, V)
    launch = chunks.table.transform
    if chunks.count:
        transform_kernel[(chunks.count * HV,)](
            chunks.k, chunks.v, prepared.G, prepared.inverse, w, u, *chunks.pack, T, chunks.call.sequences,
            **chunks.flags, V=V, **launch.tiles, **launch.options,
        )  # fmt: skip
    return w, u


def states(
    chunks: Chunks,
    prepared: Prepared,
    w: torch.Tensor,
    u: torch.Tensor,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Return the states before each chunk [chunks, HV, K, V], and put the errors in the place of u."""
    call, layout = chunks.call, chunks.call.options.layout
    _, T, _, HV, K, V = call.dims
    found = chunks.new(chunks.count, HV, K, V)
    launch = chunks.table.states
    pool = call if isinstance(call, PrefillCall) else None
    read = write = checkpoints = fresh = None
    if pool is not None:
        read = pool.read_index
        write = pool.read_index if pool.write_index is None else pool.write_index
        checkpoints, fresh = pool.checkpoint_index, pool.has_initial_state
    if call.sequences:
        states_kernel[(call.sequences * HV * triton.cdiv(V, launch.BV),)](
            chunks.k, w, u, prepared.G, prepared.strength, u, found, u if source is None else source,
            u if sink is None else sink,
            *(given(x, u) for x in (checkpoints, read, write, fresh)), chunks.pack[0], chunks.pack[1], T,
            0 if pool is None else pool.pool.shape[0], 0 if checkpoints is None else checkpoints.shape[1],
            *state_strides(source, layout), *state_strides(sink, layout), **chunks.flags, V=V, BK=launch.BK,
            BV=launch.BV, POOL=pool is not None, FRESH=fresh is not None, READ=source is not None,
            WRITE=sink is not None, EVERY=(pool.checkpoint_every or 0) if pool is not None else 0, **launch.options,
        )  # fmt: skip
    return found


def _forward(chunks: Chunks, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Prepared:
    call = chunks.call
    _, T, _, HV, _, V = call.dims
    prepared = prepare(chunks)
    w, u = transform(chunks, prepared)
    before = states(chunks, prepared, w, u, source, sink)
    launch = chunks.table.outputs
    pool = call if isinstance(call, PrefillCall) else None
    if chunks.count:
        outputs_kernel[(chunks.count * HV * triton.cdiv(V, launch.BV),)](
            chunks.q, chunks.k, u, prepared.G, prepared.strength, before, o,
            u if pool is None else pool.read_index.contiguous(), *chunks.pack, call.options.scale, T, call.sequences,
            0 if pool is None else pool.pool.shape[0], **chunks.flags, V=V, **launch.tiles,
            POOL=pool is not None, **launch.options,
        )  # fmt: skip
    zero_tail(o, call.cu_seqlens)
    return prepared


def chunk_forward(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None, Prepared]:
    """Run the form ``chunk``; return o, the final state and what a backward pass needs."""
    B, T, _, HV, K, V = call.dims
    device = call.q.device
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=device)
    state = None if call.initial_state is None else aligned(call.initial_state)
    final = None
    if call.output_final_state:
        shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
        dtype = torch.float32 if state is None else state.dtype
        final = call.allocate(shape, dtype=dtype, device=device)
    return o, final, _forward(Chunks.of(call), o, state, final)


def prefill(call: PrefillCall, out: torch.Tensor) -> None:
    """Run the form ``prefill`` into ``out`` [B, T, HV, V]."""
    _forward(Chunks.of(call), out, call.pool, call.pool)
