"""Mutants that read a state in an order, or at strides, that it does not have."""

from __future__ import annotations

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.verify.mutants.memory import dense
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.memory import Call
from deltaproof.verify.mutants.mutant import Mutant


class SquareState(ModelBackend):
    """Where K = V the shape does not tell the layouts apart, and the flag is not looked at."""

    def state_strides(self, name: str, x: torch.Tensor, call: Call) -> tuple[int, int, int, int]:
        slot, head, rows, columns = super().state_strides(name, x, call)
        if call.dims[4] == call.dims[5] and call.options.layout is StateLayout.V_FIRST:
            return slot, head, columns, rows
        return slot, head, rows, columns


class DenseState(ModelBackend):
    """A state that is a transposed view is read as if it were contiguous."""

    def strides(self, name: str, x: torch.Tensor) -> tuple[int, ...]:
        return dense(x.shape) if name == "initial_state" else super().strides(name, x)


MUTANTS = (
    Mutant(
        "square-state-misread",
        "unchecked-state-layout",
        "recurrent",
        "layouts",
        "fla #776: entry points that take a state of K = V in either order without a word",
        SquareState,
    ),
    Mutant(
        "square-slot-misread",
        "unchecked-state-layout",
        "decode",
        "layouts",
        "fla #776: entry points that take a state of K = V in either order without a word",
        SquareState,
    ),
    Mutant(
        "transposed-view-misread",
        "unchecked-state-layout",
        "chunk",
        "layouts",
        "fla #776: nobody checks the strides of the state",
        DenseState,
    ),
)
