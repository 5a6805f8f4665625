"""Mutants of the convolution's speculative steps: which drafts the window takes in, and where new ones go."""

from __future__ import annotations

import torch

from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall
from deltaproof.verify.mutants.conv.model import ConvModel, Rows
from deltaproof.verify.mutants.halves import ReadHalf, WrappedDrafts
from deltaproof.verify.mutants.mutant import Mutant


class RejectedTakenIn(ConvModel):
    """All tokens of the last drafts are taken in, whatever was accepted."""

    def taken_count(self, call: ConvDecodeCall, slot: int) -> int:
        assert call.drafts is not None
        return call.drafts.shape[2]


class WindowAfterTokens(ConvModel):
    """The window that is kept has seen the row's own tokens too: nothing can be rejected."""

    def kept_window(self, call: ConvDecodeCall, rows: Rows, window: torch.Tensor) -> torch.Tensor:
        return self.new_window(call, rows, window)


class TapsSkipDrafts(ConvModel):
    """Outputs see the window of the slot, and not what is taken into it in the same step."""

    def seen_window(self, old: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        return old


class OneHalf(ReadHalf, ConvModel):
    """New drafts go where the old ones are still read."""


class PaddingDrafts(WrappedDrafts, ConvModel):
    """The drafts of a padding row go to the last slot, where -1 points."""


STALE = "vllm #39273: after speculation a step read a state that was not that of the accepted tokens"
WHY = "no other probe makes speculative steps"
MUTANTS = tuple(
    Mutant(name, hazard, "decode", "conv_drafts", story, make, why=WHY)
    for name, hazard, story, make in (
        ("rejected-taken-in", "appended-cache", STALE, RejectedTakenIn),
        ("window-after-tokens", "appended-cache", STALE, WindowAfterTokens),
        ("taps-skip-drafts", "appended-cache", STALE, TapsSkipDrafts),
        ("one-half", "aliased-slot", "none known: half a slot's drafts are read while the other is written", OneHalf),
        ("padding-drafts", "padding-slot-address", "none known: drafts of -1 go to the last slot", PaddingDrafts),
    )
)
