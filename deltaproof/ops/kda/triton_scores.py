"""The part of chunked Kimi delta attention that needs no state: a program a chunk and value head.

Scores between two tokens decay channel by channel, so they are no product of queries and keys; split at a row between
them they are. Between blocks of 16 rows such a row is there. Inside a block the split stands in front of its first row,
with one factor above 1, as long as the block's gates are not far below 0; else the block is halved, and halved again.
Shape legend: C chunk size, H query/key heads, HV value heads, K key size, cut into blocks of BK. For operands in fp32
sums of scores and what is inverted are fp64, as for the gated delta rule.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inverse import block_of, keep_block, row_1, row_2, row_3
from deltaproof.ops.common.triton_language import dot, pieces, stored
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.kda.triton_gates import MOST, SPAN, across, between, channel_gates, middle, summed


@triton.jit
def operand(x, LOW: tl.constexpr):
    """Return fp32 x as an operand of a product of scores: in LOW, but in fp64 for fp32."""
    if LOW == tl.float32:
        y = x.to(tl.float64)
    else:
        y = stored(x, LOW)
    return y


@triton.jit(do_not_specialize=["N", "T"])
def channel_scores_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    g,  # [B, T, HV, K]
    A_log,  # [HV]
    dt_bias,  # [HV, K]
    strength,  # [B, T, HV]
    lengths,  # [2, B, T, HV] of q and k where NORMALIZE
    system,  # [chunks, HV, C, C] out, fp32 or fp64: scores of keys with keys, strictly lower
    attention,  # [chunks, HV, C, C] out: scores of queries with keys, lower
    deep,  # [chunks, HV] out, or read where MENDS: whether a row needs halving
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
    MENDS: tl.constexpr,
    SCALED: tl.constexpr,
    VARLEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GATE: tl.constexpr,
    RATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    LOWER: tl.constexpr,
):
    """Store scores, times the keys' strengths where SCALED.

    HALVED: blocks are halved down to a row. CHECKED: gates may be too far below 0 for anything else, and which rows
    that is true of is found out. MENDS: those rows' scores are stored, and nothing else.
    """
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    if MENDS:
        if tl.load(deep + program) == 0:
            return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    place = token * HV + head
    LOW: tl.constexpr = k.dtype.element_ty
    if NORMALIZE:
        q_length = tl.load(lengths + place, mask=inside, other=0.0)[:, None]
        k_length = tl.load(lengths + tokens * HV + place, mask=inside, other=0.0)[:, None]
    kk = tl.zeros([C, C], tl.float64 if LOW == tl.float32 else tl.float32)  # [C, C]
    qk = tl.zeros([C, C], tl.float64 if LOW == tl.float32 else tl.float32)  # [C, C]
    lowest = tl.zeros([C], tl.float32)  # [C]
    # one stage: a gate's parameters would be copied ahead too
    for start in tl.range(0, K, BK, num_stages=1):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=mask, other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        x = channel_gates(g, A_log, dt_bias, token, inside, head, k_at, HV, K, GATE, RATE, DT_BIAS, LOWER)
        x_1, x_2, x_3 = pieces(x)
        if NORMALIZE:
            b_q = stored(b_q.to(tl.float32) * q_length, LOW)
            b_k = stored(b_k.to(tl.float32) * k_length, LOW)
        size = tl.zeros([], tl.int32) + C
        if HALVED or C > SPAN:
            # a loop, not copies of its body: those would be computed side by side, in more registers than there are
            while size > (1 if HALVED else SPAN):
                faded = tl.exp(summed(between(middle(size, C), C), x_1, x_2, x_3))  # [C, BK]
                faded_k = operand(b_k.to(tl.float32) * faded, LOW)
                pair = across(size, C)
                kk += tl.where(pair, dot(faded_k, tl.trans(faded_k)), 0.0)
                qk += tl.where(pair, dot(operand(b_q.to(tl.float32) * faded, LOW), tl.trans(faded_k)), 0.0)
                size = size // 2
        if CHECKED or not HALVED:
            upto = summed(between((c_at & -SPAN) - 1, C), x_1, x_2, x_3)  # [C, BK], from the block's start
            lowest = tl.minimum(lowest, tl.min(upto, 1))
        if HALVED:
            own = tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1)  # [C]
            qk += tl.where(c_at[:, None] == c_at[None, :], own[:, None], 0.0)
        else:
            block = (c_at & -SPAN)[:, None] == (c_at & -SPAN)[None, :]
            faded = tl.exp(upto)
            # the factors above 1
            before = tl.trans(operand(b_k.to(tl.float32) * tl.exp(tl.minimum(-upto, MOST)), LOW))  # [BK, C]
            kk += tl.where(block, dot(operand(b_k.to(tl.float32) * faded, LOW), before), 0.0)
            qk += tl.where(block, dot(operand(b_q.to(tl.float32) * faded, LOW), before), 0.0)
    if SCALED:
        b_b = tl.load(strength + place, mask=inside, other=0.0)[None, :]
        kk = kk * b_b
        qk = qk * b_b
    kk = tl.where(c_at[:, None] > c_at[None, :], kk, 0.0)
    qk = tl.where(c_at[:, None] >= c_at[None, :], qk, 0.0)
    written = c_at < C
    if MENDS:
        written = lowest < -MOST
    elif CHECKED:
        tl.store(deep + program, (tl.min(lowest, 0) < -MOST).to(tl.int32))
    tile = program * C * C + c_at[:, None] * C + c_at[None, :]
    tl.store(system + tile, kk, mask=written[:, None])
    tl.store(attention + tile, stored(qk.to(tl.float32), LOW), mask=written[:, None])


@triton.jit
def _inverted(a, C: tl.constexpr):
    """Return the inverses [C / 16, 16, 16] of I and the blocks on the diagonal of a strictly lower matrix [C, C].

    By forward substitution, a row of every block at a time; what a row is made of is loaded ahead.
    """
    block = tl.arange(0, C // 16)
    at = tl.arange(0, 16)
    first = a + (block * 16 * (C + 1))[:, None] + at[None, :]
    inverse = tl.zeros([C // 16, 16, 16], a.dtype.element_ty)
    for i in tl.static_range(16):
        row = tl.load(first + i * C)  # [C / 16, 16], zero from its diagonal on
        found = tl.where(at == i, 1.0, 0.0)[None, :] - tl.sum(row[:, :, None] * inverse, 1)
        inverse = tl.where((at == i)[None, :, None], found[:, None, :], inverse)
    return inverse


@triton.jit
def _of(inverses, BLOCK: tl.constexpr, C: tl.constexpr):
    """Return one of several blocks [16, 16]."""
    return tl.sum(tl.where((tl.arange(0, C // 16) == BLOCK)[:, None, None], inverses, 0.0), 0)


@triton.jit(do_not_specialize=["N", "T"])
def invert_kernel(
    system,  # [chunks, HV, C, C], strictly lower
    inverse,  # [chunks, HV, C, C] out: (I + system)^-1
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    HV: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    n, first, count = chunk_place(program // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    a = system + program * C * C
    out = inverse + program * C * C
    none = tl.zeros([16, 16], system.dtype.element_ty)
    if C > 16:
        c_at = tl.arange(0, C)
        block = c_at // 16
        zeros = tl.zeros([C, C], out.dtype.element_ty)
        tl.store(out + c_at[:, None] * C + c_at[None, :], zeros, mask=block[:, None] < block[None, :])

    inverses = _inverted(a, C)
    # a branch for each row of blocks: rows without a token need no products
    i_00 = _of(inverses, 0, C)
    keep_block(out, i_00, 0, 0, C)
    if C >= 32:
        i_11 = _of(inverses, 1, C)
        i_10 = none
        if count > 16:
            i_10 = row_1(i_11, block_of(a, 1, 0, C), i_00)
        keep_block(out, i_10, 1, 0, C)
        keep_block(out, i_11, 1, 1, C)
    if C == 64:
        i_22 = _of(inverses, 2, C)
        i_20, i_21 = none, none
        if count > 32:
            i_20, i_21 = row_2(i_22, block_of(a, 2, 0, C), block_of(a, 2, 1, C), i_00, i_10, i_11)
        keep_block(out, i_20, 2, 0, C)
        keep_block(out, i_21, 2, 1, C)
        keep_block(out, i_22, 2, 2, C)
        i_33 = _of(inverses, 3, C)
        i_30, i_31, i_32 = none, none, none
        if count > 48:
            a_30, a_31, a_32 = block_of(a, 3, 0, C), block_of(a, 3, 1, C), block_of(a, 3, 2, C)
            i_30, i_31, i_32 = row_3(i_33, a_30, a_31, a_32, i_00, i_10, i_11, i_20, i_21, i_22)
        keep_block(out, i_30, 3, 0, C)
        keep_block(out, i_31, 3, 1, C)
        keep_block(out, i_32, 3, 2, C)
        keep_block(out, i_33, 3, 3, C)
