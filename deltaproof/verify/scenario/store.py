"""What the engine asks of whoever keeps its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from deltaproof.ops.common.calls import Drafts
from deltaproof.verify.scenario.requests import Kept, Request

SIZES = (1, 2, 4, 8)
"""Padded numbers of rows, as graphs were captured at them."""


class Full(Exception):
    """No slot is free."""


class Store(ABC):
    """Slots, and who has which.

    Attributes:
        named: what the store itself found wrong, in words; the first of it.
    """

    named: str | None = None

    @abstractmethod
    def states(self, layer: int) -> torch.Tensor:
        """Return a layer's states [S, H, K, V]."""

    @abstractmethod
    def windows(self, layer: int) -> torch.Tensor:
        """Return a layer's windows of the convolution [S, C, TAPS - 1]."""

    def drafts(self, layer: int) -> tuple[Drafts, torch.Tensor] | None:
        """Return a layer's drafts of the delta rule, and of the convolution [S, 2, D, C]; None where there are none."""
        return None

    @abstractmethod
    def admit(self, request: Request, kept: Kept | None) -> None:
        """Give a request a state: zero, or that of a kept prefix; raise Full where there is no slot."""

    @abstractmethod
    def plan(self, form: str, rows: Sequence[Request], counts: Sequence[int]) -> dict[str, Any]:
        """Return what the operators take of a step; rows are padded to one of ``SIZES``."""

    @abstractmethod
    def keep(self, request: Request) -> Any:
        """Keep a request's state as it is, for others to start from; return its handle or raise Full."""

    def idle(self, handle: Any) -> bool:
        """Return whether nobody is about to read what ``keep`` returned, so that ``drop`` may be called."""
        return True

    @abstractmethod
    def drop(self, handle: Any) -> None:
        """Give back what ``keep`` returned."""

    @abstractmethod
    def release(self, request: Request, *, aborted: bool) -> None:
        """Give back what a request has."""

    @abstractmethod
    def others(self, rows: Sequence[Request]) -> list[int]:
        """Return the slots that requests or the prefix cache hold, but for those of ``rows``."""

    @abstractmethod
    def content(self, slots: Sequence[int]) -> torch.Tensor:
        """Return the bits of slots in every layer and field, int32 [slots, ...], copied."""

    @abstractmethod
    def settle(self, request: Request, stand: int, count: int, drafts: int) -> int:
        """Note which tokens of a speculative step stand; return how many of them the request's state has seen.

        Args:
            request: whose step it was.
            stand: tokens that stand, 1 or more.
            count: tokens of the step.
            drafts: how many of them were drafted.
        """

    def watch(self) -> bool:
        """Look for stray writes after a step; return whether the store can no longer be trusted."""
        return False


def padded(rows: int) -> int:
    """Return the size that so many rows are padded to."""
    return min(size for size in SIZES if size >= rows)
