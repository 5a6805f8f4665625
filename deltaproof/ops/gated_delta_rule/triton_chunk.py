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
from deltaproof.ops.gated_delta_rule.triton_chunk_kernels import (
    chunk_table_kernel,
    normalize_kernel,
    outputs_kernel,
    prepare_kernel,
    states_kernel,
)
from deltaproof.ops.gated_delta_rule.triton_recurrent import state_strides, zero_tail


@dataclass(frozen=True)
class ChunkConfig:
    """Launch configuration, a function of head sizes, head count and dtype, never of T or N (clause I2).

    Triton 3.6.0 compiles a warpgroup matmul of the states kernel wrongly where a load in its loop is not pipelined (one
    stage, or rows whose size is no multiple of 16 bytes): it reads shared memory out of bounds on an H200. Such rows
    take two warps, for which it uses the older instruction; loops keep two stages at least.
    """

    prepare_warps: int
    states_block: int
    states_warps: int
    states_stages: int
    outputs_block: int
    outputs_warps: int

    @classmethod
    def of(cls, K: int, V: int, HV: int, dtype: torch.dtype) -> ChunkConfig:
        """Return the configuration from the table."""
        wide = K > 128 or dtype == torch.float32
        BV = max(16, triton.next_power_of_2(V))
        states_block = min(BV, 16 if wide or HV <= 16 else 32)
        ragged = K * dtype.itemsize % 16 or V * dtype.itemsize % 16
        warps = 2 if ragged else 4
        outputs_block = min(BV, 32 if wide or ragged else 64)
        return cls(1, states_block, warps, 2 if wide else 3, outputs_block, warps)


@dataclass(frozen=True)
class _Table:
    """Which chunks there are: their bound, and for a pack the device's own index."""

    chunks: int
    offsets: torch.Tensor | None
    sequence: torch.Tensor | None


def _table(call: SequenceCall | PrefillCall) -> _Table:
    B, T, *_ = call.dims
    C = call.options.chunk_size
    if call.cu_seqlens is None:
        return _Table(B * triton.cdiv(T, C), None, None)
    N = call.sequences
    bound = triton.cdiv(T, C) + N - 1 if N and T else 0
    device = call.q.device
    offsets = call.allocate((N + 1,), dtype=torch.int32, device=device)
    sequence = call.allocate((bound,), dtype=torch.int32, device=device)
    chunk_table_kernel[(1,)](call.cu_seqlens.contiguous(), offsets, sequence, N, C=C, BLOCK=128, num_warps=4)
    return _Table(bound, offsets, sequence)


def _normalized(call: SequenceCall | PrefillCall, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = call.allocate(x.shape, dtype=dtype, device=x.device)
    K = x.shape[-1]
    rows = x.numel() // K
    if rows:
        BK = triton.next_power_of_2(K)
        block = max(1, 2048 // BK)
        normalize_kernel[(triton.cdiv(rows, block),)](x, y, rows, K=K, BK=BK, BLOCK=block, num_warps=4)
    return y


def _run(
    call: SequenceCall | PrefillCall,
    o: torch.Tensor,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> None:
    B, T, H, HV, K, V = call.dims
    options = call.options
    C, N = options.chunk_size, call.sequences
    device = o.device
    low = torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)
    q, k, v = (x.contiguous().to(low) for x in (call.q, call.k, call.v))
    if options.normalize_qk:
        q, k = (_normalized(call, x.contiguous(), low) for x in (call.q, call.k))
    g, beta = call.g.contiguous(), call.beta.contiguous()
    config = ChunkConfig.of(K, V, HV, low)
    table = _table(call)
    BK = max(16, triton.next_power_of_2(K))
    G = call.allocate((B, T, HV), dtype=torch.float32, device=device)
    strength = call.allocate((B, T, HV), dtype=torch.float32, device=device)
    inverse = call.allocate((table.chunks, HV, C, C), dtype=low, device=device)
    new = call.allocate((B, T, HV, V), dtype=low, device=device)
    states = call.allocate((table.chunks, HV, K, V), dtype=low, device=device)
    none = o  # stands for an argument that the flags leave out

    def given(x: torch.Tensor | None) -> torch.Tensor:
        return none if x is None else x.contiguous()

    varlen = call.cu_seqlens is not None
    pack = (given(call.cu_seqlens), given(table.offsets), given(table.sequence))
    flags: dict[str, Any] = {"H": H, "HV": HV, "K": K, "BK": BK, "C": C, "VARLEN": varlen}
    if table.chunks:
        prepare_kernel[(table.chunks * HV,)](
            k, g, beta, given(call.A_log), given(call.dt_bias), G, strength, inverse, *pack, T, N, **flags,
            GATE=options.gate_in_kernel, DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid,
            NEG_EIGVAL=options.neg_eigval, num_warps=config.prepare_warps,
        )  # fmt: skip
    pool = isinstance(call, PrefillCall)
    read = call.read_index if isinstance(call, PrefillCall) else None
    write = None
    checkpoints, fresh = None, None
    if isinstance(call, PrefillCall):
        write = call.read_index if call.write_index is None else call.write_index
        checkpoints, fresh = call.checkpoint_index, call.has_initial_state
    if N:
        blocks = triton.cdiv(V, config.states_block)
        states_kernel[(N * HV * blocks,)](
            k, v, G, strength, inverse, new, states, none if source is None else source,
            none if sink is None else sink,
            given(checkpoints), given(read), given(write), given(fresh), pack[0], pack[1], T,
            source.shape[0] if pool and source is not None else 0,
            0 if checkpoints is None else checkpoints.shape[1],
            *(state_strides(source, options.layout) if source is not None else (0, 0, 0, 0)),
            *(state_strides(sink, options.layout) if sink is not None else (0, 0, 0, 0)),
            **flags, V=V, BV=config.states_block, POOL=pool, FRESH=fresh is not None, READ=source is not None,
            WRITE=sink is not None, EVERY=(call.checkpoint_every or 0) if isinstance(call, PrefillCall) else 0,
            num_warps=config.states_warps, num_stages=config.states_stages,
        )  # fmt: skip
    if table.chunks:
        blocks = triton.cdiv(V, config.outputs_block)
        outputs_kernel[(table.chunks * HV * blocks,)](
            q, k, new, G, states, o, given(read), *pack, options.scale, T, N,
            source.shape[0] if pool and source is not None else 0,
            **flags, V=V, BV=config.outputs_block, POOL=pool, num_warps=config.outputs_warps, num_stages=2,
        )  # fmt: skip
    if call.cu_seqlens is not None:
        zero_tail(o, call.cu_seqlens)


def chunk_forward(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the form ``chunk`` without gradients."""
    B, T, _, HV, K, V = call.dims
    device = call.q.device
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=device)
    state = None if call.initial_state is None else call.initial_state.contiguous()
    final = None
    if call.output_final_state:
        shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
        dtype = torch.float32 if state is None else state.dtype
        final = call.allocate(shape, dtype=dtype, device=device)
    _run(call, o, state, final)
    return o, final


def prefill(call: PrefillCall) -> torch.Tensor:
    """Run the form ``prefill``."""
    B, T, _, HV, _, V = call.dims
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    _run(call, o, call.pool, call.pool)
    return o
