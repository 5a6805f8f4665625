"""Launching the kernel for speculative steps on Hopper, where it takes a call; else the Triton kernel does."""

from __future__ import annotations

import torch
import triton

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall
from deltaproof.ops.common.triton_host import speculative_arguments, speculative_constants, state_strides
from deltaproof.ops.common.triton_language import INTERPRETED

try:
    from deltaproof.ops.common.hopper_speculation import hopper_speculation_kernel
except ImportError:  # the matmuls it is made of came to Gluon with Triton 3.6
    hopper_speculation_kernel = None

BLOCK = 16
"""Value columns a program has."""
SIZES = (64, 128)
"""Key sizes it is made for."""
ROOM = 8
"""Drafts a slot may hold."""
_capability: dict[int | None, tuple[int, int]] = {}


def is_hopper(device: torch.device) -> bool:
    """Return whether kernels for compute capability 9.0 run on a device."""
    if device.type != "cuda":
        return False
    # a plain dict: asking CUDA each time costs as much as a launch
    if device.index not in _capability:
        _capability[device.index] = torch.cuda.get_device_capability(device)
    return _capability[device.index] == (9, 0)


def _copied(x: torch.Tensor, *strides: int) -> bool:
    """Return whether rows of x can be copied in pieces of 16 bytes, as Triton sees it from the launch."""
    return x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in strides)


def takes(call: DecodeCall) -> bool:
    """Return whether this kernel makes a call: a speculative step on Hopper, of the sizes, dtypes and layout it is for.

    It is for a gate a head, q and k in bfloat16, K of 64 or 128, V a multiple of 16, states [S, HV, V, K] of any dtype
    in slots whose strides are multiples of 16 elements, and at most eight drafts a slot.
    """
    drafts = call.drafts
    if drafts is None or INTERPRETED or hopper_speculation_kernel is None or not is_hopper(call.q.device):
        return False
    _, _, _, _, K, V = call.dims
    slot, head, of_k, of_v = state_strides(call.pool, call.options.layout)
    return (
        call.g.dim() == 3
        and call.options.layout is StateLayout.V_FIRST
        and call.q.dtype == call.k.dtype == torch.bfloat16
        and K in SIZES
        and V % BLOCK == 0
        and drafts.k.shape[2] <= ROOM
        and of_k == 1
        and _copied(call.pool, slot, head, of_v)
        and _copied(drafts.k, drafts.k.stride(0))
    )


def speculate(call: DecodeCall, o: torch.Tensor) -> None:
    """Make a speculative step that ``takes`` says yes to, into ``o`` [N, T, HV, V]."""
    N, _, _, HV, _, V = call.dims
    drafts = call.drafts
    assert drafts is not None and hopper_speculation_kernel is not None
    slot, head, _, of_v = state_strides(call.pool, call.options.layout)
    hopper_speculation_kernel[(N * HV * triton.cdiv(V, BLOCK),)](
        *speculative_arguments(call, o),
        slot,
        head,
        of_v,
        *(x.stride(0) for x in drafts),
        **speculative_constants(call),
        PAD=4 if drafts.k.shape[2] <= 4 else ROOM,
        BK=32,
        num_warps=1,
    )
