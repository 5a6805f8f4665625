"""Gates a channel in Triton: of a chunk's tokens, and summed up between rows.

The derivation stands in this folder's README. Shape legend: C chunk size, HV value heads, K key size, BK a block of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_language import dot
from deltaproof.ops.common.triton_token import gate_at, gated

SPAN = tl.constexpr(16)
"""Rows of a block whose scores may be one product, with a factor above 1."""
MOST = tl.constexpr(80.0)
"""The largest exponent of such a factor: it and a key fit into float32 and bfloat16."""


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
def summed(chosen, x_1, x_2, x_3):
    """Return sums over the rows of x [C, BK], given as ``pieces``: row i of those that ``chosen`` [C, C] has in row i.

    As products with ones, which are exact, sums run over the rows they are of and no others: a decay over few tokens
    keeps its digits behind gates far below 0, and no row knows of a later one.
    """
    ones = tl.where(chosen, 1.0, 0.0).to(tl.bfloat16)
    return dot(ones, x_3) + dot(ones, x_2) + dot(ones, x_1)


@triton.jit
def between(row, C: tl.constexpr):
    """Return which rows of a chunk [C, C] a decay from each row to ``row`` [C], or back, is made of."""
    i = tl.arange(0, C)
    low, high = tl.minimum(i, row), tl.maximum(i, row)
    return (i[None, :] > low[:, None]) & (i[None, :] <= high[:, None])


@triton.jit
def middle(size, C: tl.constexpr):
    """Return the middle of each row's block of ``size`` rows [C], a power of two: the first row of its later half."""
    return (tl.arange(0, C) & -size) + size // 2


@triton.jit
def across(size, C: tl.constexpr):
    """Return the pairs of rows [C, C] of a later and an earlier half of one block of ``size`` rows."""
    i = tl.arange(0, C)
    together = (i & -size)[:, None] == (i & -size)[None, :]
    return together & ((i & size // 2) != 0)[:, None] & ((i & size // 2) == 0)[None, :]
