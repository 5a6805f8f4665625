"""Small pieces of Triton that every kernel of ours goes through, and whether kernels are interpreted here."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether Triton runs kernels in its interpreter, on the CPU. Read when triton is imported; set it before."""

GLUON = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
"""Whether Triton has the Gluon that kernels for Hopper are written in; an older one lacks parts of it, or spills."""

_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b):
    """Return ``a @ b`` accumulated in fp32, without TF32, or in fp64; every matmul of our kernels is this one.

    The interpreter multiplies the raw bits of bf16 operands, so there they are widened first.
    """
    if a.dtype == tl.float64:
        return tl.dot(a, b, out_dtype=tl.float64)
    if _WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    if a.dtype == tl.float32:
        return _dot_fp32(a, b)
    return tl.dot(a, b)


@triton.jit
def _dot_fp32(a, b):
    """Return ``a @ b`` of fp32 operands on the tensor cores, as exact as fp32 products.

    Of the nine products of pieces those above 2 ** -24 are taken, the small ones first. Plain fp32 products instead
    keep whole rows in registers: they spill, and compile for minutes.
    """
    a_1, a_2, a_3 = pieces(a)
    b_1, b_2, b_3 = pieces(b)
    c = tl.dot(a_3, b_1)
    c = tl.dot(a_1, b_3, c)
    c = tl.dot(a_2, b_2, c)
    c = tl.dot(a_2, b_1, c)
    c = tl.dot(a_1, b_2, c)
    return tl.dot(a_1, b_1, c)


@triton.jit
def pieces(x):
    """Return fp32 x as three bf16 numbers, which hold all of its 24 bits; their sum is x."""
    x_1 = x.to(tl.bfloat16)
    x = x - x_1.to(tl.float32)
    x_2 = x.to(tl.bfloat16)
    return x_1, x_2, (x - x_2.to(tl.float32)).to(tl.bfloat16)


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
def sigmoid(x):
    """Return 1 / (1 + exp(-x)); exp may overflow to infinity, and the quotient is then 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def normalized(x):
    """Return x / sqrt(sum(x ** 2) + 1e-6) of one fp32 row; padding must be zero."""
    return x * (1.0 / tl.sqrt(tl.sum(x * x) + 1e-6))
