"""Gradients through the scores of chunked Kimi delta attention: a program a block of 16 rows and a block of channels.

As a later row a row has scores with all rows before it, as an earlier one with all behind it. Products are split in
front of the later row's block, and inside a block as on the way forward. What a pair of rows gives the gradient of G
stands at the later one with the sign + and at the earlier one with -, and is made of the same rounded operands, so that
it cancels where both are summed. Shape legend: C chunk size, H query/key heads, HV value heads, K key size, cut into
blocks of BK. ``G`` is the cumulative log gate inside a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inverse import block_of
from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.kda.triton_gates import MOST, across, middle


@triton.jit
def _at_rows(x, token, inside, heads, head, k_at, K: tl.constexpr):
    """Return rows of x [., heads, K] as fp32 [16, BK], 0 where there is no token."""
    mask = inside[:, None] & (k_at < K)[None, :]
    return tl.load(x + (token * heads + head)[:, None] * K + k_at[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _at_start(G, first, block, head, k_at, HV: tl.constexpr, K: tl.constexpr):
    """Return G in front of a block's first row [1, BK], which is 0 in front of the chunk."""
    token = first + block * 16 - 1
    return tl.load(G + (token * HV + head) * K + k_at, mask=(k_at < K) & (block > 0), other=0.0)[None, :]


@triton.jit
def _normal(b_x, lengths, place, inside, LOW: tl.constexpr):
    """Return normalised rows [16, BK] as they were rounded on the way forward."""
    length = tl.load(lengths + place, mask=inside, other=0.0)[:, None]
    return stored(b_x * length, LOW).to(tl.float32)


