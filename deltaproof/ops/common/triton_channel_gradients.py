"""The way back through a gate a channel, and through the write strengths beside it.

Shape legend: T tokens (of all sequences), HV value heads, K key size rounded up to BK, P parts of a sum that were
computed apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE, strength_back, token_rows
from deltaproof.ops.common.triton_language import sigmoid, softplus, stored
from deltaproof.ops.common.triton_token import gate_at


@triton.jit(do_not_specialize=["T", "N", "P"])
def strength_gradients_kernel(
    d_strength,  # [P, T, HV] gradients of the write strength
    beta,  # [T, HV]
    dbeta,  # [T, HV] out
    cu_seqlens,
    T,
    N,
    P,
    HV: tl.constexpr,
    BH: tl.constexpr,
    BLOCK: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
    VARLEN: tl.constexpr,
):
    """Sum the parts, and go back through the sigmoid of beta."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (HV + BH - 1) // BH
    head = (program % BLOCKS) * BH + tl.arange(0, BH)
    row, token, used = token_rows(program // BLOCKS, T, N, cu_seqlens, BLOCK, VARLEN)
    rows = tl.zeros([], tl.int64) + T
    inside = used[:, None] & (head < HV)[None, :]
    at = row[:, None] * HV + head[None, :]
    s = tl.zeros([BLOCK, BH], tl.float32)  # [BLOCK, BH]
    for p in range(P):
        s += tl.load(d_strength + p * rows * HV + at, mask=inside, other=0.0)
    s = strength_back(s, beta, at, inside, BETA_SIGMOID, NEG_EIGVAL)
    tl.store(dbeta + at, stored(s, dbeta.dtype.element_ty), mask=token[:, None] & (head < HV)[None, :])


@triton.jit(do_not_specialize=["T", "N", "P"])
def channel_gate_gradients_kernel(
    d_gate,  # [P, T, HV, K] gradients of the log gate
    g,  # [T, HV, K]
    A_log,  # [HV]
    dt_bias,  # [HV, K]
    dg,  # [T, HV, K] out
    dA_log,  # [blocks, HV] out: this block's share
    ddt_bias,  # [blocks, HV, K] out
    cu_seqlens,
    T,
    N,
    P,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    BLOCK: tl.constexpr,
    GATE: tl.constexpr,
    RATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    LOWER: tl.constexpr,
    VARLEN: tl.constexpr,
):
    """Sum the parts, and go back through the gate."""
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    block = program // HV
    row, token, used = token_rows(block, T, N, cu_seqlens, BLOCK, VARLEN)
    rows = tl.zeros([], tl.int64) + T
    k_at = tl.arange(0, BK)
    k_in = k_at < K
    inside = used[:, None] & k_in[None, :]
    at = (row * HV + head)[:, None] * K + k_at[None, :]
    d = tl.zeros([BLOCK, BK], tl.float32)  # [BLOCK, BK]
    for p in range(P):
        d += tl.load(d_gate + p * rows * HV * K + at, mask=inside, other=0.0)
    x = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        b_A_log, b_bias = gate_at(A_log, dt_bias, head, k_at[None, :], K, GATE, RATE, DT_BIAS, True)
        x += b_bias
        rate = 1.0
        if RATE:
            rate = tl.exp(b_A_log)
        if LOWER == 0.0:
            y = -rate * softplus(x)
            d = tl.where(y >= MIN_LOG_GATE, d, 0.0)
            by_rate = d * y
            d = -d * rate * sigmoid(x)
        else:
            z = rate * x
            # sigmoid(-z), not 1 - sigmoid(z), which would lose its digits near 1
            d = tl.where(LOWER * sigmoid(z) >= MIN_LOG_GATE, d, 0.0) * LOWER * sigmoid(z) * sigmoid(-z)
            by_rate = d * z
            d = d * rate
        if RATE:
            tl.store(dA_log + block * HV + head, tl.sum(by_rate))
        if DT_BIAS:
            tl.store(ddt_bias + (block * HV + head) * K + k_at, tl.sum(d, 0), mask=k_in)
    else:
        d = tl.where(x >= MIN_LOG_GATE, d, 0.0)
    tl.store(dg + at, stored(d, dg.dtype.element_ty), mask=token[:, None] & k_in[None, :])
