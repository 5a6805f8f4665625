"""Launch configurations of the Triton kernels, from tables: never from timing, T or N (clause I2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.triton_language import INTERPRETED


@dataclass(frozen=True)
class Launch:
    """Tile sizes over K and V, warps, pipeline stages and how often loops over tiles are unrolled."""

    BK: int
    BV: int
    warps: int
    stages: int = 2
    unroll: int = 1

    @property
    def tiles(self) -> dict[str, int]:
        """Return the constants of a kernel that loops over tiles."""
        return {"BK": self.BK, "BV": self.BV, "UNROLL": self.unroll}

    @property
    def options(self) -> dict[str, int]:
        """Return the launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def recurrence(K: int, V: int, layout: StateLayout, pool: torch.dtype | None) -> Launch:
    """Return the configuration of the recurrent kernel from head sizes, a state's layout and a pool's dtype, if any.

    A block is contiguous in memory in layout v_first, so small blocks read at full speed; in k_first its lines are BV
    long. On an H200, K = V = 128: 8 x 128 on one warp, and 64 x 128 on four, were the fastest of eleven. A pool of two
    bytes an element needs more of them under way: 32 x 128 on two warps, of seven.
    """
    BK = triton.next_power_of_2(K)
    wide = layout is StateLayout.K_FIRST
    narrow = pool is not None and pool.itemsize == 2
    most, warps = (8192, 4) if wide else (4096, 2) if narrow else (1024, 1)
    BV = min(triton.next_power_of_2(V), max(1, most // BK), 64 if BK >= 128 else 32)
    return Launch(BK, BV, warps if BK * BV > 1024 else 1)


def ahead(K: int, layout: StateLayout, pool: torch.dtype) -> int:
    """Return how many rows later the row is whose slot a decode's program asks for early, 0 for none.

    On an H200 fp32 states in layout v_first take 1 % less time for it from rows x HV of 2048 on, and 2 to 8 % less
    below; from 4 rows on the number changes nothing. Others lose: k_first 0.5 %, K = 64 up to 5 %, 2-byte states 10 %.
    It is an instruction of NVIDIA's, which the interpreter does not know.
    """
    gains = pool == torch.float32 and layout is StateLayout.V_FIRST and K > 64
    return 8 if gains and not INTERPRETED and torch.version.hip is None else 0


def speculation(K: int, V: int, layout: StateLayout) -> Launch:
    """Return the configuration of a speculative step's kernel, which holds more beside the state."""
    return recurrence(K, V, layout, None)


SEGMENT = 32
"""Tokens between the states that the recurrent backward keeps."""


def recurrence_backward(K: int, V: int) -> Launch:
    """Return the configuration of the recurrent backward kernel, which holds two states in registers."""
    BK = triton.next_power_of_2(K)
    return Launch(BK, min(triton.next_power_of_2(V), max(1, 4096 // BK)), 8)
