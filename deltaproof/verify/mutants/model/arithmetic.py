"""Arithmetic whose bits depend on an element's own operands alone, never on the shape of the batch around it.

Sums run over blocks of one shape in one fixed order. Elementwise library functions may round differently in the last
lanes of a vector, so those that are not correctly rounded are taken in float64 and rounded once.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE, NORM_EPS


class Arithmetic:
    """Sums, products and functions of the model kernels, in fp32."""

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """Return an operand of ``dot`` as the multiplier takes it."""
        return x

    def dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a [..., M, K] @ b [..., K, N], one product of one fixed shape a program."""
        a, b = self.operand(a).contiguous(), self.operand(b).contiguous()
        batch = a.shape[:-2]
        result = a.new_zeros(*batch, a.shape[-2], b.shape[-1])
        rows = (x.flatten(0, -3) if len(batch) > 1 else x for x in (a, b, result))
        for one, other, out in zip(*rows, strict=True):
            torch.mm(one, other, out=out)
        return result

    def total(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return the sum over one dimension of a block (a power of two), halves added to halves."""
        x = x.movedim(dim, 0)
        while x.shape[0] > 1:
            half = x.shape[0] // 2
            x = x[:half] + x[half:]
        return x[0]

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        """Return exp(x)."""
        return x.double().exp().float()

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logistic function of x."""
        return x.double().sigmoid().float()

    def softplus(self, x: torch.Tensor) -> torch.Tensor:
        """Return log(1 + exp(x))."""
        return torch.nn.functional.softplus(x.double()).float()

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return sqrt(sum(x ** 2) + 1e-6) of the rows of a block, [..., 1]."""
        return (self.total(x * x, -1)[..., None] + NORM_EPS).sqrt()

    def clamp_gate(self, g: torch.Tensor) -> torch.Tensor:
        """Return log gates that may be summed (clause N1)."""
        return g.clamp(min=MIN_LOG_GATE)

    def cumulative(self, g: torch.Tensor) -> torch.Tensor:
        """Return the running sum of the log gates of each chunk [..., C]."""
        return g.cumsum(-1)

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        """Return exp(G_i - G_j) for i >= j and 0 elsewhere, [..., C, C]; masked before the exponential."""
        C = G.shape[-1]
        lower = torch.ones(C, C, dtype=torch.bool, device=G.device).tril()
        return self.exp(torch.where(lower, G[..., :, None] - G[..., None, :], float("-inf")))

    def inverse(self, A: torch.Tensor) -> torch.Tensor:
        """Return (I + A)^-1 for strictly lower A [..., C, C] by forward substitution, column by column."""
        C = A.shape[-1]
        result = torch.eye(C, device=A.device).expand(A.shape).clone()
        for j in range(C - 1):
            result[..., j + 1 :, : j + 1] -= A[..., j + 1 :, j : j + 1] * result[..., j : j + 1, : j + 1]
        return result

    def carried(self, state: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the state as it is carried from one step to the next; ``dtype`` is the inputs'."""
        return state

    def to_output(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return results in the dtype they are stored in, rounded to nearest."""
        return x.to(dtype)
