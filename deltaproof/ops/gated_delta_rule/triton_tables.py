"""Launch configurations of the Triton kernels, from tables: never from timing, T or N (clause I2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.contracts.conventions import StateLayout


@dataclass(frozen=True)
class Launch:
    """Tile sizes over K and V, warps and pipeline stages of one kernel."""

    BK: int
    BV: int
    warps: int
    stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Return the launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class ChunkTable:
    """Configurations of the chunk kernels, a function of head sizes, head count and dtype.

    Triton 3.6.0 compiles a warpgroup matmul in a loop wrongly where a load of that loop is not pipelined (one stage, or
    rows whose size is no multiple of 16 bytes): it reads shared memory out of bounds on an H200. Such rows take two
    warps, for which it uses the older instruction; loops keep two stages at least.
    """

    prepare: Launch
    transform: Launch
    states: Launch
    outputs: Launch
    local: Launch
    reverse: Launch
    scores: Launch
    keys: Launch

    @classmethod
    def of(cls, K: int, V: int, HV: int, dtype: torch.dtype) -> ChunkTable:
        """Return the configurations of one shape."""
        BK, BV = (max(16, triton.next_power_of_2(size)) for size in (K, V))
        single = dtype == torch.float32
        ragged = K * dtype.itemsize % 16 or V * dtype.itemsize % 16
        warps = 2 if ragged else 8 if single else 4
        wide = K > 128 or single
        narrow = min(BV, 16 if wide or HV <= 16 else 32)
        half = 32 if single or ragged else 64
        inside = Launch(min(BK, half), min(BV, half), warps)
        plain = single or ragged
        return cls(
            prepare=Launch(min(BK, 32 if single else 64), BV, 1),
            transform=inside if plain else Launch(min(BK, 64), min(BV, 128), warps),
            states=Launch(BK, narrow, warps, 2 if wide else 3),
            outputs=inside if plain else Launch(min(BK, 64), min(BV, 128), warps),
            local=inside if plain else Launch(min(BK, 128), min(BV, 64), warps),
            reverse=Launch(BK, narrow, warps, 2 if wide else 3),
            scores=inside,
            keys=inside if plain else Launch(min(BK, 64), min(BV, 128), warps),
        )


def recurrence(K: int, V: int, layout: StateLayout) -> Launch:
    """Return the configuration of the recurrent kernel from head sizes and layout.

    A block is contiguous in memory in layout v_first, so small blocks read at full speed; in k_first its lines are BV
    long. On an H200, K = V = 128: 8 x 128 on one warp, and 64 x 128 on four, were the fastest of eleven.
    """
    BK = triton.next_power_of_2(K)
    wide = layout is StateLayout.K_FIRST
    BV = min(triton.next_power_of_2(V), max(1, (8192 if wide else 1024) // BK), 64)
    return Launch(BK, BV, 4 if wide and BK * BV > 1024 else 1)


SEGMENT = 32
"""Tokens between the states that the recurrent backward keeps."""


def recurrence_backward(K: int, V: int) -> Launch:
    """Return the configuration of the recurrent backward kernel, which holds two states in registers."""
    BK = triton.next_power_of_2(K)
    return Launch(BK, min(triton.next_power_of_2(V), max(1, 4096 // BK)), 4)
