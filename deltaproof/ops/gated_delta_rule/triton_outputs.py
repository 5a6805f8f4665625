"""The part of the chunked gated delta rule that needs finished states: a program a chunk and value head.

Shape legend: C chunk size, H query/key heads, HV value heads, K, V head sizes, cut into blocks of BK, BV; S slots.
``G`` is the cumulative log gate inside a chunk; ``errors`` are v - S'^T k, so that a token writes beta * errors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit
def chunk_decay(b_G, inside, C: tl.constexpr):
    """Return exp(G_i - G_j) [C, C] for j <= i, 0 elsewhere; masked before the exponential, which may overflow."""
    at = tl.arange(0, C)
    lower = (at[:, None] >= at[None, :]) & inside[:, None]
    return tl.where(lower, tl.exp(tl.where(lower, b_G[:, None] - b_G[None, :], 0.0)), 0.0)


@triton.jit(do_not_specialize=["N", "T", "slots"])
def outputs_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    errors,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
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
    H: tl.constexpr,
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
    head = (program // BLOCKS) % HV
    chunk = program // (BLOCKS * HV)
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    live = n >= 0
    if POOL:
        slot = tl.load(read_index + n).to(tl.int64)
        live = (slot >= 0) & (slot < slots)
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    v_at = block * BV + tl.arange(0, BV)
    inside = c_at < count
    v_in = v_at < V
    token = first + c_at
    row = chunk * HV + head
    b_o = tl.zeros([C, BV], tl.float32)  # [C, BV]
    attention = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        k_at = start + tl.arange(0, BK)
        k_in = k_at < K
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
        at = (row * K + k_at[:, None]) * V + v_at[None, :]
        b_o += dot(b_q, tl.load(states + at, mask=k_in[:, None] & v_in[None, :], other=0.0))
        attention += dot(b_q, tl.trans(b_k))
    at = (token * HV + head)[:, None] * V + v_at[None, :]
    b_e = tl.load(errors + at, mask=inside[:, None] & v_in[None, :], other=0.0)  # [C, BV]
    b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
    b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
    attention = attention * chunk_decay(b_G, inside, C) * b_b[None, :]
    b_o = b_o * tl.exp(b_G)[:, None] + dot(stored(attention, b_e.dtype), b_e)
    b_o = tl.where(live, b_o * scale, 0.0)
    tl.store(o + at, stored(b_o, o.dtype.element_ty), mask=inside[:, None] & v_in[None, :])
