"""One token of the delta rule in Triton, from registers: what the kernels that go token by token share.

Shape legend: BK, BV blocks of K and V that hold the head sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_language import sigmoid, softplus


@triton.jit
def gated(b_g, rate, dt_bias, head, GATE: tl.constexpr, DT_BIAS: tl.constexpr):
    """Return a token's log gate from what was given as g; ``rate`` is -exp(A_log) of the head."""
    if GATE:
        if DT_BIAS:
            b_g += tl.load(dt_bias + head).to(tl.float32)
        b_g = rate * softplus(b_g)
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
def advanced(state, b_k, b_v, b_g, b_beta):
    """Return the state [BV, BK] after a token: b_k [BK], b_v [BV], its log gate and its write strength."""
    state = state * tl.exp(tl.maximum(b_g, MIN_LOG_GATE))
    error = (b_v - tl.sum(state * b_k[None, :], 1)) * b_beta  # [BV]
    return state + error[:, None] * b_k[None, :]
