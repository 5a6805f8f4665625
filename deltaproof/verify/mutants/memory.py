"""Mutants that read or write the wrong memory: masks, strides, base offsets, memory nobody wrote."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call
from deltaproof.verify.mutants.mutant import Mutant

# how far behind the tokens the emulation follows a bound
BEHIND = 64


def dense(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return torch.empty(tuple(shape), device="meta").stride()


class UnmaskedGate(ModelBackend):
    """The gate of a partial chunk is loaded without a mask, its siblings with one."""

    def row_mask(self, name: str, grid: Grid) -> torch.Tensor:
        return torch.ones_like(grid.valid) if name == "g" else super().row_mask(name, grid)


class UnmaskedLanes(ModelBackend):
    """k is loaded over K rounded up to a power of two."""

    def lane_mask(self, name: str, lane: torch.Tensor, size: int) -> torch.Tensor:
        return lane >= 0 if name == "k" else super().lane_mask(name, lane, size)


class MaskedByProduct(ModelBackend):
    """The rows of v past the end are loaded, and multiplied by zero."""

    def row_mask(self, name: str, grid: Grid) -> torch.Tensor:
        return torch.ones_like(grid.valid) if name == "v" else super().row_mask(name, grid)

    def load_rows(
        self, name: str, x: torch.Tensor, grid: Grid, head: torch.Tensor, size: int | None = None
    ) -> torch.Tensor:
        rows = super().load_rows(name, x, grid, head, size)
        return rows * grid.valid[..., None].float() if name == "v" else rows


class TailLoaded(ModelBackend):
    """Rows are masked by the length of the pack: the host zeroes o there, but the state has taken them in."""

    def row_mask(self, name: str, grid: Grid) -> torch.Tensor:
        last = grid.start + grid.length == (grid.start + grid.length).max() if grid.programs else grid.length > 0
        return grid.valid | (last[:, None] & (grid.start[:, None] + grid.lane < grid.total))


class TrustedBounds(ModelBackend):
    """Bounds behind the last token are believed: so many more tokens are read and written."""

    def grid(self, form: str, call: Call) -> Grid:
        grid = super().grid(form, call)
        if isinstance(call, DecodeCall) or call.cu_seqlens is None:
            return grid
        end = call.cu_seqlens[1:].long().clamp(0, grid.total + BEHIND).repeat_interleave(call.dims[3])
        length = torch.maximum(end, grid.start) - grid.start
        longest = int(length.max()) if length.numel() else 0
        return replace(grid, length=length, steps=-(-longest // grid.chunk) * grid.chunk)


class UnmaskedStore(ModelBackend):
    """A partial chunk stores all its rows; those past the end land on the next sequence."""

    def store_rows(self, out: torch.Tensor, o: torch.Tensor, grid: Grid, mask: torch.Tensor) -> None:
        super().store_rows(out, o, grid, mask)
        super().store_rows(out, o, grid, ~grid.valid)


class TailUnwritten(ModelBackend):
    """Rows after the last sequence are left as they were allocated."""

    def zero_tail(self, out: torch.Tensor, cu_seqlens: torch.Tensor | None) -> None:
        return None


class EmptyUnwritten(ModelBackend):
    """An empty sequence returns before it stores its final state."""

    def final_mask(self, grid: Grid, every: torch.Tensor) -> torch.Tensor:
        return grid.length > 0


class FirstSequenceOnly(ModelBackend):
    """beta is not advanced to its sequence."""

    def first_row(self, name: str, grid: Grid) -> torch.Tensor:
        return torch.zeros_like(grid.start) if name == "beta" else super().first_row(name, grid)


class QueryHeadsForValueHeads(ModelBackend):
    """The rows of beta are taken to be H wide; they are HV wide."""

    heads = 0

    def query_head(self, grid: Grid, H: int, HV: int) -> torch.Tensor:
        self.heads = H
        return super().query_head(grid, H, HV)

    def strides(self, name: str, x: torch.Tensor) -> tuple[int, ...]:
        return dense((*x.shape[:2], self.heads)) if name == "beta" else super().strides(name, x)


class HeadsModulo(ModelBackend):
    """Value head hv reads query head hv % H."""

    def query_head(self, grid: Grid, H: int, HV: int) -> torch.Tensor:
        return grid.head % H


class DenseQuery(ModelBackend):
    """q is walked as if it were contiguous."""

    def strides(self, name: str, x: torch.Tensor) -> tuple[int, ...]:
        return dense(x.shape) if name == "q" else super().strides(name, x)


class StateInPlace(ModelBackend):
    """The final state is stored over the initial state, and returned as the same memory."""

    def final_buffer(self, call: SequenceCall, shape: tuple[int, ...]) -> torch.Tensor:
        if call.initial_state is None:
            return super().final_buffer(call, shape)
        return call.initial_state.detach()


class TunedInPlace(ModelBackend):
    """The first call of a shape runs the kernel several times, each on the states of the last."""

    def __init__(self) -> None:
        self.tuned: set[Any] = set()

    def decode(self, call: DecodeCall) -> torch.Tensor:
        if call.q.shape not in self.tuned:
            self.tuned.add(call.q.shape)
            super().decode(call)
        return super().decode(call)


class RacingSums(ModelBackend):
    """Partial sums are added in the order in which they happen to arrive, now one way and now the other."""

    def __init__(self) -> None:
        self.arrival = random.Random(0)
        self.reverse = False

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.reverse = self.arrival.random() < 0.5
        return super().chunk(call)

    def dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return super().dot(a.flip(-1), b.flip(-2)) if self.reverse else super().dot(a, b)


MUTANTS = (
    Mutant(
        "unmasked-gate-load",
        "unmasked-load",
        "chunk",
        "ragged",
        "fla #1135: the gate was loaded without a mask while q, k and v had one",
        UnmaskedGate,
    ),
    Mutant(
        "unmasked-lanes",
        "unmasked-load",
        "recurrent",
        "redzones",
        "fla #1135: a load over K rounded up to a power of two read the next head",
        UnmaskedLanes,
    ),
    Mutant(
        "masked-by-product",
        "mask-by-multiply",
        "chunk",
        "ragged",
        "fla #694: rows past the end were loaded, and zero times infinity spoiled the tile",
        MaskedByProduct,
    ),
    Mutant(
        "tail-zeroed-but-read",
        "unmasked-load",
        "chunk",
        "redzones",
        "cula #35: the tail of the last chunk was accumulated into the state",
        TailLoaded,
    ),
    Mutant(
        "trusted-bounds",
        "unmasked-load",
        "chunk",
        "redzones",
        "fla #1143: rows were masked by causality only, so a read went past the end of its sequence",
        TrustedBounds,
    ),
    Mutant(
        "unmasked-store",
        "unmasked-store",
        "chunk",
        "redzones",
        "fla a9dac8b1: one store always wrote a full chunk of rows, beside siblings that were masked",
        UnmaskedStore,
    ),
    Mutant(
        "tail-unwritten",
        "unwritten-output",
        "chunk",
        "poison",
        "flashqla #36: the padding chunk was not cleared, and garbage was returned",
        TailUnwritten,
    ),
    Mutant(
        "empty-sequence-unwritten",
        "unwritten-output",
        "recurrent",
        "varlen",
        "fla bc3b101d: an early return for empty sequences leaves their final state uninitialised",
        EmptyUnwritten,
    ),
    Mutant(
        "first-sequence-only",
        "missing-base-offset",
        "chunk",
        "varlen",
        "fla #781: the gate was always read from the first sequence, while its siblings were advanced",
        FirstSequenceOnly,
    ),
    Mutant(
        "h-for-hv",
        "missing-base-offset",
        "recurrent",
        "values",
        "fla #707: a stride computed from the wrong count",
        QueryHeadsForValueHeads,
    ),
    Mutant(
        "heads-modulo",
        "missing-base-offset",
        "prefill",
        "values",
        "fla #1031: a pointer that ignored which part of the axis its program has",
        HeadsModulo,
    ),
    Mutant(
        "dense-query",
        "assumed-contiguous",
        "chunk",
        "strides",
        "fla #871: read with dense strides although it may be a non-contiguous view",
        DenseQuery,
    ),
    Mutant(
        "state-in-place",
        "aliased-slot",
        "recurrent",
        "inputs_unchanged",
        "fla 39172ad1: new states were copied into tensors handed out before",
        StateInPlace,
    ),
    Mutant(
        "tuned-in-place",
        "autotuned-in-place",
        "decode",
        "repeatability",
        "fla ca89d201: the tuner ran a kernel that updates its input, and restored nothing",
        TunedInPlace,
    ),
    Mutant(
        "racing-sums",
        "racing-store",
        "chunk",
        "repeatability",
        "tileops #1730: blocks raced, and results varied from run to run",
        RacingSums,
    ),
)
