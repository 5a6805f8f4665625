"""Small pieces of Gluon that the kernels for Hopper share."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def plus(a, b):
    """Return a + b: what a scan sums with."""
    return a + b


@gluon.jit
def cut(x):
    """Return fp32 x without its last 16 bits, as fp32 and as bf16."""
    bits = x.to(gl.int32, bitcast=True) & -65536
    return bits.to(gl.float32, bitcast=True), (bits >> 16).to(gl.int16).to(gl.bfloat16, bitcast=True)


@gluon.jit
def halves(x):
    """Return fp32 x as two bf16 numbers, the first rounded to the nearest: 16 of its 24 bits."""
    wide, high = cut((x.to(gl.int32, bitcast=True) + 0x8000).to(gl.float32, bitcast=True))
    return high, (x - wide).to(gl.bfloat16)
