"""The part of chunked Kimi delta attention that needs no state: a program a chunk and value head.

Scores between two tokens decay channel by channel, so they are no product of queries and keys. They are a sum of
products over levels: a chunk is halved, and halved again, and what a row of a later half has with one of the earlier
half decays to the middle and from there, which is a product. Where gates are bounded, blocks of SPAN rows are short
enough for one product with a factor above 1. Shape legend: C chunk size, H query/key heads, HV value heads, K key
size, cut into blocks of BK. ``G`` is the cumulative log gate inside a chunk. For operands in fp32 scores are fp64, as
those of the gated delta rule.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import write_strength
from deltaproof.ops.common.triton_inverse import invert_16, keep_block, row_1, row_2, row_3
from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.kda.triton_gates import channel_gates, halves, row_lengths, same_block


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
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV, K]
    queries,  # [B, T, HV, K] out: exp(G) q
    keys,  # [B, T, HV, K] out: exp(G) k
    kept,  # [B, T, HV, K] out: exp(G_end - G) k
    left,  # [chunks, HV, K] out, fp32: exp(G_end)
    strength,  # [B, T, HV] out, fp32
    G_rows,  # [chunks, HV, C, K] out, fp32: G, or of it the first row of every SPAN where WHOLE is not set
    system,  # [chunks, HV, C, C] out, fp32 or fp64: scores of keys with keys, strictly lower
    attention,  # [chunks, HV, C, C] out: scores of queries with keys, lower
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    SPAN: tl.constexpr,
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    VARLEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GATE: tl.constexpr,
    RATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    LOWER: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
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
    LOW: tl.constexpr = k.dtype.element_ty
    b_b = write_strength(beta, token * HV + head, inside, BETA_SIGMOID, NEG_EIGVAL)  # [C]
    tl.store(strength + token * HV + head, b_b, mask=inside)
    if NORMALIZE:
        q_length = row_lengths(q, token, inside, group, H, K, BK, C)[:, None]
        k_length = row_lengths(k, token, inside, group, H, K, BK, C)[:, None]
    G_rows += program * C * K
    kk = tl.zeros([C, C], tl.float64 if LOW == tl.float32 else tl.float32)  # [C, C]
    qk = tl.zeros([C, C], tl.float64 if LOW == tl.float32 else tl.float32)  # [C, C]
    for start in range(0, K, BK):
        k_at = start + tl.arange(0, BK)
        k_in = k_at < K
        mask = inside[:, None] & k_in[None, :]
        x = channel_gates(g, A_log, dt_bias, token, inside, head, k_at, HV, K, GATE, RATE, DT_BIAS, LOWER)
        G = tl.cumsum(x, 0)  # [C, BK]
        row = k_in[None, :]
        if not WHOLE:
            row = row & (c_at % SPAN == 0)[:, None]
        tl.store(G_rows + c_at[:, None] * K + k_at[None, :], G, mask=row)
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
        b_k = tl.load(k + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
        if NORMALIZE:
            b_q = stored(b_q * q_length, LOW).to(tl.float32)
            b_k = stored(b_k * k_length, LOW).to(tl.float32)
        grown = tl.exp(G)
        end = tl.sum(tl.where((c_at == C - 1)[:, None], G, 0.0), 0)  # [BK]; behind the last token G stays
        out = (token * HV + head)[:, None] * K + k_at[None, :]
        tl.store(queries + out, stored(b_q * grown, LOW), mask=mask)
        tl.store(keys + out, stored(b_k * grown, LOW), mask=mask)
        tl.store(kept + out, stored(b_k * tl.exp(end[None, :] - G), LOW), mask=mask)
        tl.store(left + program * K + k_at, tl.exp(end), mask=k_in)
        # rows of G that other threads have stored are read below
        tl.debug_barrier()
        if SPAN < C:
            size = C
            # a loop, not copies of its body: those would be computed side by side, in more registers than there are
            while size > SPAN:
                faded, later = halves(G, G_rows, k_at, size, K, C)
                faded_k = b_k * faded
                before = tl.trans(operand(tl.where(later[:, None], 0.0, faded_k), LOW))  # [BK, C]
                pair = same_block(size, C)
                p = dot(operand(tl.where(later[:, None], faded_k, 0.0), LOW), before)
                kk += tl.where(pair, p, 0.0)
                s = dot(operand(tl.where(later[:, None], b_q * faded, 0.0), LOW), before)
                qk += tl.where(pair, s, 0.0)
                size = size // 2
        if SPAN == 1:
            own = tl.sum(b_q * b_k, 1)  # [C]
            qk += tl.where(c_at[:, None] == c_at[None, :], own[:, None], 0.0)
        else:
            at = tl.load(G_rows + (c_at // SPAN * SPAN)[:, None] * K + k_at[None, :], mask=k_in[None, :], other=0.0)
            before = tl.trans(operand(b_k * tl.exp(at - G), LOW))  # [BK, C]; the one factor above 1
            faded = tl.exp(G - at)
            pair = same_block(SPAN, C)
            kk += tl.where(pair, dot(operand(b_k * faded, LOW), before), 0.0)
            qk += tl.where(pair, dot(operand(b_q * faded, LOW), before), 0.0)
    tile = program * C * C + c_at[:, None] * C + c_at[None, :]
    if SCALED:
        kk = kk * b_b[None, :]
        qk = qk * b_b[None, :]
    kk = tl.where(c_at[:, None] > c_at[None, :], kk, 0.0)
    qk = tl.where(c_at[:, None] >= c_at[None, :], qk, 0.0)
    tl.store(system + tile, kk)
    tl.store(attention + tile, stored(qk.to(tl.float32), LOW))


@triton.jit
def _block(a, ROW: tl.constexpr, COLUMN: tl.constexpr, C: tl.constexpr):
    """Return one block [16, 16] of a chunk's matrix [C, C]."""
    at = tl.arange(0, 16)
    return tl.load(a + (ROW * 16 + at)[:, None] * C + (COLUMN * 16 + at)[None, :])


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

    # a branch for each row of blocks: rows without a token need no products
    i_00 = invert_16(_block(a, 0, 0, C))
    keep_block(out, i_00, 0, 0, C)
    if C >= 32:
        i_11 = invert_16(_block(a, 1, 1, C))
        i_10 = none
        if count > 16:
            i_10 = row_1(i_11, _block(a, 1, 0, C), i_00)
        keep_block(out, i_10, 1, 0, C)
        keep_block(out, i_11, 1, 1, C)
    if C == 64:
        i_22 = invert_16(_block(a, 2, 2, C))
        i_20, i_21 = none, none
        if count > 32:
            i_20, i_21 = row_2(i_22, _block(a, 2, 0, C), _block(a, 2, 1, C), i_00, i_10, i_11)
        keep_block(out, i_20, 2, 0, C)
        keep_block(out, i_21, 2, 1, C)
        keep_block(out, i_22, 2, 2, C)
        i_33 = invert_16(_block(a, 3, 3, C))
        i_30, i_31, i_32 = none, none, none
        if count > 48:
            a_30, a_31, a_32 = _block(a, 3, 0, C), _block(a, 3, 1, C), _block(a, 3, 2, C)
            i_30, i_31, i_32 = row_3(i_33, a_30, a_31, a_32, i_00, i_10, i_11, i_20, i_21, i_22)
        keep_block(out, i_30, 3, 0, C)
        keep_block(out, i_31, 3, 1, C)
        keep_block(out, i_32, 3, 2, C)
        keep_block(out, i_33, 3, 3, C)
