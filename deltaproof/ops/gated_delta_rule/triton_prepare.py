"""The part of the chunked gated delta rule that needs no state: a program a chunk and value head.

Shape legend: C chunk size, H query/key heads, HV value heads, K, V head sizes, cut into blocks of BK, BV. ``G`` is the
cumulative log gate inside a chunk, T the inverse of the chunk's triangular matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import log_gate, write_strength
from deltaproof.ops.common.triton_inverse import below, invert_16
from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit
def _lower(k_i, k_j, G_i, G_j, b_j, SAME: tl.constexpr):
    """Return (k_i . k_j) exp(G_i - G_j) beta_j for two blocks of 16 tokens, strictly lower on the diagonal."""
    a = dot(k_i, tl.trans(k_j)) * b_j[None, :]
    difference = G_i[:, None] - G_j[None, :]
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
    inverse,  # [chunks, HV, C, C] out
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
    at = tl.arange(0, 16)
    k_at = tl.arange(0, BK)
    k_in = (k_at < K)[None, :]
    group = head // (HV // H)
    k += group * K
    out = inverse + program * C * C

    in_0 = at < count
    t_0 = (first + at) * HV + head
    G_0 = tl.cumsum(log_gate(g, A_log, dt_bias, t_0, in_0, head, GATE, DT_BIAS), 0)  # [16]
    b_0 = write_strength(beta, t_0, in_0, BETA_SIGMOID, NEG_EIGVAL)
    tl.store(G + t_0, G_0, mask=in_0)
    tl.store(strength + t_0, b_0, mask=in_0)
    k_0 = tl.load(k + (first + at)[:, None] * H * K + k_at[None, :], mask=in_0[:, None] & k_in, other=0.0)  # [16, BK]
    i_00 = invert_16(_lower(k_0, k_0, G_0, G_0, b_0, True))
    tile = at[:, None] * C + at[None, :]
    tl.store(out + tile, stored(i_00, inverse.dtype.element_ty))
    if C >= 32:
        in_1 = 16 + at < count
        t_1 = (first + 16 + at) * HV + head
        g_1 = log_gate(g, A_log, dt_bias, t_1, in_1, head, GATE, DT_BIAS)
        G_1 = tl.min(G_0) + tl.cumsum(g_1, 0)
        b_1 = write_strength(beta, t_1, in_1, BETA_SIGMOID, NEG_EIGVAL)
        tl.store(G + t_1, G_1, mask=in_1)
        tl.store(strength + t_1, b_1, mask=in_1)
        k_1 = tl.load(k + (first + 16 + at)[:, None] * H * K + k_at[None, :], mask=in_1[:, None] & k_in, other=0.0)
        a_10 = _lower(k_1, k_0, G_1, G_0, b_0, False)
        i_11 = invert_16(_lower(k_1, k_1, G_1, G_1, b_1, True))
        i_10 = below(i_11, a_10, i_00)
        zero = stored(tl.zeros([16, 16], tl.float32), inverse.dtype.element_ty)
        tl.store(out + tile + 16, zero)
        tl.store(out + tile + 16 * C, stored(i_10, inverse.dtype.element_ty))
        tl.store(out + tile + 16 * C + 16, stored(i_11, inverse.dtype.element_ty))
        if C == 64:
            in_2 = 32 + at < count
            in_3 = 48 + at < count
            t_2 = (first + 32 + at) * HV + head
            t_3 = (first + 48 + at) * HV + head
            G_2 = tl.min(G_1) + tl.cumsum(log_gate(g, A_log, dt_bias, t_2, in_2, head, GATE, DT_BIAS), 0)
            G_3 = tl.min(G_2) + tl.cumsum(log_gate(g, A_log, dt_bias, t_3, in_3, head, GATE, DT_BIAS), 0)
            b_2 = write_strength(beta, t_2, in_2, BETA_SIGMOID, NEG_EIGVAL)
            b_3 = write_strength(beta, t_3, in_3, BETA_SIGMOID, NEG_EIGVAL)
            tl.store(G + t_2, G_2, mask=in_2)
            tl.store(G + t_3, G_3, mask=in_3)
            tl.store(strength + t_2, b_2, mask=in_2)
            tl.store(strength + t_3, b_3, mask=in_3)
            k_2 = tl.load(k + (first + 32 + at)[:, None] * H * K + k_at[None, :], mask=in_2[:, None] & k_in, other=0.0)
            k_3 = tl.load(k + (first + 48 + at)[:, None] * H * K + k_at[None, :], mask=in_3[:, None] & k_in, other=0.0)
            i_22 = invert_16(_lower(k_2, k_2, G_2, G_2, b_2, True))
            i_33 = invert_16(_lower(k_3, k_3, G_3, G_3, b_3, True))
            a_20 = _lower(k_2, k_0, G_2, G_0, b_0, False)
            a_21 = _lower(k_2, k_1, G_2, G_1, b_1, False)
            a_30 = _lower(k_3, k_0, G_3, G_0, b_0, False)
            a_31 = _lower(k_3, k_1, G_3, G_1, b_1, False)
            a_32 = _lower(k_3, k_2, G_3, G_2, b_2, False)
            i_21 = below(i_22, a_21, i_11)
            i_32 = below(i_33, a_32, i_22)
            i_20 = -dot(i_22, dot(a_20, i_00) + dot(a_21, i_10))
            i_31 = -dot(i_33, dot(a_31, i_11) + dot(a_32, i_21))
            i_30 = -dot(i_33, dot(a_30, i_00) + dot(a_31, i_10) + dot(a_32, i_20))
            tl.store(out + tile + 32, zero)
            tl.store(out + tile + 48, zero)
            tl.store(out + tile + 16 * C + 32, zero)
            tl.store(out + tile + 16 * C + 48, zero)
            tl.store(out + tile + 32 * C + 48, zero)
            tl.store(out + tile + 32 * C, stored(i_20, inverse.dtype.element_ty))
            tl.store(out + tile + 32 * C + 16, stored(i_21, inverse.dtype.element_ty))
            tl.store(out + tile + 32 * C + 32, stored(i_22, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C, stored(i_30, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 16, stored(i_31, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 32, stored(i_32, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 48, stored(i_33, inverse.dtype.element_ty))


@triton.jit(do_not_specialize=["N", "T"])
def transform_kernel(
    k,  # [B, T, H, K]
    v,  # [B, T, HV, V]
    G,  # [B, T, HV]
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
    C: tl.constexpr,
    VARLEN: tl.constexpr,
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
    b_grown = tl.exp(tl.load(G + token * HV + head, mask=inside, other=0.0))[:, None]  # [C, 1]
    for start in tl.static_range(0, K, BK):
        at = start + tl.arange(0, BK)
        mask = inside[:, None] & (at < K)[None, :]
        b_k = tl.load(k + (token * H + group)[:, None] * K + at[None, :], mask=mask, other=0.0)  # [C, BK]
        b_w = dot(b_i, stored(b_k.to(tl.float32) * b_grown, low))
        tl.store(w + (token * HV + head)[:, None] * K + at[None, :], stored(b_w, low), mask=mask)
    for start in tl.static_range(0, V, BV):
        at = start + tl.arange(0, BV)
        mask = inside[:, None] & (at < V)[None, :]
        place = (token * HV + head)[:, None] * V + at[None, :]
        b_v = tl.load(v + place, mask=mask, other=0.0)  # [C, BV]
        tl.store(u + place, stored(dot(b_i, b_v), low), mask=mask)
