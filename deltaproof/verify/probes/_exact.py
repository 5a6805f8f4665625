"""Comparing two runs of a backend bit by bit, where nothing but the same finite numbers will do."""

from __future__ import annotations

import torch

from deltaproof.verify.observation import Observation, locate, number, same_bits


def exact(name: str, got: torch.Tensor, want: torch.Tensor, clause: str, hazard: str | None, what: str) -> Observation:
    """Compare two results bit by bit; ``what`` says what should have been the same.

    NaN and infinity fail even where both runs have them: the calls are legal, so neither may appear.
    """
    seen = same_bits(name, got, want, clause, hazard, what)
    bad = ~want.isfinite()
    if not seen.ok or not bool(bad.any()):
        return seen
    flat = int(bad.int().argmax())
    element = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), want.shape))
    text = f"{name}: {int(bad.sum())} of {want.numel()} elements are not finite"
    value = number(want[element].cpu())
    return Observation(False, clause, text, hazard, locate(name, element), value, "a finite number")


def snapshot(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU, which no later call can reach."""
    return {name: x.detach().cpu().clone() for name, x in results.items()}
