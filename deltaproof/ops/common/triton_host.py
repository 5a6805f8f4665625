"""What launching a kernel needs on the host."""

from __future__ import annotations

from typing import Any

import torch
import triton

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleCall
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


def speculative_arguments(call: DecodeCall, o: torch.Tensor) -> tuple[Any, ...]:
    """Return what every kernel for speculative steps takes first: tensors, scale and counts, up to the strides."""
    assert call.drafts is not None
    return (
        *(aligned(x) for x in (call.q, call.k, call.v, call.g, call.beta)),
        given(call.A_log, o),
        given(call.dt_bias, o),
        o,
        call.pool,
        *call.drafts,
        aligned(call.read_index),
        aligned(call.writes),
        given(call.num_tokens, o),
        given(call.has_initial_state, o),
        given(call.draft_half, o),
        given(call.accepted, o),
        call.options.scale,
        call.dims[1],
        call.drafts.k.shape[2],
        call.pool.shape[0],
    )


def speculative_constants(call: DecodeCall) -> dict[str, Any]:
    """Return the constants of every kernel for speculative steps: sizes, and what is asked for."""
    _, _, H, HV, K, V = call.dims
    options = call.options
    return {
        "H": H,
        "HV": HV,
        "K": K,
        "V": V,
        "RAGGED": call.num_tokens is not None,
        "FRESH": call.has_initial_state is not None,
        "NORMALIZE": options.normalize_qk,
        "GATE": options.gate_in_kernel,
        "DT_BIAS": call.dt_bias is not None,
        "BETA_SIGMOID": options.beta_sigmoid,
        "NEG_EIGVAL": options.neg_eigval,
    }


def gate_constants(call: DeltaRuleCall) -> dict[str, Any]:
    """Return the constants of every kernel that takes gates a channel."""
    options = call.options
    return {
        "GATE": options.gate_in_kernel,
        "RATE": options.gate_in_kernel and call.A_log is not None,
        "DT_BIAS": call.dt_bias is not None,
        "LOWER": options.lower_bound or 0.0,
    }


def token_constants(call: DeltaRuleCall) -> dict[str, Any]:
    """Return the constants of every kernel that goes token by token, with gates of either kind."""
    return gate_constants(call) | {"PER_CHANNEL": call.g.dim() == 4}


def zero_tail(o: torch.Tensor, cu_seqlens: torch.Tensor | None) -> None:
    """Zero the rows of o [1, T, HV, V] behind the last sequence of a pack, wherever that is."""
    T, width = o.shape[1], o.shape[2] * o.shape[3]
    block = 32
    if T and cu_seqlens is not None:
        zero_tail_kernel[(triton.cdiv(T, block),)](
            o, cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1, T, WIDTH=width, BLOCK=block
        )
