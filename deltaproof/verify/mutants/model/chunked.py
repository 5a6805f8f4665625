"""The chunked kernel and its gradient.

One chunk of C tokens from the state S [K, V]; G is the running sum of the log gates, E = exp(G),
D_ij = exp(G_i - G_j) for i >= j, A the part of beta_i (k_i . k_j) D_ij below the diagonal:

    x = beta (v - E k S)        new = (I + A)^-1 x
    o = scale (E q S + (q k^T * D) new)
    S <- exp(G_last) S + (k exp(G_last - G))^T new

Shape legend: P programs, N chunks, C tokens a chunk, K, V head sizes rounded up to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Memory, Operands


@dataclass
class Chunks:
    """The operands cut into chunks, and what does not depend on the state.

    q, k [P, N, C, K]; v [P, N, C, V]; beta, G, E [P, N, C, 1]; D, A's products, inverse, attention [P, N, C, C];
    kept [P, N, C, K] is k exp(G_last - G); left [P, N, 1, 1] is exp(G_last).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    E: torch.Tensor
    D: torch.Tensor
    products: torch.Tensor
    inverse: torch.Tensor
    attention: torch.Tensor
    remaining: torch.Tensor
    kept: torch.Tensor
    left: torch.Tensor


@dataclass
class Trace:
    """What the forward leaves for the backward: the state before each chunk, and the chunk's own values."""

    chunks: Chunks
    before: list[torch.Tensor]
    projected: list[torch.Tensor]
    new: list[torch.Tensor]


