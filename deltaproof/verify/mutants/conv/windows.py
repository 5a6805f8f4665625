"""Mutants of the window that is kept: cut at the wrong token, of rows too short to fill it, or rounded."""

from __future__ import annotations

from dataclasses import replace

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall
from deltaproof.verify.mutants.conv.model import ConvModel, Rows
from deltaproof.verify.mutants.mutant import Mutant


class PaddedWidth(ConvModel):
    """The window is cut behind all T tokens of a row, also behind those that do not count."""

    def window_length(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        return rows.extent


class OneEarly(ConvModel):
    """The window ends a token before the last."""

    def window_length(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        return (rows.length - 1).clamp(min=0)


class ShortShifted(ConvModel):
    """Where part of the old window stays, it is taken one place too early."""

    def old_part(self, call: ConvCall, old: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return super().old_part(call, old, at - 1)


class ShortForgets(ConvModel):
    """A row of fewer than W - 1 tokens fills its window up with zeros."""

    def old_part(self, call: ConvCall, old: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        whole = at[:, -1:, None] < 0
        return torch.where(whole, super().old_part(call, old, at), 0.0)


class EmptyZeroed(ConvModel):
    """A row without tokens leaves a window of zeros."""

    def new_window(self, call: ConvCall, rows: Rows, old: torch.Tensor) -> torch.Tensor:
        return super().new_window(call, rows, torch.where((rows.length > 0)[:, None, None], old, 0.0))


class EmptyLeft(ConvModel):
    """A row without tokens returns before it stores its window."""

    def store_window(self, call: ConvCall, rows: Rows, window: torch.Tensor) -> None:
        super().store_window(call, replace(rows, kept=rows.kept & (rows.length > 0)), window)


class SquareWindow(ConvModel):
    """Where C = W - 1 the shape does not tell the layouts apart, and the flag is not looked at."""

    def window_strides(self, call: ConvCall) -> tuple[int, int, int]:
        slot, time, channel = super().window_strides(call)
        square = call.dims[2] == call.dims[3] - 1
        return (slot, 1, call.dims[2]) if square else (slot, time, channel)


class ThroughHalf(ConvModel):
    """The window goes through bf16, whatever the pool holds."""

    def new_window(self, call: ConvCall, rows: Rows, old: torch.Tensor) -> torch.Tensor:
        return super().new_window(call, rows, old).bfloat16().float()


class ThroughInput(ConvModel):
    """What the slot held is cast to the dtype of x, and what stays of it is stored back."""

    def old_window(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        return super().old_window(call, rows).to(call.x.dtype).float()


STALE = "appended-cache"

MUTANTS = (
    Mutant(
        "padded-width-stored",
        STALE,
        "decode",
        "conv_slots",
        "vllm #50272: the window kept the tokens of rejected drafts",
        PaddedWidth,
    ),
    Mutant(
        "window-one-early",
        STALE,
        "decode",
        "conv_rows",
        "sglang #38622: the window was taken from one end of a longer line, where the other was meant",
        OneEarly,
    ),
    Mutant(
        "short-row-shifted",
        STALE,
        "prefill",
        "conv_rows",
        "fla #1141: an index that is right from W - 1 tokens on was off below",
        ShortShifted,
    ),
    Mutant(
        "short-row-forgets",
        STALE,
        "prefill",
        "conv_rows",
        "xllm #1291: a prompt shorter than the window was filled up with zeros",
        ShortForgets,
    ),
    Mutant(
        "empty-row-zeroed",
        STALE,
        "prefill",
        "conv_slots",
        "xllm #1291: a prompt shorter than the window was filled up with zeros",
        EmptyZeroed,
    ),
    Mutant(
        "empty-row-left",
        "unwritten-output",
        "decode",
        "conv_slots",
        "fla bc3b101d: an early return for empty sequences leaves their final state unwritten",
        EmptyLeft,
        why="the output is a slot of the pool",
    ),
    Mutant(
        "square-window-misread",
        "unchecked-state-layout",
        "decode",
        "conv_values",
        "fla #776: entry points that take a state of K = V in either order without a word",
        SquareWindow,
    ),
    Mutant(
        "window-through-bf16",
        "low-precision-accumulate",
        "decode",
        "conv_values",
        "fla #740: what is carried on was cast to a narrower dtype at every step",
        ThroughHalf,
    ),
    Mutant(
        "window-through-input",
        "low-precision-accumulate",
        "prefill",
        "conv_values",
        "sglang #38039: windows were cast to the dtype of x as they were loaded",
        ThroughInput,
    ),
)
