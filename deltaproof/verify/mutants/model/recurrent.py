"""The token-by-token kernel and its gradient.

    S' = exp(g) S    error = beta (v - S'^T k)    S <- S' + k error^T    o = scale S^T q

Shape legend: P programs, L tokens, BK, BV head sizes rounded up to a power of two.
"""

from __future__ import annotations

import torch

from deltaproof.verify.mutants.model.chunked import Gradients
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Memory, Operands


class Recurrent(Memory):
    """The recurrent form, and decode."""

    def steps(
        self, x: Operands, state: torch.Tensor, grid: Grid, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return o [P, L, BV] and the state after each token, from ``state`` [P, BK, BV]."""
        outputs, after = [], []
        factor = self.exp(x.g)
        for t in range(grid.steps):
            k, q = x.k[:, t, :, None], x.q[:, t, :, None]
            decayed = self.fade(factor[:, t], state)
            error = x.beta[:, t, None] * (x.v[:, t] - self.total(k * decayed, 1))
            advanced = self.carried(decayed + k * error[:, None, :], dtype)
            state = torch.where(grid.running(t), advanced, state)
            outputs.append(scale * self.total(q * state, 1))
            after.append(state)
        return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x.v)), after

    def fade(self, factor: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return states [P, BK, BV] times their gates [P]."""
        return factor[:, None, None] * state

    def gates_again(self, g: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Return the log gates, or their running sums, of every program [P, ...] as the backward reads them."""
        return g

    def gate_gradient(self, each: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the gates [P] from that of each channel [P, BK]."""
        return self.total(each, 1)

    def step_gradients(
        self,
        do: torch.Tensor,
        dstate: torch.Tensor,
        x: Operands,
        before: list[torch.Tensor],
        grid: Grid,
        scale: float,
    ) -> Gradients:
        """Return the gradients for those of o [P, L, BV] and of the last state; ``before`` has L + 1 states."""
        found: list[tuple[torch.Tensor, ...]] = []
        factor = self.exp(self.gates_again(x.g, grid))
        for t in reversed(range(grid.steps)):
            k, q, v, beta = x.k[:, t], x.q[:, t], x.v[:, t], x.beta[:, t, None]
            S, decayed = before[t + 1], self.fade(factor[:, t], before[t])
            rest = v - self.total(k[..., None] * decayed, 1)
            dout = scale * do[:, t]
            dS = dstate + q[..., None] * dout[:, None, :]
            derror = self.total(k[..., None] * dS, 1)
            dpredicted = -beta * derror
            dk = self.total(dS * (beta * rest)[:, None, :], 2) + self.total(decayed * dpredicted[:, None, :], 2)
            ddecayed = dS + k[..., None] * dpredicted[:, None, :]
            dg = self.gate_gradient(self.total(ddecayed * decayed, 2))
            dq = self.total(S * dout[:, None, :], 2)
            found.insert(0, (dq, dk, beta * derror, dg, self.total(derror * rest, 1)))
            dstate = torch.where(grid.running(t), self.fade(factor[:, t], ddecayed), dstate)
        if not found:
            q, k, v, g, beta = (torch.zeros_like(y) for y in (x.q, x.k, x.v, x.g, x.beta))
        else:
            q, k, v, g, beta = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        return Gradients(q, k, v, g, beta, dstate)
