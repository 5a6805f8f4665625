"""Applying a chunk's inverse to its keys and values: a program a chunk and value head.

Shape legend: C chunk size, H query/key heads, HV value heads, K, V head sizes, cut into blocks of BK, BV. ``G`` is the
cumulative log gate inside a chunk, T the inverse of the chunk's triangular matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit(do_not_specialize=["N", "T"])
def transform_kernel(
    k,  # [B, T, H, K]; a gate a channel: exp(G) k [B, T, HV, K]
    v,  # [B, T, HV, V]
    G,  # [B, T, HV]; a gate a channel: not read
    inverse,  # [chunks, HV, C, C]
    w,  # [B, T, HV, K] out: T exp(G) k
    u,  # [B, T, HV, V] out: T v
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    UNROLL: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    low = k.dtype.element_ty
    b_i = tl.load(inverse + program * C * C + c_at[:, None] * C + c_at[None, :])  # [C, C]
    if not PER_CHANNEL:
        b_grown = tl.exp(tl.load(G + token * HV + head, mask=inside, other=0.0))[:, None]  # [C, 1]
    for start in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        at = start + tl.arange(0, BK)
        mask = inside[:, None] & (at < K)[None, :]
        b_k = tl.load(k + (token * H + group)[:, None] * K + at[None, :], mask=mask, other=0.0)  # [C, BK]
        if not PER_CHANNEL:
            b_k = stored(b_k.to(tl.float32) * b_grown, low)
        b_w = dot(b_i, b_k.to(b_i.dtype))
        tl.store(w + (token * HV + head)[:, None] * K + at[None, :], stored(b_w, low), mask=mask)
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        at = start + tl.arange(0, BV)
        mask = inside[:, None] & (at < V)[None, :]
        place = (token * HV + head)[:, None] * V + at[None, :]
        b_v = tl.load(v + place, mask=mask, other=0.0)  # [C, BV]
        tl.store(u + place, stored(dot(b_i, b_v.to(b_i.dtype)), low), mask=mask)
