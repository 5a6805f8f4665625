"""The model backend with a gate for every key channel: what differs from one gate a head.

One chunk of C tokens from the state S [K, V]; G is the running sum of the log gates [C, K], E = exp(G),
D_ijc = exp(G_ic - G_jc) for i >= j, R = exp(G_last - G):

    x = beta (v - (E k) S)        new = (I + A)^-1 x,  A_ij = beta_i sum_c k_ic k_jc D_ijc below the diagonal
    o = scale ((E q) S + M new),  M_ij = sum_c q_ic k_jc D_ijc
    S <- diag(exp(G_last)) S + (R k)^T new

Shape legend: P programs, N chunks, L tokens, C tokens a chunk, BK, BV head sizes rounded up to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.mutants.kda.gate import ChannelGate
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.chunked import Gradients
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Operands


@dataclass
class KdaTrace:
    """The operands cut into chunks, and what the forward made of them.

    q, k, G [P, N, C, BK]; v [P, N, C, BV]; beta [P, N, C, 1]; inverse, M [P, N, C, C]; of each chunk the state before
    it and its new values.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    G: torch.Tensor
    inverse: torch.Tensor
    M: torch.Tensor
    before: list[torch.Tensor]
    new: list[torch.Tensor]


class KdaModel(ChannelGate, ModelBackend):
    """A right backend of Kimi delta attention, written the way kernels are."""

    operator = "kda"
    per_channel = True

    def forward(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Return o, the final state or None, and what the backward needs; store the states between chunks if asked."""
        o, final, trace = super().forward(form, call)
        if call.chunk_states is not None:
            grid, _, kept = trace
            flat = call.chunk_states.flatten(0, 1)
            for n, state in enumerate(self.between(kept)):
                running = grid.running(n)[:, 0, 0]
                self.store_state("chunk_states", flat, self.chunk_number(grid) + n, state, running, grid, call)
        return o, final, trace

    def between(self, trace: KdaTrace) -> list[torch.Tensor]:
        """Return the states [P, BK, BV] that belong to each chunk."""
        return trace.before

    def chunk_number(self, grid: Grid) -> torch.Tensor:
        """Return the number of each program's first chunk, [P], among the chunks of all sequences."""
        chunks = (grid.length + grid.chunk - 1) // grid.chunk
        HV = int(grid.head.max()) + 1 if grid.programs else 1
        return (chunks.view(-1, HV).cumsum(0) - chunks.view(-1, HV)).reshape(-1)

    def cumulative(self, g: torch.Tensor) -> torch.Tensor:
        """Return the running sum of the log gates of each chunk [..., C, BK]."""
        return g.cumsum(-2)

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        """Return exp(G_i - G_j) for i >= j and 0 elsewhere, [..., C, C, BK]; masked before the exponential."""
        C = G.shape[-2]
        lower = torch.ones(C, C, dtype=torch.bool, device=G.device).tril()[..., None]
        return self.exp(torch.where(lower, G[..., :, None, :] - G[..., None, :, :], float("-inf")))

    def faded(self, x: torch.Tensor, y: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
        """Return sum_c x_ic y_jc D_ijc, [..., C, C]."""
        return self.total(x[..., :, None, :] * y[..., None, :, :] * D, -1)

    def sweep(  # type: ignore[override]
        self, x: Operands, state: torch.Tensor, grid: Grid, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[torch.Tensor], KdaTrace]:
        """Return o [P, L, BV], the state after each chunk and the trace, from ``state`` [P, BK, BV]."""
        C = self.chunk_of(grid)
        q, k, v, g, beta = (y.unflatten(1, (y.shape[1] // C, C)) for y in (x.q, x.k, x.v, x.g, x.beta))
        beta, G = beta[..., None], self.cumulative(g)
        # chunk by chunk: the decays of all pairs and channels are large
        made = [self._products(q[:, n], k[:, n], beta[:, n], G[:, n]) for n in range(q.shape[1])]
        empty = q.new_zeros(*q.shape[:2], C, C)
        inverse, M = (torch.stack(parts, 1) for parts in zip(*made, strict=True)) if made else (empty, empty)
        trace = KdaTrace(q, k, v, beta, G, inverse, M, [], [])
        outputs, after = [], []
        for n in range(q.shape[1]):
            trace.before.append(state)
            E, end = self.exp(G[:, n]), G[:, n, -1:]
            right = beta[:, n] * (v[:, n] - self.dot(k[:, n] * E, state))
            new = self.dot(inverse[:, n], right)
            outputs.append(scale * (self.dot(q[:, n] * E, state) + self.dot(M[:, n], new)))
            kept = k[:, n] * self.exp(end - G[:, n])
            advanced = self.exp(end).mT * state + self.dot(kept.mT, new)
            state = torch.where(grid.running(n), self.carried(advanced, dtype), state)
            after.append(state)
            trace.new.append(new)
        return (torch.cat(outputs, 1) if outputs else torch.zeros_like(x.v)), after, trace

    def _products(
        self, q: torch.Tensor, k: torch.Tensor, beta: torch.Tensor, G: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        D = self.decay(G)
        return self.inverse((self.faded(k, k, D) * beta).tril(-1)), self.faded(q, k, D)

    def fade(self, factor: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return states [P, BK, BV] times their gates [P, BK]."""
        return factor[:, :, None] * state

    def gate_gradient(self, each: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the gates [P, BK]: each channel has its own."""
        return each

    def chunk_gradients(  # type: ignore[override]
        self, do: torch.Tensor, dstate: torch.Tensor, trace: KdaTrace, grid: Grid, scale: float
    ) -> Gradients:
        """Return the gradients of the operands for those of o [P, L, BV] and of the last state [P, BK, BV]."""
        C = self.chunk_of(grid)
        do = scale * do.unflatten(1, (do.shape[1] // C, C))
        found: list[tuple[torch.Tensor, ...]] = []
        for n in reversed(range(trace.q.shape[1])):
            running = grid.running(n)
            *rows, before = self._one_chunk(n, do[:, n], torch.where(running, dstate, 0.0), trace, grid)
            dstate = torch.where(running, before, dstate)
            found.insert(0, tuple(rows))
        if not found:
            q, k, v, g = (torch.zeros_like(y).flatten(1, 2) for y in (trace.q, trace.k, trace.v, trace.G))
            return Gradients(q, k, v, g, torch.zeros_like(trace.beta[..., 0]).flatten(1, 2), dstate)
        q, k, v, g, beta = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return Gradients(q, k, v, g, beta, dstate)

    def _one_chunk(
        self, n: int, do: torch.Tensor, dstate: torch.Tensor, trace: KdaTrace, grid: Grid
    ) -> tuple[torch.Tensor, ...]:
        """Return the gradients of q, k, v, g, beta of one chunk and of the state before it."""
        S, new = trace.before[n], trace.new[n]
        q, k, v, beta = (y[:, n] for y in (trace.q, trace.k, trace.v, trace.beta))
        G = self.gates_again(trace.G[:, n], grid)
        E, D, end = self.exp(G), self.decay(G), G[:, -1:]
        R, left = self.exp(end - G), self.exp(end).mT
        keys, queries, kept = k * E, q * E, k * R
        dnew = self.dot(trace.M[:, n].mT, do) + self.dot(kept, dstate)
        dM = self.dot(do, new.mT).tril()
        dx = self.dot(trace.inverse[:, n].mT, dnew)
        dA = -self.dot(dx, new.mT).tril(-1)
        dkeys, dqueries, dkept = -self.dot(beta * dx, S.mT), self.dot(do, S.mT), self.dot(new, dstate.mT)
        pairs = (dA * beta)[..., None] * D  # [P, C, C, BK]
        seen = dM[..., None] * D
        dq = self.total(seen * k[:, None], 2)
        row = self.total(pairs * k[:, None], 2)
        column = self.total(seen * q[:, :, None], 1) + self.total(pairs * k[:, :, None], 1)
        dbeta = self.total(dx * (v - self.dot(keys, S)), -1) + self.total(dA * self.faded(k, k, D), -1)
        # a gate fades all that is read after its token, and all that was written before
        dG = dqueries * queries + dkeys * keys - dkept * kept + q * dq + k * (row - column)
        dlast = self.total(left * S * dstate, 2) + self.total(dkept * kept, 1)
        place = (grid.length - n * grid.chunk).clamp(1, grid.chunk) - 1
        last = torch.arange(grid.chunk, device=dG.device) == place[:, None]
        dG = torch.where(last[..., None], dG + dlast[:, None], dG)
        before = left * dstate + self.dot(queries.mT, do) + self.dot(keys.mT, -beta * dx)
        dk = dkeys * E + dkept * R + row + column
        return dqueries * E + dq, dk, beta * dx, dG.flip(1).cumsum(1).flip(1), dbeta, before