@triton.jit(do_not_specialize=["N", "T", "tokens"])
def channel_score_gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    G,  # [B, T, HV, K]
    lengths,  # [2, B, T, HV] of q and k where NORMALIZE
    d_system,  # [chunks, HV, C, C]
    d_attention,  # [chunks, HV, C, C]
    deep,  # [chunks, HV], read where CHECKED: whether a row needs halving
    dq,  # [B, T, HV, K] out, fp32: what scores give the gradient of q
    dk,  # [B, T, HV, K] out, fp32
    dG,  # [B, T, HV, K] out, fp32
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
    HALVED: tl.constexpr,
    CHECKED: tl.constexpr,
    VARLEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    i = (program // BLOCKS) % (C // 16)
    chunk_head = program // (BLOCKS * (C // 16))
    head = chunk_head % HV
    n, first, count = chunk_place(chunk_head // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if i * 16 >= count:
        return
    group = head // (HV // H)
    at = tl.arange(0, 16)
    k_at = program % BLOCKS * BK + tl.arange(0, BK)
    LOW: tl.constexpr = k.dtype.element_ty
    d_system += chunk_head * C * C
    d_attention += chunk_head * C * C
    token = first + i * 16 + at
    inside = i * 16 + at < count
    place = token * HV + head
    b_q = _at_rows(q, token, inside, H, group, k_at, K)  # [16, BK]
    b_k = _at_rows(k, token, inside, H, group, k_at, K)
    if NORMALIZE:
        b_q = _normal(b_q, lengths, place, inside, LOW)
        b_k = _normal(b_k, lengths + tokens * HV, place, inside, LOW)
    b_G = _at_rows(G, token, inside, HV, head, k_at, K)
    start = _at_start(G, first, i, head, k_at, HV, K)  # [1, BK]
    upto = tl.minimum(b_G - start, 0.0)
    late = tl.exp(upto)
    late_q, late_k = stored(b_q * late, LOW), stored(b_k * late, LOW)

    by_q = tl.zeros([16, BK], tl.float32)  # [16, BK]
    by_k = tl.zeros([16, BK], tl.float32)
    for j in range(0, i):
        token_j = first + j * 16 + at
        k_j = _at_rows(k, token_j, token_j >= first, H, group, k_at, K)
        if NORMALIZE:
            k_j = _normal(k_j, lengths + tokens * HV, token_j * HV + head, token_j >= first, LOW)
        G_j = _at_rows(G, token_j, token_j >= first, HV, head, k_at, K)
        early = stored(k_j * tl.exp(tl.minimum(start - G_j, 0.0)), LOW)
        by_q += dot(block_of(d_attention, i, j, C), early)
        by_k += dot(block_of(d_system, i, j, C), early)
    b_dG = late_q.to(tl.float32) * by_q + late_k.to(tl.float32) * by_k
    b_dq = by_q * late
    b_dk = by_k * late

    for j in range(i + 1, (count + 15) // 16):
        token_j = first + j * 16 + at
        inside_j = j * 16 + at < count
        q_j = _at_rows(q, token_j, inside_j, H, group, k_at, K)
        k_j = _at_rows(k, token_j, inside_j, H, group, k_at, K)
        if NORMALIZE:
            q_j = _normal(q_j, lengths, token_j * HV + head, inside_j, LOW)
            k_j = _normal(k_j, lengths + tokens * HV, token_j * HV + head, inside_j, LOW)
        start_j = _at_start(G, first, j, head, k_at, HV, K)
        late_j = tl.exp(tl.minimum(_at_rows(G, token_j, inside_j, HV, head, k_at, K) - start_j, 0.0))
        back = dot(tl.trans(block_of(d_attention, j, i, C)), stored(q_j * late_j, LOW))
        back += dot(tl.trans(block_of(d_system, j, i, C)), stored(k_j * late_j, LOW))
        faded = tl.exp(tl.minimum(start_j - b_G, 0.0))
        b_dG -= stored(b_k * faded, LOW).to(tl.float32) * back
        b_dk += back * faded

    d_left = block_of(d_attention, i, i, C)  # [16, 16]
    d_right = block_of(d_system, i, i, C)
    halved = HALVED
    if CHECKED:
        halved = tl.load(deep + chunk_head) != 0
    if halved:
        none = tl.zeros([16, 16], LOW)
        # a token's score with itself has no gate
        own = tl.sum(tl.where(at[:, None] == at[None, :], d_left.to(tl.float32), 0.0), 1)[:, None]
        b_dq += own * b_k
        b_dk += own * b_q
        size = tl.zeros([], tl.int32) + 16
        while size > 1:
            row = i * 16 + middle(size, 16)
            G_middle = _at_rows(G, first + row, row < count, HV, head, k_at, K)
            faded = tl.exp(-tl.abs(b_G - G_middle))
            q_faded, k_faded = stored(b_q * faded, LOW), stored(b_k * faded, LOW)
            pair = across(size, 16)
            d_q, d_k = tl.where(pair, d_left, none), tl.where(pair, d_right, none)
            by_q, by_k = dot(d_q, k_faded), dot(d_k, k_faded)
            back = dot(tl.trans(d_q), q_faded) + dot(tl.trans(d_k), k_faded)
            b_dG += q_faded.to(tl.float32) * by_q + k_faded.to(tl.float32) * (by_k - back)
            b_dq += by_q * faded
            b_dk += (by_k + back) * faded
            size = size // 2
    else:
        grown = tl.exp(tl.minimum(-upto, MOST))  # the factors above 1
        early = stored(b_k * grown, LOW)
        by_q, by_k = dot(d_left, early), dot(d_right, early)
        back = dot(tl.trans(d_left), late_q) + dot(tl.trans(d_right), late_k)
        b_dG += late_q.to(tl.float32) * by_q + late_k.to(tl.float32) * by_k - early.to(tl.float32) * back
        b_dq += by_q * late
        b_dk += by_k * late + back * grown
    out = place[:, None] * K + k_at[None, :]
    mask = inside[:, None] & (k_at < K)[None, :]
    tl.store(dq + out, b_dq, mask=mask)
    tl.store(dk + out, b_dk, mask=mask)
    tl.store(dG + out, b_dG, mask=mask)
