"""One token of the delta rule in Triton: what the kernels that go token by token share.

With a gate a channel (PER_CHANNEL) a token's g and a head's bias are [BK], else numbers. Shape legend: H query/key
heads, HV value heads, K, V head sizes; BK, BV blocks of K and V that hold them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_language import sigmoid, softplus


@triton.jit
def token_at(
    q, k, v, g, beta, token, there, head, k_at, v_at,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """Return a token's q [BK], k [BK], v [BV], g and beta for a value head as they are stored, 0 if it is not there."""
    key = (token * H + head // (HV // H)) * K + k_at
    k_in = (k_at < K) & there
    b_q = tl.load(q + key, mask=k_in, other=0.0)
    b_k = tl.load(k + key, mask=k_in, other=0.0)
    b_v = tl.load(v + (token * HV + head) * V + v_at, mask=(v_at < V) & there, other=0.0)
    if PER_CHANNEL:
        b_g = tl.load(g + (token * HV + head) * K + k_at, mask=k_in, other=0.0)
    else:
        b_g = tl.load(g + token * HV + head, mask=there, other=0.0)
    b_beta = tl.load(beta + token * HV + head, mask=there, other=0.0)
    return b_q, b_k, b_v, b_g, b_beta


@triton.jit
def gate_at(
    A_log, dt_bias, head, k_at,
    K: tl.constexpr, GATE: tl.constexpr, RATE: tl.constexpr, DT_BIAS: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """Return a head's A_log and dt_bias, 0 where there is none."""
    b_A_log = 0.0
    b_bias = 0.0
    if GATE:
        if RATE:
            b_A_log = tl.load(A_log + head).to(tl.float32)
        if DT_BIAS:
            if PER_CHANNEL:
                b_bias = tl.load(dt_bias + head * K + k_at, mask=k_at < K, other=0.0).to(tl.float32)
            else:
                b_bias = tl.load(dt_bias + head).to(tl.float32)
    return b_A_log, b_bias


@triton.jit
def gated(b_g, b_A_log, b_bias, GATE: tl.constexpr, RATE: tl.constexpr, LOWER: tl.constexpr):
    """Return a token's log gate from what was given as g, A_log (if RATE) and dt_bias (0 for none), all of them fp32.

    LOWER is the gate's lower bound, 0 for a gate that has none.
    """
    if GATE:
        if LOWER == 0.0:
            if RATE:
                b_g = -tl.exp(b_A_log) * softplus(b_g + b_bias)
            else:
                b_g = -softplus(b_g + b_bias)
        else:
            b_g = b_g + b_bias
            if RATE:
                b_g = tl.exp(b_A_log) * b_g
            b_g = LOWER * sigmoid(b_g)
    return b_g


@triton.jit
def strengthened(b_beta, BETA_SIGMOID: tl.constexpr, NEG_EIGVAL: tl.constexpr):
    """Return a token's write strength from what was given as beta."""
    if BETA_SIGMOID:
        b_beta = sigmoid(b_beta)
        if NEG_EIGVAL:
            b_beta = 2.0 * b_beta
    return b_beta


@triton.jit
def advanced(state, b_k, b_v, b_g, b_beta, PER_CHANNEL: tl.constexpr):
    """Return the state [BV, BK] after a token: b_k [BK], b_v [BV], its log gate and its write strength."""
    left = tl.exp(tl.maximum(b_g, MIN_LOG_GATE))
    if PER_CHANNEL:
        left = left[None, :]
    state = state * left
    error = (b_v - tl.sum(state * b_k[None, :], 1)) * b_beta  # [BV]
    return state + error[:, None] * b_k[None, :]
