"""Mutants of the backward: a term that is missing, on the wrong row, or reduced over the wrong programs."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Operands
from deltaproof.verify.mutants.mutant import Mutant


class FinalGradientDropped(ModelBackend):
    """A gradient of the final state is not passed on."""

    def final_gradient(self, call: SequenceCall, x: Operands, dfinal: torch.Tensor | None, grid: Grid) -> torch.Tensor:
        return super().final_gradient(call, x, None, grid)


class LastRowOfTile(ModelBackend):
    """The gradient of a chunk's summed gate goes to the tile's last row, which a partial chunk does not have."""

    def add_last(self, dG: torch.Tensor, dlast: torch.Tensor, n: int, grid: Grid) -> torch.Tensor:
        row = torch.arange(grid.chunk, device=dG.device)
        added = torch.where(row == grid.chunk - 1, dG + dlast[:, None], dG)
        return torch.where(row < (grid.length - n * grid.chunk)[:, None], added, 0.0)


class StrengthTermLost(ModelBackend):
    """The gradient of beta lacks what comes from the products of keys."""

    def strength_gradient(self, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return self.total(outer, -1)


class ScaleDropped(ModelBackend):
    """The backward takes the default scale, whatever the forward was given."""

    def backward_scale(self, call: SequenceCall) -> float:
        return float(call.dims[4] ** -0.5)


class GradientForgotten(ModelBackend):
    """The last input was added to the forward, and the backward returns one gradient too few."""

    def returned(self, found: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
        return super().returned(found)[:-1]


class NormWithoutGradient(ModelBackend):
    """The norm that q and k are divided by is taken for a constant."""

    def norm_gradient(self, grad: torch.Tensor, y: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return grad / norm


class GroupsOverwritten(ModelBackend):
    """Value heads that share a query head store its gradient one over the other."""

    def gather_rows(self, rows: torch.Tensor, like: torch.Tensor, grid: Grid, HV: int) -> torch.Tensor:
        size = HV // like.shape[2]
        last = (grid.head % size == size - 1).view(-1, *(1,) * (rows.dim() - 1))
        return super().gather_rows(torch.where(last, rows, 0.0), like, grid, HV)


MUTANTS = (
    Mutant(
        "final-gradient-dropped",
        "wrong-gradient",
        "chunk",
        "gradients",
        "fla #875: a tensor that records no gradient, so one contribution was lost",
        FinalGradientDropped,
    ),
    Mutant(
        "last-row-of-tile",
        "wrong-gradient",
        "chunk",
        "gradients",
        "fla #1143: the gradient of a chunk's last decay was added to a row outside the sequence",
        LastRowOfTile,
    ),
    Mutant(
        "strength-term-lost",
        "wrong-gradient",
        "chunk",
        "gradients",
        "fla #863: one branch lost a term of the gradient of beta",
        StrengthTermLost,
    ),
    Mutant(
        "backward-scale-dropped",
        "unthreaded-option",
        "recurrent",
        "gradients",
        "fla #1004: an option that one path forwards and its sibling loses",
        ScaleDropped,
    ),
    Mutant(
        "gradient-forgotten",
        "gradient-arity",
        "recurrent",
        "gradients",
        "fla fae210c0: an input was added, and the backward went on returning six gradients for seven",
        GradientForgotten,
    ),
    Mutant(
        "norm-without-gradient",
        "wrong-gradient",
        "recurrent",
        "gradients",
        "fla #875: a normaliser that recorded no gradient, so dk lacked its contribution",
        NormWithoutGradient,
    ),
    Mutant(
        "groups-overwritten",
        "racing-store",
        "recurrent",
        "gradients",
        "fla #360: programs stored a shared gradient without atomics, and updates were lost",
        GroupsOverwritten,
        why="the store that comes last wins here every time: the value is wrong, and does not vary",
    ),
)
