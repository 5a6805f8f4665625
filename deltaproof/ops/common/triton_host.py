"""What launching a kernel needs on the host."""

from __future__ import annotations

import torch
import triton

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.triton_places import zero_tail_kernel


def aligned(x: torch.Tensor) -> torch.Tensor:
    """Return x contiguous and on 16 bytes, as tensors from the allocator are: kernels are compiled for that alone."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def given(x: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """Return x, aligned, or for an argument that the kernel's flags leave out anything that is a tensor."""
    return stand_in if x is None else aligned(x)


def state_strides(state: torch.Tensor | None, layout: StateLayout) -> tuple[int, int, int, int]:
    """Return the strides of a state [N, HV, ., .] as (slot, head, k, v); zeros where there is none."""
    if state is None:
        return 0, 0, 0, 0
    slot, head, first, second = state.stride()
    return (slot, head, first, second) if layout is StateLayout.K_FIRST else (slot, head, second, first)


def zero_tail(o: torch.Tensor, cu_seqlens: torch.Tensor | None) -> None:
    """Zero the rows of o [1, T, HV, V] behind the last sequence of a pack, wherever that is."""
    T, width = o.shape[1], o.shape[2] * o.shape[3]
    block = 32
    if T and cu_seqlens is not None:
        zero_tail_kernel[(triton.cdiv(T, block),)](
            o, cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1, T, WIDTH=width, BLOCK=block
        )
