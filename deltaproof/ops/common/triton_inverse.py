"""The inverse of a chunk's unit lower-triangular matrix, in fp32 or fp64, 16 x 16 blocks at a time.

Diagonal blocks by forward substitution, the others by products of finished blocks. No Neumann series: with correlated
keys its powers grow although the inverse is bounded. Only the finished inverse is rounded, by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored


@triton.jit
def invert_16(a):
    """Return (I + a)^-1 for a strictly lower-triangular block [16, 16]."""
    at = tl.arange(0, 16)
    inverse = tl.where(at[:, None] > at[None, :], -a, 0.0)  # [16, 16]
    for i in range(2, 16):
        row = tl.sum(tl.where(at[:, None] == i, inverse, 0.0), 0)  # [16]
        row += tl.sum(row[:, None] * tl.where(at[:, None] < i, inverse, 0.0), 0)
        inverse = tl.where(at[:, None] == i, row[None, :], inverse)
    return inverse + tl.where(at[:, None] == at[None, :], 1.0, 0.0)


@triton.jit
def row_1(i_11, a_10, i_00):
    """Return the inverse's block left of ``i_11``, from finished blocks i and the matrix's own a."""
    return -dot(dot(i_11, a_10), i_00)


@triton.jit
def row_2(i_22, a_20, a_21, i_00, i_10, i_11):
    """Return the inverse's two blocks left of ``i_22``."""
    i_21 = row_1(i_22, a_21, i_11)
    i_20 = -dot(i_22, dot(a_20, i_00) + dot(a_21, i_10))
    return i_20, i_21


@triton.jit
def row_3(i_33, a_30, a_31, a_32, i_00, i_10, i_11, i_20, i_21, i_22):
    """Return the inverse's three blocks left of ``i_33``."""
    i_32 = row_1(i_33, a_32, i_22)
    i_31 = -dot(i_33, dot(a_31, i_11) + dot(a_32, i_21))
    i_30 = -dot(i_33, dot(a_30, i_00) + dot(a_31, i_10) + dot(a_32, i_20))
    return i_30, i_31, i_32


@triton.jit
def block_of(x, i, j, C: tl.constexpr):
    """Return one block [16, 16] of a chunk's matrix [C, C] in memory."""
    at = tl.arange(0, 16)
    return tl.load(x + (i * 16 + at)[:, None] * C + (j * 16 + at)[None, :])


@triton.jit
def keep_block(out, x, ROW: tl.constexpr, COLUMN: tl.constexpr, C: tl.constexpr):
    """Store one block [16, 16] of the inverse [C, C]."""
    at = tl.arange(0, 16)
    tile = (ROW * 16 + at)[:, None] * C + (COLUMN * 16 + at)[None, :]
    tl.store(out + tile, stored(x, out.dtype.element_ty))
