"""Where a speculative step's new drafts go, in the models of every operator, and two slips of it."""

from __future__ import annotations


class Halves:
    """The unbroken choice of half and slot."""

    def new_half(self, half: int) -> int:
        """Return the half that takes the row's own tokens."""
        return 1 - half if half in (0, 1) else 0

    def draft_slot(self, index: int, slots: int) -> int | None:
        """Return the slot whose drafts an index names, or None."""
        return index if 0 <= index < slots else None


class ReadHalf:
    """New drafts go where the old ones are still read."""

    def new_half(self, half: int) -> int:
        """Return the half that takes the row's own tokens."""
        return half if half in (0, 1) else 0


class WrappedDrafts:
    """The drafts of a padding row go to the last slot, where -1 points."""

    def draft_slot(self, index: int, slots: int) -> int | None:
        """Return the slot whose drafts an index names, or None."""
        return index % slots if -slots <= index < slots else None
