"""Slots that lie so far apart that slot times stride does not fit into 32 bits; only the touched pages exist."""

from __future__ import annotations

import torch

from deltaproof.verify.probes.large_offsets import large_memory

STRIDE = 2**29
"""Elements between slots: the fourth is 2**31 elements from the first, and in 32 bits the eighth is the first."""
FRONT = 2**31
"""Elements before the first slot, where offsets that have become negative point."""


def spread_rows(rows: int, row: int) -> torch.Tensor:
    """Return rows [rows, row] of float32 zeros, ``STRIDE`` elements apart, with ``FRONT`` elements before them.

    Raises:
        Skipped: this system does not give so much address space.
    """
    memory = large_memory(FRONT + (rows - 1) * STRIDE + row, torch.float32, "cpu")
    return memory.as_strided((rows, row), (STRIDE, 1), FRONT)