@dataclass
class Gradients:
    """Gradients by program: q, k [P, L, K], v [P, L, V], g, beta [P, L], state [P, K, V]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    state: torch.Tensor


class Chunked(Memory):
    """The chunked form."""

    def chunk_of(self, grid: Grid) -> int:
        """Return the tokens a chunk."""
        return grid.chunk

    def cut(self, x: Operands, grid: Grid) -> Chunks:
        """Cut operands into chunks and compute what does not depend on the state."""
        C = self.chunk_of(grid)
        q, k, v, g, beta = (y.unflatten(1, (y.shape[1] // C, C)) for y in (x.q, x.k, x.v, x.g, x.beta))
        beta = beta[..., None]
        G = self.cumulative(g)  # [P, N, C]
        E, D = self.exp(G)[..., None], self.decay(G)
        products = self.dot(k, k.mT)
        remaining = self.exp(self.last(G) - G)[..., None]
        return Chunks(
            q,
            k,
            v,
            beta,
            E,
            D,
            products,
            self.inverse((products * D * beta).tril(-1)),
            self.dot(q, k.mT) * D,
            remaining,
            k * remaining,
            self.exp(self.last(G))[..., None],
        )

    def last(self, G: torch.Tensor) -> torch.Tensor:
        """Return the gates summed over a whole chunk, [P, N, 1]."""
        return G[..., -1:]

    def sweep(
        self, x: Operands, state: torch.Tensor, grid: Grid, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[torch.Tensor], Trace]:
        """Return o [P, L, BV], the state after each chunk and the trace, from ``state`` [P, BK, BV]."""
        c = self.cut(x, grid)
        trace = Trace(c, [], [], [])
        outputs, after = [], []
        for n in range(c.q.shape[1]):
            trace.before.append(state)
            projected = self.dot(c.k[:, n], state)
            right = c.beta[:, n] * (c.v[:, n] - c.E[:, n] * projected)
            new = self.dot(c.inverse[:, n], right)
            read = c.E[:, n] * self.dot(c.q[:, n], state) + self.dot(c.attention[:, n], new)
            outputs.append(scale * read)
            advanced = c.left[:, n] * state + self.dot(c.kept[:, n].mT, new)
            state = torch.where(grid.running(n), self.carried(advanced, dtype), state)
            after.append(state)
            trace.projected.append(projected)
            trace.new.append(new)
        return (torch.cat(outputs, 1) if outputs else torch.zeros_like(x.v)), after, trace

    def chunk_gradients(
        self, do: torch.Tensor, dstate: torch.Tensor, trace: Trace, grid: Grid, scale: float
    ) -> Gradients:
        """Return the gradients of the operands for those of o [P, L, BV] and of the last state [P, BK, BV]."""
        c = trace.chunks
        C = self.chunk_of(grid)
        do = scale * do.unflatten(1, (do.shape[1] // C, C))
        found: list[tuple[torch.Tensor, ...]] = []
        for n in reversed(range(c.q.shape[1])):
            running = grid.running(n)
            *rows, before = self.one_chunk_gradient(n, do[:, n], torch.where(running, dstate, 0.0), trace, grid)
            dstate = torch.where(running, before, dstate)
            found.insert(0, tuple(rows))
        if not found:
            q, k, v, g = (torch.zeros_like(y).flatten(1, 2) for y in (c.q, c.k, c.v, c.beta[..., 0]))
            return Gradients(q, k, v, g, g.clone(), dstate)
        q, k, v, g, beta = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return Gradients(q, k, v, g, beta, dstate)

    def one_chunk_gradient(
        self, n: int, do: torch.Tensor, dstate: torch.Tensor, trace: Trace, grid: Grid
    ) -> tuple[torch.Tensor, ...]:
        """Return the gradients of q, k, v, g, beta of one chunk and of the state before it."""
        c, S = trace.chunks, trace.before[n]
        q, k, v, beta, E, D = (y[:, n] for y in (c.q, c.k, c.v, c.beta, c.E, c.D))
        new, projected = trace.new[n], trace.projected[n]
        dnew = self.dot(c.attention[:, n].mT, do) + self.dot(c.kept[:, n], dstate)
        dattention = self.dot(do, new.mT).tril()
        dx = self.dot(c.inverse[:, n].mT, dnew)
        dA = -self.dot(dx, new.mT).tril(-1)
        dprojected = -beta * E * dx
        dread = E * do
        dkept = self.dot(new, dstate.mT)
        pairs = dA * beta * D
        seen = dattention * D
        dq = self.dot(dread, S.mT) + self.dot(seen, k)
        dk = self.dot(dprojected, S.mT) + self.dot(seen.mT, q) + dkept * c.remaining[:, n]
        dk = dk + self.dot(pairs, k) + self.dot(pairs.mT, k)
        below = dA * c.products[:, n] * D
        dbeta = self.strength_gradient(dx * (v - E * projected), below)
        inside = dattention * c.attention[:, n] + below * beta
        read = self.dot(q, S)
        dG = self.total(dread * read, -1) + self.total(dprojected * projected, -1)
        dG = dG + self.total(inside, -1) - self.total(inside, -2)
        carried = self.total(dkept * c.kept[:, n], -1)
        dlast = self.total(self.total(c.left[:, n] * S * dstate, -1), -1) + self.total(carried, -1)
        dG = self.add_last(dG - carried, dlast, n, grid)
        before = c.left[:, n] * dstate + self.dot(q.mT, dread) + self.dot(k.mT, dprojected)
        return dq, dk, beta * dx, dG.flip(-1).cumsum(-1).flip(-1), dbeta, before

    def strength_gradient(self, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """Return the gradient of beta [P, C]: from the right side [P, C, V] and from the system [P, C, C]."""
        return self.total(outer, -1) + self.total(inner, -1)

    def add_last(self, dG: torch.Tensor, dlast: torch.Tensor, n: int, grid: Grid) -> torch.Tensor:
        """Add the gradient [P] of a chunk's summed gate to the row [P, C] of its last token."""
        row = (grid.length - n * grid.chunk).clamp(1, grid.chunk) - 1
        return torch.where(torch.arange(grid.chunk, device=dG.device) == row[:, None], dG + dlast[:, None], dG)
