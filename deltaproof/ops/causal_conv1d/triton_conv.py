"""Launching the convolution's kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall
from deltaproof.ops.causal_conv1d.triton_kernels import (
    conv_decode_kernel,
    conv_outputs_kernel,
    conv_speculation_kernel,
    conv_windows_kernel,
)
from deltaproof.ops.common.triton_host import aligned, given

CHANNELS = 256
"""Channels a program of decode has."""
TILE = (16, 64)
"""Tokens and channels a program of prefill has."""


def _steps(call: ConvCall) -> tuple[int, int, int]:
    """Return the pool's strides as (slot, time, channel)."""
    slot, outer, inner = call.pool.stride()
    return (slot, inner, outer) if call.options.layout is ConvLayout.CHANNELS_FIRST else (slot, outer, inner)


def _common(call: ConvCall, block: int) -> dict[str, Any]:
    _, _, C, W = call.dims
    return {"C": C, "W": W, "BC": min(block, triton.next_power_of_2(C)), "FRESH": call.has_initial_state is not None}


def decode(call: ConvDecodeCall, out: torch.Tensor) -> None:
    """Run the form ``decode`` into ``out`` [N, T, C]."""
    N, T, C, W = call.dims
    if N == 0:
        return
    common = _common(call, CHANNELS)
    drafts = call.drafts
    # a speculative step has a kernel of its own, which takes the drafts too
    kernel = conv_decode_kernel if drafts is None else conv_speculation_kernel
    kernel[(N * triton.cdiv(C, common["BC"]),)](
        aligned(call.x),
        aligned(call.weight),
        given(call.bias, out),
        out,
        call.pool,
        *([] if drafts is None else [drafts]),
        aligned(call.read_index),
        aligned(call.writes),
        given(call.num_tokens, out),
        given(call.has_initial_state, out),
        *([] if drafts is None else [given(call.draft_half, out), given(call.accepted, out)]),
        T,
        *([] if drafts is None else [drafts.shape[2]]),
        call.pool.shape[0],
        *_steps(call),
        *([] if drafts is None else [drafts.stride(0)]),
        **common,
        BW=triton.next_power_of_2(W - 1),
        RAGGED=call.num_tokens is not None,
        BIAS=call.bias is not None,
        SILU=call.options.silu,
        num_warps=4,
    )


def prefill(call: ConvPrefillCall, out: torch.Tensor) -> None:
    """Run the form ``prefill`` into ``out`` [B, T, C]."""
    B, T, C, W = call.dims
    N = call.sequences
    x, varlen = aligned(call.x), call.cu_seqlens is not None
    if N == 0:
        out.zero_()
        return
    common = _common(call, TILE[1])
    blocks = triton.cdiv(C, common["BC"])
    read, fresh, bounds = aligned(call.read_index), given(call.has_initial_state, out), given(call.cu_seqlens, out)
    if B * T:
        conv_outputs_kernel[(triton.cdiv(B * T, TILE[0]) * blocks,)](
            x,
            aligned(call.weight),
            given(call.bias, out),
            out,
            call.pool,
            read,
            fresh,
            bounds,
            N,
            T,
            call.pool.shape[0],
            *_steps(call),
            N.bit_length(),
            **common,
            BT=TILE[0],
            VARLEN=varlen,
            BIAS=call.bias is not None,
            SILU=call.options.silu,
            num_warps=4,
        )
    conv_windows_kernel[(N * blocks,)](
        x,
        call.pool,
        read,
        aligned(call.writes),
        fresh,
        bounds,
        T,
        call.pool.shape[0],
        *_steps(call),
        **common,
        BW=triton.next_power_of_2(W - 1),
        VARLEN=varlen,
        num_warps=4,
    )
