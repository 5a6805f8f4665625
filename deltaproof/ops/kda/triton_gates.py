"""Gates a channel in Triton: of a chunk's tokens, cumulative, and how a decay between two tokens is split.

The derivation stands in this folder's README. Shape legend: C chunk size, HV value heads, K key size, BK a block of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_token import gate_at, gated


@triton.jit
def channel_gates(
    g, A_log, dt_bias, token, inside, head, k_at, HV: tl.constexpr, K: tl.constexpr,
    GATE: tl.constexpr, RATE: tl.constexpr, DT_BIAS: tl.constexpr, LOWER: tl.constexpr,
):  # fmt: skip
    """Return the clamped log gates [C, BK] of some tokens, 0 where there is no token."""
    mask = inside[:, None] & (k_at < K)[None, :]
    x = tl.load(g + (token * HV + head)[:, None] * K + k_at[None, :], mask=mask, other=0.0).to(tl.float32)
    b_A_log, b_bias = gate_at(A_log, dt_bias, head, k_at[None, :], K, GATE, RATE, DT_BIAS, True)
    x = gated(x, b_A_log, b_bias, GATE, RATE, LOWER)
    return tl.where(mask, tl.maximum(x, MIN_LOG_GATE), 0.0)


@triton.jit
def row_lengths(x, token, inside, group, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr):
    """Return 1 / sqrt(sum(x ** 2) + 1e-6) of some tokens' rows [C]."""
    squares = tl.zeros([C], tl.float32)
    for start in range(0, K, BK):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        b_x = tl.load(x + (token * H + group)[:, None] * K + k_at[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(b_x * b_x, 1)
    return 1.0 / tl.sqrt(squares + 1e-6)


@triton.jit
def halves(G, G_rows, k_at, size, K: tl.constexpr, C: tl.constexpr):
    """Return what decays to or from the middle of its block of ``size`` rows [C, BK], and which rows lie behind it [C].

    ``G_rows`` [C, K] is where G's rows lie in memory. The middle is the first row of the block's later half: at or
    before every row of that half, and behind every row of the other. No factor is above 1.
    """
    c_at = tl.arange(0, C)
    middle = (c_at & -size) + size // 2
    at = tl.load(G_rows + middle[:, None] * K + k_at[None, :], mask=(k_at < K)[None, :], other=0.0)  # [C, BK]
    return tl.exp(-tl.abs(G - at)), c_at >= middle


@triton.jit
def same_block(size, C: tl.constexpr):
    """Return which pairs of rows [C, C] are in one block of ``size``, a power of two."""
    block = tl.arange(0, C) & -size
    return block[:, None] == block[None, :]
