"""Small pieces of Triton that every kernel of ours goes through, and whether kernels are interpreted here."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether Triton runs kernels in its interpreter, on the CPU. Read when triton is imported; set it before."""

_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b):
    """Return ``a @ b`` accumulated in fp32, without TF32; every matmul of our kernels is this one.

    The interpreter multiplies the raw bits of bf16 operands, so there they are widened first.
    """
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def stored(x, DTYPE: tl.constexpr):
    """Return fp32 ``x`` in the dtype it is stored in, rounded to nearest even.

    The interpreter truncates when it makes bf16 from fp32, so there the bits are rounded first.
    """
    if _WIDEN:
        if DTYPE == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)) without overflow."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def normalized(x):
    """Return x / sqrt(sum(x ** 2) + 1e-6) of one fp32 row; padding must be zero."""
    return x * (1.0 / tl.sqrt(tl.sum(x * x) + 1e-6))
