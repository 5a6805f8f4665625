"""Launch configurations of the chunk kernels for Hopper, from tables: never from timing, T or N (clause I2).

How sequences are split is the exception that the clause makes: without ``batch_invariant`` it looks at their number.
It never looks at lengths, so that tokens that are appended change no bit before them (clause I3).
"""

from __future__ import annotations

from dataclasses import dataclass

BUSY = 96
"""Programs of the walk from which on nothing is split: an H200 has 132 multiprocessors."""
SHORT, LONG = 32, 64
"""Chunks of a segment, of few heads and of many; 64 at most, as a bit says of each whether it forgets."""
MANY = 64
"""Programs of a segment's walk from which on it is long: two segments are then about as many as multiprocessors."""


@dataclass(frozen=True)
class WalkTable:
    """How the walk over chunks is launched.

    Attributes:
        BV: values a program has; four warps have 64 of them, eight 128.
        split: chunks of a segment that is walked beside the others; 0: sequences are walked whole.
    """

    BV: int
    split: int

    @classmethod
    def of(cls, V: int, HV: int, sequences: int) -> WalkTable:
        """Return the configuration for a value size, a number of value heads and one of sequences."""
        programs = HV * (V // 64)
        if sequences * programs >= BUSY:
            return cls(64, 0)
        return cls(64, LONG if programs >= MANY else SHORT)


def stitch_rows(V: int, HV: int) -> int:
    """Return the value rows that a program of ``stitch_kernel`` has; a row's bits are the same with either.

    A multiprocessor has room for one program, and is the faster the fewer rows it has, until programs have to queue.
    """
    return 16 if HV * V <= 16 * 128 else 32
