"""Launch configurations of the chunk kernels for Hopper, from tables: never from timing, T or N (clause I2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """How the walk over chunks is launched.

    Attributes:
        BV: values a program has; four warps have 64 of them, eight 128.
        num_stages: chunks in shared memory at once.
    """

    BV: int
    num_stages: int


def walk(V: int, HV: int) -> Walk:
    """Return the configuration for a value size and a number of value heads."""
    return Walk(64, 2)
