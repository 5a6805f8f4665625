"""Token layouts: a dense batch or a pack of sequences, cut into rows that advance together.

Rows (chunks, or single tokens) are ordered step by step; inside a step the sequences stand longest first, so the
ones still running at step j are a prefix and every step is a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.checks import checked_bounds


@dataclass(frozen=True)
class Packing:
    """Where each token of ``[B, T]`` stands in ``[rows, width]`` and back.

    Attributes:
        width: tokens a row.
        active: number of sequences still running at each step, non-increasing.
        order: sequences, longest first; None for a dense batch, where nothing moves.
        source: [rows * width] flat token index of every place, clamped; None for a dense batch.
        filled: [rows * width] bool, whether a place holds a token; None for a dense batch.
        place: [covered tokens] place of every token; None for a dense batch.
        batch: ``(B, T)``.
    """

    width: int
    active: tuple[int, ...]
    order: torch.Tensor | None
    source: torch.Tensor | None
    filled: torch.Tensor | None
    place: torch.Tensor | None
    batch: tuple[int, int]

    @classmethod
    def of(cls, batch: tuple[int, int], cu_seqlens: torch.Tensor | None, width: int) -> Packing:
        """Plan rows of ``width`` tokens. Reads ``cu_seqlens`` on the host (a sync on a GPU).

        Raises:
            ContractError: bounds that are none.
        """
        B, T = batch
        if cu_seqlens is None:
            return cls(width, (B,) * -(-T // width), None, None, None, None, batch)
        # bounds that were not checked yet are: plans are made of them
        bounds = checked_bounds(cu_seqlens, T)
        starts, lengths = bounds[:-1], [b - a for a, b in pairwise(bounds)]
        order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
        rows: list[tuple[int, int]] = []
        active = []
        for step in range(-(-max(lengths, default=0) // width)):
            running = [n for n in order if lengths[n] > step * width]
            active.append(len(running))
            rows += [(starts[n] + step * width, starts[n] + lengths[n]) for n in running]
        device = cu_seqlens.device
        first, end = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).unbind(1)
        tokens = (first[:, None] + torch.arange(width)).reshape(-1)
        filled = tokens < end.repeat_interleave(width)
        place = torch.zeros(bounds[-1], dtype=torch.int64)
        place[tokens[filled]] = filled.nonzero().squeeze(1)
        source = torch.where(filled, tokens, 0)
        return cls(
            width,
            tuple(active),
            torch.tensor(order, dtype=torch.int64, device=device),
            source.to(device),
            filled.to(device),
            place.to(device),
            batch,
        )

    def live(self, call: SequenceCall) -> SequenceCall:
        """Return the call without the rows behind the last sequence, so that nothing is computed from them.

        They may hold NaN, which a gradient of zero would meet on its way back.
        """
        if self.place is None:
            return call
        end = self.place.shape[0]
        tokens = {name: getattr(call, name)[:, :end] for name in ("q", "k", "v", "g", "beta")}
        live: SequenceCall = call.with_(**tokens)
        return live

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[B, T, ...]`` as ``[rows, width, ...]``; places without a token hold zeros."""
        B, T = self.batch
        if self.source is None:
            steps = len(self.active)
            padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, steps * self.width - T))
            return padded.reshape(B, steps, self.width, *x.shape[2:]).transpose(0, 1).flatten(0, 1)
        assert self.filled is not None
        rows = x[0].index_select(0, self.source)
        # a select, not a product: what lies in other rows may be NaN
        rows = rows.masked_fill(~self.filled.view(-1, *(1,) * (x.dim() - 2)), 0)
        return rows.reshape(-1, self.width, *x.shape[2:])

    def scatter(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write ``[rows, width, ...]`` into ``out`` [B, T, ...]; tokens in no sequence become zero."""
        B, T = self.batch
        if self.place is None:
            steps = len(self.active)
            tokens = x.reshape(steps, B, self.width, *x.shape[2:]).transpose(0, 1).flatten(1, 2)
            return out.copy_(tokens[:, :T])
        covered = self.place.shape[0]
        out[0, :covered] = x.flatten(0, 1).index_select(0, self.place).to(out.dtype)
        out[0, covered:] = 0
        return out

    def sort(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[N, ...]`` with the longest sequence first."""
        return x if self.order is None else x.index_select(0, self.order)

    def unsort(self, x: torch.Tensor) -> torch.Tensor:
        """Undo ``sort``."""
        return x if self.order is None else x.index_select(0, torch.argsort(self.order))
