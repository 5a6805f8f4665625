"""Queries and keys of chunked Kimi delta attention as they meet states: decayed channel by channel.

A program has a chunk, value head and block of channels. Shape legend: C chunk size, H query/key heads, HV value heads,
K key size, cut into blocks of BK. ``G`` is the cumulative log gate inside a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import write_strength
from deltaproof.ops.common.triton_language import pieces, stored
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.kda.triton_gates import channel_gates, row_lengths, summed


@triton.jit(do_not_specialize=["N", "T"])
def channel_decay_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    g,  # [B, T, HV, K]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV, K]
    queries,  # [B, T, HV, K] out: exp(G) q
    keys,  # [B, T, HV, K] out: exp(G) k
    kept,  # [B, T, HV, K] out: exp(G_end - G) k
    G,  # [B, T, HV, K] out where KEEPS, fp32
    left,  # [chunks, HV, K] out, fp32: exp(G_end)
    strength,  # [B, T, HV] out, fp32
    lengths,  # [2, B, T, HV] out where NORMALIZE, fp32: what rows of q and k are multiplied by
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    tokens,  # B * T
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GATE: tl.constexpr,
    RATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    LOWER: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    KEEPS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = program % BLOCKS
    row = program // BLOCKS  # the chunk's and head's
    head = row % HV
    n, first, count = chunk_place(row // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    place = token * HV + head
    LOW: tl.constexpr = k.dtype.element_ty
    if block == 0:
        b_b = write_strength(beta, place, inside, BETA_SIGMOID, NEG_EIGVAL)  # [C]
        tl.store(strength + place, b_b, mask=inside)
    k_at = block * BK + tl.arange(0, BK)
    k_in = k_at < K
    mask = inside[:, None] & k_in[None, :]
    key = (token * H + group)[:, None] * K + k_at[None, :]
    b_q = tl.load(q + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
    b_k = tl.load(k + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
    x = channel_gates(g, A_log, dt_bias, token, inside, head, k_at, HV, K, GATE, RATE, DT_BIAS, LOWER)
    if NORMALIZE:
        q_length = row_lengths(q, token, inside, group, H, K, BK, C)
        k_length = row_lengths(k, token, inside, group, H, K, BK, C)
        tl.store(lengths + place, q_length, mask=inside & (block == 0))
        tl.store(lengths + tokens * HV + place, k_length, mask=inside & (block == 0))
        b_q = stored(b_q * q_length[:, None], LOW).to(tl.float32)
        b_k = stored(b_k * k_length[:, None], LOW).to(tl.float32)
    tl.store(left + row * K + k_at, tl.exp(tl.sum(x, 0)), mask=k_in)
    x_1, x_2, x_3 = pieces(x)
    out = place[:, None] * K + k_at[None, :]
    b_G = summed(c_at[None, :] <= c_at[:, None], x_1, x_2, x_3)  # [C, BK]
    if KEEPS:
        tl.store(G + out, b_G, mask=mask)
    faded = tl.exp(b_G)
    tl.store(queries + out, stored(b_q * faded, LOW), mask=mask)
    tl.store(keys + out, stored(b_k * faded, LOW), mask=mask)
    faded = tl.exp(summed(c_at[None, :] > c_at[:, None], x_1, x_2, x_3))
    tl.store(kept + out, stored(b_k * faded, LOW), mask=mask)
