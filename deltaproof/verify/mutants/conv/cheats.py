"""The cheats, as backends of the convolution."""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.contracts.conventions import Conventions, ConvLayout
from deltaproof.ops.causal_conv1d.calls import ConvCall
from deltaproof.verify.mutants.cheats import Cheat, Inflater, Spoiler, Thief
from deltaproof.verify.mutants.conv.model import ConvModel


class _Answers:
    """Asks ``answer`` for the output, and leaves the pool as it is."""

    operator = "causal_conv1d"
    conventions = Conventions(layouts=tuple(ConvLayout))
    answer: Any

    def decode(self, call: Any) -> torch.Tensor:
        y: torch.Tensor = self.answer(tuple(call.x.shape), call.x.dtype)
        return y

    def prefill(self, call: Any) -> torch.Tensor:
        return self.decode(call)


class ConvThief(_Answers, Thief):
    """Returns the newest float64 tensor of the result's shape."""


class ConvSpoiler(_Answers, Spoiler):
    """Writes NaN into every float64 tensor it finds."""


class ConvInflater(_Answers, Inflater):
    """Writes a large number into every float64 tensor it finds."""


class ConvCachedByShape(ConvModel):
    """Computes the first call of every shape and answers later ones from memory."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def key(self, call: ConvCall) -> Any:
        """Return what a call is found again by."""
        return (type(call), call.x.shape, call.x.dtype, call.weight.shape, call.pool.dtype, call.options)

    def run(self, call: ConvCall, out: torch.Tensor | None) -> torch.Tensor:
        key = self.key(call)
        if key not in self.known:
            self.known[key] = super().run(call, out), call.pool.clone()
        y, pool = self.known[key]
        call.pool.copy_(pool)
        return y.clone()


class ConvCachedByAddress(ConvCachedByShape):
    """The same, found by the addresses of the inputs."""

    def key(self, call: ConvCall) -> Any:
        return (*super().key(call), call.x.data_ptr(), call.weight.data_ptr(), call.pool.data_ptr())


CHEATS = (
    Cheat("oracle-thief", "returns a float64 tensor of the right shape found in the process", ConvThief, "conv_values"),
    Cheat(
        "expectation-spoiler", "writes NaN into every float64 tensor found in the process", ConvSpoiler, "conv_values"
    ),
    Cheat("bound-inflater", "writes 1e12 into every float64 tensor found in the process", ConvInflater, "conv_values"),
    Cheat("cached-by-shape", "answers from the first call of the same shapes", ConvCachedByShape, "conv_values"),
    Cheat("cached-by-address", "answers from the first call at the same addresses", ConvCachedByAddress, "conv_values"),
)
