"""Slips in slot indices that any operator on a pool can have: a class before the model of its backend.

Shape legend: P programs or rows.
"""

from __future__ import annotations

import torch


class AnyIndex:
    """Every index is an address: -1 is the memory just before the pool."""

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which slot indices [P] name a slot."""
        return torch.ones_like(index, dtype=torch.bool)


class Clamped:
    """A negative index is moved to slot 0."""

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which slot indices [P] name a slot."""
        return index < slots

    def slot_of(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the slots [P] that indices address."""
        return index.long().clamp(min=0)


class Wrapped:
    """A negative index counts from the end, as Python's does."""

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which slot indices [P] name a slot."""
        return (index >= -slots) & (index < slots)

    def slot_of(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the slots [P] that indices address."""
        return torch.where(index < 0, index.long() + slots, index.long())


class Unbounded:
    """Only negative indices are padding."""

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which slot indices [P] name a slot."""
        return index >= 0
