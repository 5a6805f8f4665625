"""Launch configurations of the chunk kernels, from tables: never from timing, T or N (clause I2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common.triton_tables import Launch


@dataclass(frozen=True)
class ChunkTable:
    """Configurations of the chunk kernels, a function of head sizes, head count and dtype.

    Four warps or more are for whole rows of 64 and more, as with a gate a head: some warpgroup matmuls are compiled
    wrongly for others.
    """

    decay: Launch
    scores: Launch
    transform: Launch
    states: Launch
    outputs: Launch
    local: Launch
    reverse: Launch
    system: Launch
    pairs: Launch
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
            # no operand of its products is loaded as it is, and fp64 has no warpgroup matmuls
            first = Launch(16, BV, 8)
            second = Launch(min(BK, 32), min(BV, 32), 8) if single else small
            pairs = Launch(min(BK, 32), BV, 2)
            return cls(first, first, second, walk, small, small, walk, small, pairs, small)
        narrow = min(BV, 16 if K > 128 or HV <= 16 else 32)
        stages = 2 if K > 128 else 3
        return cls(
            decay=Launch(min(BK, 32), BV, 4),
            scores=Launch(min(BK, 32), BV, 8),
            transform=Launch(64, min(BV, 128), 4, unroll=4),
            states=Launch(BK, narrow, 4, stages if HV <= 32 else 2),
            outputs=Launch(64, min(BV, 128), 4, unroll=4),
            local=Launch(64, min(BV, 128), 4),
            reverse=Launch(BK, narrow, 4, stages),
            system=Launch(64, min(BV, 64), 4, unroll=4),
            pairs=Launch(32, BV, 2),
            keys=Launch(32, min(BV, 64), 8),
        )
