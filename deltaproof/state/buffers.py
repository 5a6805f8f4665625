"""The arrays of a step, in one block of bytes: one asynchronous copy moves them all, and addresses stay."""

from __future__ import annotations

import torch

NOWHERE = -1
"""The index that is no slot: padding."""
INTS = (
    "read_index", "write_index", "num_tokens", "cu_seqlens", "read_age", "write_age", "draft_half", "draft_slot",
    "draft_count",
)  # fmt: skip
ALIGNMENT = 16


class StepBuffers:
    """A plan's arrays on one device.

    Args:
        rows: R, the most rows of a step.
        device: where they lie.
        pinned: in pinned host memory.

    Attributes:
        block: all of them, uint8.
        read_index, write_index, num_tokens, draft_half: of each row, int32 [R + 1], the last one unused.
        cu_seqlens: int32 [R + 1].
        read_age, write_age: generations of the slots that each row reads and writes, int32 [R + 1].
        draft_slot, draft_count: slots and tokens of the last speculative step's rows, int32 [R + 1].
        has_initial_state: bool [R].
    """

    read_index: torch.Tensor
    write_index: torch.Tensor
    num_tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    read_age: torch.Tensor
    write_age: torch.Tensor
    draft_half: torch.Tensor
    draft_slot: torch.Tensor
    draft_count: torch.Tensor

    def __init__(self, rows: int, device: torch.device, *, pinned: bool) -> None:
        step = -(-(rows + 1) * 4 // ALIGNMENT) * ALIGNMENT
        self.block = torch.zeros((len(INTS) + 1) * step, dtype=torch.uint8, device=device, pin_memory=pinned)
        for at, name in enumerate(INTS):
            setattr(self, name, self.block[at * step : at * step + (rows + 1) * 4].view(torch.int32))
        flags = len(INTS) * step
        self.has_initial_state = self.block[flags : flags + rows].view(torch.bool)
