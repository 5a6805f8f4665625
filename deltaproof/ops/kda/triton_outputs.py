"""The outputs of chunked Kimi delta attention from finished states: a program a chunk, value head and block of V.

Shape legend: C chunk size, HV value heads, K, V head sizes, cut into blocks of BK, BV; S slots. ``G`` is the cumulative
log gate inside a chunk; ``errors`` are v - S'^T k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit(do_not_specialize=["N", "T", "slots"])
def channel_outputs_kernel(
    queries,  # [B, T, HV, K]: exp(G) q
    attention,  # [chunks, HV, C, C]: scores of queries with keys, times the keys' strengths
    errors,  # [B, T, HV, V]
    states,  # [chunks, HV, K, V]
    o,  # [B, T, HV, V] out
    read_index,
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    slots,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    UNROLL: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    POOL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = program % BLOCKS
    row = program // BLOCKS  # the chunk's and head's
    head = row % HV
    n, first, count = chunk_place(row // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    live = n >= 0
    if POOL:
        slot = tl.load(read_index + n).to(tl.int64)
        live = (slot >= 0) & (slot < slots)
    c_at = tl.arange(0, C)
    v_at = block * BV + tl.arange(0, BV)
    inside = c_at < count
    v_in = v_at < V
    place = (first + c_at) * HV + head
    b_o = tl.zeros([C, BV], tl.float32)  # [C, BV]
    for start in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        k_at = start + tl.arange(0, BK)
        k_in = k_at < K
        b_q = tl.load(queries + place[:, None] * K + k_at[None, :], mask=inside[:, None] & k_in[None, :], other=0.0)
        at = (row * K + k_at[:, None]) * V + v_at[None, :]
        S = tl.load(states + at, mask=k_in[:, None] & v_in[None, :], other=0.0)  # [BK, BV]
        b_o += dot(b_q, stored(S.to(tl.float32), b_q.dtype))
    at = place[:, None] * V + v_at[None, :]
    b_e = tl.load(errors + at, mask=inside[:, None] & v_in[None, :], other=0.0)  # [C, BV]
    b_a = tl.load(attention + row * C * C + c_at[:, None] * C + c_at[None, :])  # [C, C]
    b_o = tl.where(live, (b_o + dot(b_a, b_e)) * scale, 0.0)
    tl.store(o + at, stored(b_o, o.dtype.element_ty), mask=inside[:, None] & v_in[None, :])
