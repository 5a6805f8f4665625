"""The inverse of a chunk's unit lower-triangular matrix, in fp32, 16 x 16 blocks at a time.

Diagonal blocks by forward substitution, the others by products of finished blocks. No Neumann series: with correlated
keys its powers grow although the inverse is bounded. Only the finished inverse is rounded, by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot


@triton.jit
def invert_16(a):
    """Return (I + a)^-1 for a strictly lower-triangular fp32 block [16, 16]."""
    at = tl.arange(0, 16)
    inverse = tl.where(at[:, None] > at[None, :], -a, 0.0)  # [16, 16]
    for i in range(2, 16):
        row = tl.sum(tl.where(at[:, None] == i, inverse, 0.0), 0)  # [16]
        row += tl.sum(row[:, None] * tl.where(at[:, None] < i, inverse, 0.0), 0)
        inverse = tl.where(at[:, None] == i, row[None, :], inverse)
    return inverse + tl.where(at[:, None] == at[None, :], 1.0, 0.0)


@triton.jit
def below(inverse_i, a_ij, inverse_j):
    """Return the block of the inverse below two finished diagonal blocks: -inverse_i a_ij inverse_j."""
    return -dot(dot(inverse_i, a_ij), inverse_j)
