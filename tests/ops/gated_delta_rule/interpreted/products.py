"""fp32 products on tensor cores: three bf16 pieces of each operand.

The interpreter multiplies the raw bits of bf16 operands; here it is given their values, so that the kernel's own source
is what runs. ``test_triton_interpreted.py`` runs this file.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from deltaproof.ops.common.triton_language import _dot_fp32

BF16_BITS = 8
"""Significant bits of a bf16 number, the hidden one included."""


@triton.jit
def product_kernel(a, b, c):
    at = tl.arange(0, 16)
    tile = at[:, None] * 16 + at[None, :]
    tl.store(c + tile, _dot_fp32(tl.load(a + tile), tl.load(b + tile)))


@pytest.fixture(autouse=True)
def bf16_by_value(monkeypatch):
    multiply = InterpreterBuilder.create_dot

    def widened(handle):
        assert handle.data.dtype == np.uint16, "every operand of the fast path is bf16"
        return SimpleNamespace(data=(handle.data.astype(np.uint32) << 16).view(np.float32), dtype=tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest)
    )


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    c = torch.empty(16, 16)
    product_kernel[(1,)](a, b, c)
    return c


def normal(seed: int) -> torch.Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))


def test_a_number_of_24_bits_times_one_is_itself():
    a = normal(0)
    assert not torch.equal(a, a.bfloat16().float())
    assert torch.equal(product(a, torch.eye(16)), a)
    assert torch.equal(product(torch.eye(16), a), a)


@pytest.mark.parametrize("scale", [1.0, 2.0**40, 2.0**-40])
def test_products_are_as_exact_as_those_of_fp32(scale):
    a, b = normal(1) * scale, normal(2)
    exact = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    error = (product(a, b).double() - exact).abs() / size
    # three small products are left out, of 2 ** -24 at most each, and 16 + 6 sums are rounded
    assert float(error.max()) < (3 + 16 + 6) * 2.0**-24
    single = ((a.bfloat16().float() @ b.bfloat16().float()).double() - exact).abs() / size
    assert float(single.max()) > 2.0**-12


def test_infinities_and_nan_do_not_turn_into_numbers():
    a = normal(3)
    a[0, 0], a[1, 0] = float("inf"), float("nan")
    c = product(a, torch.ones(16, 16))
    assert not bool(c[:2].isfinite().any())
    assert bool(c[2:].isfinite().all())


def test_three_bf16_pieces_hold_every_bit_of_an_fp32_number():
    """The same split with rounding to nearest, as a GPU does it: the interpreter truncates."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(4)).double() * 2.0 ** torch.arange(-32, 32).repeat(64)
    x = x.float()
    rest, pieces = x, []
    for _ in range(3):
        pieces.append(rest.bfloat16().float())
        rest = rest - pieces[-1]
    assert not bool(rest.any())
    assert torch.equal(sum(piece.double() for piece in pieces), x.double())
    assert bool((x - pieces[0] - pieces[1]).any()), f"two pieces of {BF16_BITS} bits do not hold 24"
