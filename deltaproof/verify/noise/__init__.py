"""What rounding may do to a right kernel: the operator's own algorithm in float64 with rounding put in by hand.

Wherever a kernel rounds, the model multiplies by ``1 + u * xi`` with xi uniform in [-1, 1] and u the unit
roundoff there; gradients are rounded the same way on their way back. The spread over several draws is what
an honest kernel shows, row by row; the bound of clause N2 is a fixed multiple of it. This is stochastic arithmetic
(Vignes, "A stochastic arithmetic for reliable scientific computation", 1993), not a worst-case analysis, which for
a recurrence is larger by orders of magnitude and would let real faults pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from deltaproof.ops.common.calls import DeltaRuleCall
from deltaproof.ops.common.torch_inputs import NORM_EPS

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
HALF_SUBNORMAL = 2.0**-25
"""Half of float16's smallest number; the other dtypes' are below every result."""


class _Noise:
    """Uniform numbers in [-1, 1], drawn once and handed out from random places: drawing anew is most of the cost."""

    SIZE = 1 << 21

    def __init__(self, seed: int) -> None:
        self._places = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    @cache
    def _stock() -> bytearray:
        # bytes, not a tensor: bounds are made of them, and a backend can find every tensor in its process
        stock = torch.rand(_Noise.SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return bytearray(stock.numpy().tobytes())

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """Return noise of x's shape; a rounding error is uniform over one ulp."""
        count = x.numel()
        if count == 0:
            return torch.empty_like(x)
        if count > self.SIZE // 2:
            return torch.rand(x.shape, dtype=torch.float64, generator=self._generator) * 2 - 1
        start = self._places.randrange(self.SIZE - count)
        stock = torch.frombuffer(self._stock(), dtype=torch.float64, count=count, offset=8 * start)
        return stock.view(x.shape)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, u: float, noise: _Noise) -> torch.Tensor:
        ctx.u, ctx.noise = u, noise
        return torch.addcmul(x, x, noise.like(x), value=u)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return torch.addcmul(grad, grad, ctx.noise.like(grad), value=ctx.u), None, None


class _Underflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, floor: float, noise: _Noise) -> torch.Tensor:
        ctx.floor, ctx.noise = floor, noise
        return x + floor * noise.like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return grad + ctx.floor * ctx.noise.like(grad), None, None


class _RoundBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, u: float, noise: _Noise) -> torch.Tensor:
        ctx.u, ctx.noise = u, noise
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return torch.addcmul(grad, grad, ctx.noise.like(grad), value=ctx.u), None, None


class Rounding:
    """Puts rounding into a float64 computation.

    Attributes:
        operand: unit roundoff of matmul operands; 0 switches all rounding off.
        single: unit roundoff of everything else, fp32's.
    """

    def __init__(self, operand: float, single: float, seed: int) -> None:
        self.operand, self.single = operand, single
        self.noise = _Noise(seed)

    def at(self, x: torch.Tensor, u: float) -> torch.Tensor:
        """Round x at unit roundoff u."""
        rounded: torch.Tensor = _Round.apply(x, u, self.noise) if u else x
        return rounded

    def op(self, x: torch.Tensor) -> torch.Tensor:
        """Round a matmul operand; a float16 one is off by half its smallest subnormal too."""
        rounded = self.at(x, self.operand)
        if self.operand != UNIT_ROUNDOFF[torch.float16]:
            return rounded
        floor: torch.Tensor = _Underflow.apply(rounded, HALF_SUBNORMAL, self.noise)
        return floor

    def fp32(self, x: torch.Tensor) -> torch.Tensor:
        """Round at fp32."""
        return self.at(x, self.single)

    def running(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """Round sums of up to ``count`` numbers: partial sums round too, and their errors add up like a walk."""
        return self.at(x, self.single * max(1.0, count**0.5 / 4))

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a @ b, summed in fp32: partial sums round too, and their errors add up like a walk.

        Their size is that of the terms, also where the sum itself cancels.
        """
        exact = a @ b
        if not self.single:
            return exact
        with torch.no_grad():
            terms = ((a * a) @ (b * b)).sqrt()
            error = self.single * max(1.0, a.shape[-1] ** 0.5 / 4) * terms * self.noise.like(terms)
        return self.fp32(exact) + error

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        """Return x / sqrt(sum(x ** 2) + 1e-6) of each row of [P * N, ...] as a matmul's operand.

        The length is rounded too, in its sum, root and reciprocal. What it is off by, a whole row is, and rows that are
        equal are off by the same: equal keys then let a state grow or fade, token after token. So this error is drawn
        by the length itself, anew for each entry of the first dimension.
        """
        squares = x.pow(2).sum(-1, keepdim=True) + NORM_EPS
        unit = self.single * ((max(1.0, x.shape[-1] ** 0.5 / 4) / 2) ** 2 + 2) ** 0.5
        with torch.no_grad():
            phase = self.noise.like(squares[:, :1].mean(tuple(range(1, x.dim())), keepdim=True))
            xi = 2 * (squares * 1e7 + phase).frac().abs() - 1
        return self.op(self.fp32(x * squares.rsqrt() * (1 + unit * xi)))

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """Leave x as it is and round its gradient at fp32.

        For the several uses of one value: kernels sum up each use's gradient on its own before they add them, so
        sums that cancel exactly in theory leave a rest.
        """
        same: torch.Tensor = _RoundBack.apply(x, self.single, self.noise) if self.single else x
        return same

    def shared(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """Return x [..., 1] as [..., count], whose gradient is a sum over them: of rounded terms, in partial sums."""
        wide = x.expand(*x.shape[:-1], count)
        unit = self.single * (1 + max(1.0, count / 16)) ** 0.5
        same: torch.Tensor = _RoundBack.apply(wide, unit, self.noise) if self.single else wide
        return same


def rounded_operands(
    call: DeltaRuleCall, rounding: Rounding, log_gate: Callable[[DeltaRuleCall, torch.dtype], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return q, k (HV heads), v, log g, beta of a float64 call [B, T, HV, ...], rounded where a kernel rounds."""
    groups = call.v.shape[2] // call.q.shape[2]
    q, k = (x.repeat_interleave(groups, 2) for x in (call.q, call.k))
    v, beta = call.v, call.beta
    if call.options.normalize_qk:
        q, k = rounding.normalized(q), rounding.normalized(k)
    if call.options.beta_sigmoid:
        beta = rounding.fp32(beta.sigmoid()) * (2 if call.options.neg_eigval else 1)
    g = log_gate(call, torch.float64)
    if call.options.gate_in_kernel:
        g = rounding.fp32(rounding.fp32(g))
    return q, k, v, g, beta
