"""The part of the chunked gated delta rule that needs no state: a program a chunk and value head.

Shape legend: C chunk size, H query/key heads, HV value heads, K, V head sizes, cut into blocks of BK, BV. ``G`` is the
cumulative log gate inside a chunk, T the inverse of the chunk's triangular matrix. For operands in fp32, T is made,
kept and applied in fp64: where keys are equal and beta is 2, the rounding errors of a chunk's rows all add up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import log_gate, write_strength
from deltaproof.ops.common.triton_inverse import invert_16, keep_block, row_1, row_2, row_3
from deltaproof.ops.common.triton_language import dot
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit
def _rows(k, first, count, k_at, H: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return 16 tokens' keys [16, BK], those of the chunk's block BLOCK; zero behind the chunk's end."""
    at = BLOCK * 16 + tl.arange(0, 16)
    mask = (at < count)[:, None] & (k_at < K)[None, :]
    rows = tl.load(k + (first + at)[:, None] * H * K + k_at[None, :], mask=mask, other=0.0)
    return rows.to(tl.float64) if k.dtype.element_ty == tl.float32 else rows


@triton.jit
def _part(x, BLOCK: tl.constexpr):
    """Return 16 tokens' values out of a chunk's [C], those of block BLOCK."""
    return tl.gather(x, BLOCK * 16 + tl.arange(0, 16), 0)


@triton.jit
def _lower(a, G_i, G_j, b_j, SAME: tl.constexpr):
    """Return a_ij exp(G_i - G_j) beta_j for two blocks of 16 tokens, strictly lower where they are the same."""
    difference = G_i[:, None] - G_j[None, :]
    a = a * b_j[None, :]
    if SAME:
        at = tl.arange(0, 16)
        lower = at[:, None] > at[None, :]
        # masked before the exponential: above the diagonal the difference is positive and may overflow
        return tl.where(lower, a * tl.exp(tl.where(lower, difference, 0.0)), 0.0)
    return a * tl.exp(difference)


@triton.jit(do_not_specialize=["N", "T"])
def prepare_kernel(
    k,  # [B, T, H, K]
    g,  # [B, T, HV]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    G,  # [B, T, HV] out, fp32
    strength,  # [B, T, HV] out, fp32
    inverse,  # [chunks, HV, C, C] out: T
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
    VARLEN: tl.constexpr,
    GATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    k += head // (HV // H) * K
    out = inverse + program * C * C

    none = tl.zeros([16, 16], tl.float64 if k.dtype.element_ty == tl.float32 else tl.float32)
    a_00, a_10, a_11, a_20, a_21 = none, none, none, none, none
    a_22, a_30, a_31, a_32, a_33 = none, none, none, none, none
    for start in range(0, K, BK):
        at = start + tl.arange(0, BK)
        k_0 = _rows(k, first, count, at, H, K, 0)  # [16, BK]
        a_00 += dot(k_0, tl.trans(k_0))
        if C >= 32:
            k_1 = _rows(k, first, count, at, H, K, 1)
            a_10 += dot(k_1, tl.trans(k_0))
            a_11 += dot(k_1, tl.trans(k_1))
        if C == 64:
            k_2 = _rows(k, first, count, at, H, K, 2)
            k_3 = _rows(k, first, count, at, H, K, 3)
            a_20 += dot(k_2, tl.trans(k_0))
            a_21 += dot(k_2, tl.trans(k_1))
            a_22 += dot(k_2, tl.trans(k_2))
            a_30 += dot(k_3, tl.trans(k_0))
            a_31 += dot(k_3, tl.trans(k_1))
            a_32 += dot(k_3, tl.trans(k_2))
            a_33 += dot(k_3, tl.trans(k_3))

    c_at = tl.arange(0, C)
    inside = c_at < count
    place = (first + c_at) * HV + head
    b_G = tl.cumsum(log_gate(g, A_log, dt_bias, place, inside, head, GATE, DT_BIAS), 0)  # [C]
    b_b = write_strength(beta, place, inside, BETA_SIGMOID, NEG_EIGVAL)  # [C]
    tl.store(G + place, b_G, mask=inside)
    tl.store(strength + place, b_b, mask=inside)
    if C > 16:
        block = c_at // 16
        zeros = tl.zeros([C, C], out.dtype.element_ty)
        tl.store(out + c_at[:, None] * C + c_at[None, :], zeros, mask=block[:, None] < block[None, :])

    # A row of blocks a branch: rows without a token need no products, and the compiler's searches, quadratic in the
    # code they see at once, end at the branch.
    G_0, b_0 = _part(b_G, 0), _part(b_b, 0)
    i_00 = invert_16(_lower(a_00, G_0, G_0, b_0, True))
    keep_block(out, i_00, 0, 0, C)
    if C >= 32:
        G_1, b_1 = _part(b_G, 1), _part(b_b, 1)
        i_11 = invert_16(_lower(a_11, G_1, G_1, b_1, True))
        i_10 = none
        if count > 16:
            i_10 = row_1(i_11, _lower(a_10, G_1, G_0, b_0, False), i_00)
        keep_block(out, i_10, 1, 0, C)
        keep_block(out, i_11, 1, 1, C)
    if C == 64:
        G_2, b_2 = _part(b_G, 2), _part(b_b, 2)
        i_22 = invert_16(_lower(a_22, G_2, G_2, b_2, True))
        i_20, i_21 = none, none
        if count > 32:
            a_20 = _lower(a_20, G_2, G_0, b_0, False)
            a_21 = _lower(a_21, G_2, G_1, b_1, False)
            i_20, i_21 = row_2(i_22, a_20, a_21, i_00, i_10, i_11)
        keep_block(out, i_20, 2, 0, C)
        keep_block(out, i_21, 2, 1, C)
        keep_block(out, i_22, 2, 2, C)
        G_3, b_3 = _part(b_G, 3), _part(b_b, 3)
        i_33 = invert_16(_lower(a_33, G_3, G_3, b_3, True))
        i_30, i_31, i_32 = none, none, none
        if count > 48:
            a_30 = _lower(a_30, G_3, G_0, b_0, False)
            a_31 = _lower(a_31, G_3, G_1, b_1, False)
            a_32 = _lower(a_32, G_3, G_2, b_2, False)
            i_30, i_31, i_32 = row_3(i_33, a_30, a_31, a_32, i_00, i_10, i_11, i_20, i_21, i_22)
        keep_block(out, i_30, 3, 0, C)
        keep_block(out, i_31, 3, 1, C)
        keep_block(out, i_32, 3, 2, C)
        keep_block(out, i_33, 3, 3, C)
