"""Mutants of what Kimi delta attention has beside the gated delta rule: a gate for every channel, and its way back."""

from __future__ import annotations

from dataclasses import replace

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.verify.mutants.kda.model import KdaModel
from deltaproof.verify.mutants.model.chunked import Gradients
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call, Operands
from deltaproof.verify.mutants.mutant import Mutant


class UnmaskedGate(KdaModel):
    """The gate is loaded over K rounded up to a power of two; q, k and v have their masks."""

    def lane_mask(self, name: str, lane: torch.Tensor, size: int) -> torch.Tensor:
        return lane >= 0 if name == "g" else super().lane_mask(name, lane, size)


class ExpBeforeMask(KdaModel):
    """Decays are exponentiated for all pairs, and those above the diagonal multiplied by zero."""

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        C = G.shape[-2]
        every = self.exp(G[..., :, None, :] - G[..., None, :, :])
        return every * torch.ones(C, C, device=G.device).tril()[..., None]


class ReferenceInTheMiddle(KdaModel):
    """A decay is split in two at the row in the middle of its sub-chunk of 16, a later one for half of the rows."""

    def decay(self, G: torch.Tensor) -> torch.Tensor:
        C = G.shape[-2]
        middle = (torch.arange(C, device=G.device) // 16 * 16 + 8).clamp(max=C - 1)
        same = middle[:, None] == middle
        at = G[..., middle, :]
        split = self.exp(G - at)[..., :, None, :] * self.exp(at - G)[..., None, :, :]
        lower = torch.ones(C, C, dtype=torch.bool, device=G.device).tril()
        return torch.where((same & lower)[..., None], split, super().decay(G))


class GateAlongValues(KdaModel):
    """In layout v_first the gate runs along the rows of the state as it lies in memory, which are those of V."""

    v_first = False

    def operands(self, call: Call, grid: Grid) -> Operands:
        self.v_first = call.options.layout is StateLayout.V_FIRST
        return super().operands(call, grid)

    def fade(self, factor: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        if not self.v_first:
            return super().fade(factor, state)
        lane = torch.arange(state.shape[2], device=state.device).clamp(max=state.shape[1] - 1)
        return factor[:, None, lane] * state


class GateOfHeadZero(KdaModel):
    """The backward reads every head's gates where the first head's lie."""

    def gates_again(self, g: torch.Tensor, grid: Grid) -> torch.Tensor:
        return g[torch.arange(grid.programs, device=g.device) - grid.head]


class BiasTransposed(KdaModel):
    """dt_bias is read as if a channel's heads lay side by side."""

    def bias_place(self, head: torch.Tensor, lane: torch.Tensor, dt_bias: torch.Tensor) -> torch.Tensor:
        return lane * dt_bias.shape[0] + head[:, None]


class BoundIgnored(KdaModel):
    """decode computes the gate as if there were no lower bound."""

    def log_gate(self, call: Call, grid: Grid, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if grid.chunk == 1 and call.options.lower_bound is not None:
            call = call.with_(options=replace(call.options, lower_bound=None))
        return super().log_gate(call, grid, raw)


class StatesDense(KdaModel):
    """The states of a pack's sequences are stored as if all were as long as the longest."""

    def chunk_number(self, grid: Grid) -> torch.Tensor:
        return grid.sequence * (grid.steps // grid.chunk)


class RateForgotten(KdaModel):
    """With a lower bound the gate's backward leaves exp(A_log) out."""

    def through_options(self, call: Call, found: Gradients, x: Operands, grid: Grid) -> dict[str, torch.Tensor | None]:
        result = super().through_options(call, found, x, grid)
        if call.options.lower_bound is not None and call.A_log is not None:
            assert result["g"] is not None
            result["g"] = (result["g"].float() / call.A_log.float().exp()[:, None]).to(call.g.dtype)
        return result


MUTANTS = (
    Mutant(
        "kda-unmasked-gate",
        "unmasked-load",
        "recurrent",
        "redzones",
        "fla #1135: the gate was loaded over K rounded up to a power of two, with no mask",
        UnmaskedGate,
    ),
    Mutant(
        "kda-exp-before-mask",
        "mask-by-multiply",
        "chunk",
        "extreme_gates",
        "fla #99: gate differences went through exp before the causal mask",
        ExpBeforeMask,
    ),
    Mutant(
        "kda-reference-in-the-middle",
        "unbounded-exp",
        "chunk",
        "causality",
        "tileops #1465: a decay split into two exponentials",
        ReferenceInTheMiddle,
        why="the values are right where neither factor overflows; only their last bits tell of later tokens",
    ),
    Mutant(
        "kda-gate-along-values",
        "unchecked-state-layout",
        "recurrent",
        "layouts",
        "fla #776: nobody checks which axis of a state is which; here the gate takes the wrong one",
        GateAlongValues,
    ),
    Mutant(
        "kda-gate-of-head-zero",
        "missing-base-offset",
        "chunk",
        "gradients",
        "fla #781: the gate was always read from head 0 of the first sequence",
        GateOfHeadZero,
    ),
    Mutant(
        "kda-gate-of-head-zero-recurrent",
        "missing-base-offset",
        "recurrent",
        "gradients",
        "fla #781: the gate was always read from head 0 of the first sequence",
        GateOfHeadZero,
    ),
    Mutant(
        "kda-bias-transposed",
        "missing-base-offset",
        "decode",
        "values",
        "none known: dt_bias read as [K, HV]",
        BiasTransposed,
    ),
    Mutant(
        "kda-bound-ignored",
        "unthreaded-option",
        "decode",
        "values",
        "flashinfer #3720: an option was accepted, and the kernel went on as without it",
        BoundIgnored,
    ),
    Mutant(
        "kda-states-dense",
        "missing-base-offset",
        "chunk",
        "chunk_states",
        "fla #707: an offset was computed from one length where each sequence has its own",
        StatesDense,
    ),
    Mutant(
        "kda-rate-forgotten",
        "wrong-gradient",
        "chunk",
        "gradients",
        "fla #863: a term of a gradient was never set in one branch",
        RateForgotten,
    ),
)
