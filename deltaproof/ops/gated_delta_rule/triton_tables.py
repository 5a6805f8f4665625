"""Launch configurations of the chunk kernels, from tables: never from timing, T or N (clause I2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common.triton_tables import Launch


@dataclass(frozen=True)
class ChunkTable:
    """Configurations of the chunk kernels, a function of head sizes, head count and dtype.

    Triton 3.6.0 compiles some warpgroup matmuls wrongly: where a load in their loop is not pipelined (one stage, or
    rows that are no multiple of 16 bytes), and where a tile that was loaded is narrower than 64 columns. On an H200
    they read shared memory out of bounds. Four warps or more, for which it uses them, are for whole rows of 64 and
    more; anything else takes two. fp32 holds three pieces of every operand in registers, so its tiles are small.
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
        ragged = K * dtype.itemsize % 16 or V * dtype.itemsize % 16
        single = dtype == torch.float32
        plain = not ragged and min(BK, BV) >= 64
        if single or not plain:
            warps = 8 if plain else 2
            small = Launch(min(BK, 32), min(BV, 32), warps)
            walk = Launch(BK, 16, warps)
            # fp64, which has no warpgroup matmuls
            first = Launch(min(BK, 16), BV, 4) if single else Launch(min(BK, 32), BV, 1)
            second = Launch(min(BK, 32), min(BV, 32), 8) if single else small
            return cls(first, second, walk, small, small, walk, small, small)
        narrow = min(BV, 16 if K > 128 or HV <= 16 else 32)
        stages = 2 if K > 128 else 3
        return cls(
            prepare=Launch(64, BV, 1),
            transform=Launch(64, min(BV, 128), 4, unroll=4),
            states=Launch(BK, narrow, 4, stages),
            outputs=Launch(64, min(BV, 128), 4, unroll=4),
            local=Launch(min(BK, 128), min(BV, 64), 4),
            reverse=Launch(BK, narrow, 4, stages),
            scores=Launch(64, min(BV, 64), 4, unroll=4),
            keys=Launch(64, min(BV, 128), 4, unroll=4),
        )
