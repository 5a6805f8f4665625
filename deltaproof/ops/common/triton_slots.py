"""Slots of a pool in Triton: what the kernels of a decode share, token by token or all at once."""

from __future__ import annotations

import triton
import triton.language as tl

AHEAD = tl.constexpr(8)
"""Rows between a program and the one whose slot it asks for: more than are under way at a time on an H200."""


@triton.jit
def asked_ahead(pool, read_index, row, slots, slot_stride, inside, asks, PROGRAMS: tl.constexpr):
    """Ask for a word of the slot that the row AHEAD rows later reads, where ``asks``; ``inside`` is its place there.

    A row has PROGRAMS programs. Slots lie in any order, so a row's first access to its slot waits until its memory
    page's address is found. This load finds it before. Nothing comes of the word, which may be written meanwhile. A
    prefetch would not do: on an H200 it is dropped where the address is not known yet.
    """
    there = asks & (tl.program_id(0) < tl.num_programs(0) - AHEAD * PROGRAMS)
    slot = tl.load(read_index + row + AHEAD, mask=there, other=-1).to(tl.int64)
    # volatile, or a load that nobody uses is left out
    tl.load(pool + slot * slot_stride + inside, mask=(slot >= 0) & (slot < slots), volatile=True)
