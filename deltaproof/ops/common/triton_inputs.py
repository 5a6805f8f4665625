"""What every kernel of ours does to its inputs first, and the way back: normalisation, gate, write strength, heads.

Shape legend: T tokens (of all sequences), H query/key heads, HV value heads, K key size rounded up to BK, P parts of
a sum that were computed apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import sigmoid, softplus, stored

MIN_LOG_GATE = tl.constexpr(-64.0)


@triton.jit
def log_gate(g, A_log, dt_bias, at, inside, head, GATE: tl.constexpr, DT_BIAS: tl.constexpr):
    """Return the clamped log gates of some tokens, 0 where there is no token."""
    x = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        if DT_BIAS:
            x += tl.load(dt_bias + head).to(tl.float32)
        x = -tl.exp(tl.load(A_log + head).to(tl.float32)) * softplus(x)
    return tl.where(inside, tl.maximum(x, MIN_LOG_GATE), 0.0)


@triton.jit
def write_strength(beta, at, inside, BETA_SIGMOID: tl.constexpr, NEG_EIGVAL: tl.constexpr):
    """Return the write strengths of some tokens, 0 where there is no token."""
    x = tl.load(beta + at, mask=inside, other=0.0).to(tl.float32)
    if BETA_SIGMOID:
        x = sigmoid(x)
        if NEG_EIGVAL:
            x = 2.0 * x
    return tl.where(inside, x, 0.0)


@triton.jit
def strength_back(s, beta, at, inside, BETA_SIGMOID: tl.constexpr, NEG_EIGVAL: tl.constexpr):
    """Return the gradients of what was given as beta from those of the write strengths."""
    if BETA_SIGMOID:
        b = tl.load(beta + at, mask=inside, other=0.0).to(tl.float32)
        # 1 - sigmoid(b) would lose its digits where the sigmoid is near 1
        s = s * sigmoid(b) * sigmoid(-b)
        if NEG_EIGVAL:
            s = 2.0 * s
    return s


@triton.jit(do_not_specialize=["rows"])
def normalize_kernel(x, y, rows, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr):
    """y = x / sqrt(sum(x ** 2) + 1e-6) over rows [rows, K]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, BK)
    inside = (row < rows)[:, None] & (at < K)[None, :]
    b = tl.load(x + row[:, None] * K + at[None, :], mask=inside, other=0.0).to(tl.float32)  # [BLOCK, BK]
    b = b * (1.0 / tl.sqrt(tl.sum(b * b, 1) + 1e-6))[:, None]
    tl.store(y + row[:, None] * K + at[None, :], stored(b, y.dtype.element_ty), mask=inside)


@triton.jit
def token_rows(block, T, N, cu_seqlens, BLOCK: tl.constexpr, VARLEN: tl.constexpr):
    """Return a block's rows of tokens, which of them are tokens, and which belong to a sequence."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    used = row < T
    if VARLEN:
        used = used & (row < tl.load(cu_seqlens + N).to(tl.int64))
    return row, row < T, used


@triton.jit(do_not_specialize=["T", "N", "P"])
def head_gradients_kernel(
    parts,  # [P, T, HV, K] gradients of the (normalised) q or k, a value head each
    x,  # [T, H, K] q or k as it was given
    dx,  # [T, H, K] out
    cu_seqlens,
    T,
    N,
    P,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    VARLEN: tl.constexpr,
):
    """Sum the parts and the value heads of each query/key head, and go back through the normalisation."""
    program = tl.program_id(0).to(tl.int64)
    group = program % H
    row, token, used = token_rows(program // H, T, N, cu_seqlens, BLOCK, VARLEN)
    rows = tl.zeros([], tl.int64) + T
    at = tl.arange(0, BK)
    inside = used[:, None] & (at < K)[None, :]
    d = tl.zeros([BLOCK, BK], tl.float32)  # [BLOCK, BK]
    for p in range(P):
        for head in range(HV // H):
            place = ((p * rows + row) * HV + group * (HV // H) + head)[:, None] * K + at[None, :]
            d += tl.load(parts + place, mask=inside, other=0.0).to(tl.float32)
    place = (row * H + group)[:, None] * K + at[None, :]
    if NORMALIZE:
        b = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)  # [BLOCK, BK]
        r = (1.0 / tl.sqrt(tl.sum(b * b, 1) + 1e-6))[:, None]
        b = b * r
        d = r * (d - b * tl.sum(b * d, 1)[:, None])
    tl.store(dx + place, stored(d, dx.dtype.element_ty), mask=token[:, None] & (at < K)[None, :])


@triton.jit(do_not_specialize=["T", "N", "P"])
def gate_gradients_kernel(
    d_gate,  # [P, T, HV] gradients of the log gate
    d_strength,  # [P, T, HV] gradients of the write strength
    g,  # [T, HV]
    beta,  # [T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    dg,  # [T, HV] out
    dbeta,  # [T, HV] out
    dA_log,  # [blocks, HV] out: this block's share
    ddt_bias,  # [blocks, HV] out
    cu_seqlens,
    T,
    N,
    P,
    HV: tl.constexpr,
    BH: tl.constexpr,
    BLOCK: tl.constexpr,
    GATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    VARLEN: tl.constexpr,
):
    """Sum the parts, and go back through the gate and the sigmoid of beta."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (HV + BH - 1) // BH
    head = (program % BLOCKS) * BH + tl.arange(0, BH)
    row, token, used = token_rows(program // BLOCKS, T, N, cu_seqlens, BLOCK, VARLEN)
    rows = tl.zeros([], tl.int64) + T
    inside = used[:, None] & (head < HV)[None, :]
    written = token[:, None] & (head < HV)[None, :]
    at = row[:, None] * HV + head[None, :]
    d = tl.zeros([BLOCK, BH], tl.float32)  # [BLOCK, BH]
    s = tl.zeros([BLOCK, BH], tl.float32)  # [BLOCK, BH]
    for p in range(P):
        d += tl.load(d_gate + p * rows * HV + at, mask=inside, other=0.0)
        s += tl.load(d_strength + p * rows * HV + at, mask=inside, other=0.0)
    x = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        if DT_BIAS:
            x += tl.load(dt_bias + head, mask=head < HV, other=0.0).to(tl.float32)[None, :]
        rate = -tl.exp(tl.load(A_log + head, mask=head < HV, other=0.0).to(tl.float32))[None, :]
        y = rate * softplus(x)
        d = tl.where(y >= MIN_LOG_GATE, d, 0.0)
        share = (program // BLOCKS) * HV + head
        tl.store(dA_log + share, tl.sum(d * y, 0), mask=head < HV)
        d = d * rate * sigmoid(x)
        if DT_BIAS:
            tl.store(ddt_bias + share, tl.sum(d, 0), mask=head < HV)
    else:
        d = tl.where(x >= MIN_LOG_GATE, d, 0.0)
    tl.store(dg + at, stored(d, dg.dtype.element_ty), mask=written)
    s = strength_back(s, beta, at, inside, BETA_SIGMOID, NEG_EIGVAL)
    tl.store(dbeta + at, stored(s, dbeta.dtype.element_ty), mask=written)
