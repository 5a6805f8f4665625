"""Clause E1 for the causal convolution: what shapes, dtypes, strides and host data show, before any kernel runs.

Shape legend: N rows or sequences, B batch, T tokens, C channels, W width in tokens, S slots.
"""

from __future__ import annotations

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.contracts.operator import Operator
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall
from deltaproof.ops.common.checks import FLOATS, MAX_DECODE_TOKENS, check_tensor, checked_bounds
from deltaproof.ops.common.draft_checks import check_draft_values, check_drafts
from deltaproof.ops.common.slot_checks import INTS, check_slot_memory, check_writers, inside, share

MAX_WIDTH = 16


def _check_pool(call: ConvCall) -> None:
    _, _, C, W = call.dims
    layout, pool = call.options.layout, call.pool
    inner = layout.inner_shape(C, W)
    if isinstance(pool, torch.Tensor) and pool.dim() == 3 and pool.shape[1:] == inner[::-1] and C != W - 1:
        shape = f"shape [S, {inner[0]}, {inner[1]}] in layout {layout.value}"
        raise ContractError("pool", shape, f"shape {list(pool.shape)}, the other layout")
    check_tensor("pool", pool, ("S", *inner), FLOATS, call.x.device)
    check_slot_memory("pool", pool, "contiguous windows (a pool is never copied)")


def _check_operands(call: ConvCall) -> None:
    check_tensor("x", call.x, ("N", "T", "C") if isinstance(call, ConvDecodeCall) else ("B", "T", "C"), FLOATS)
    device, C = call.x.device, call.x.shape[2]
    if C < 1:
        raise ContractError("x", "at least one channel", f"C = {C}")
    check_tensor("weight", call.weight, (C, "W"), FLOATS, device)
    W = call.weight.shape[1]
    if not 2 <= W <= MAX_WIDTH:
        raise ContractError("weight", f"W from 2 to {MAX_WIDTH} tokens", f"W = {W}")
    if call.bias is not None:
        check_tensor("bias", call.bias, (C,), FLOATS, device)
    if torch.is_grad_enabled():
        for name in ("x", "weight", "bias"):
            value = getattr(call, name)
            if value is not None and value.requires_grad:
                wanted = "no gradient: pool forms are for inference (use torch.no_grad())"
                raise ContractError(name, wanted, "requires_grad=True")


def check(call: ConvCall, *, values: bool) -> None:
    """Check a call; with ``values`` also what the index tensors hold (syncs on a GPU).

    Raises:
        ContractError: an argument breaks the contract.
    """
    _check_operands(call)
    _check_pool(call)
    N, T, C, _ = call.dims
    device = call.x.device
    if isinstance(call, ConvPrefillCall):
        if call.cu_seqlens is not None:
            check_tensor("cu_seqlens", call.cu_seqlens, ("N + 1",), INTS, device)
            if call.cu_seqlens.shape[0] == 0:
                raise ContractError("cu_seqlens", "N + 1 bounds, at least one", "an empty tensor")
            if N != 1:
                raise ContractError("x", "B = 1 with cu_seqlens", f"B = {N}")
        N = call.sequences
    else:
        if not 1 <= T <= MAX_DECODE_TOKENS:
            raise ContractError("x", f"T from 1 to {MAX_DECODE_TOKENS} tokens a row", f"T = {T}")
        if call.num_tokens is not None:
            check_tensor("num_tokens", call.num_tokens, (N,), INTS, device)
        _check_out(call, (N, T, C))
        check_drafts(call, {"": (call.drafts, call.x)}, call.pool.shape[0])
    check_tensor("read_index", call.read_index, (N,), INTS, device)
    if call.write_index is not None:
        check_tensor("write_index", call.write_index, (N,), INTS, device)
    if call.has_initial_state is not None:
        check_tensor("has_initial_state", call.has_initial_state, (N,), (torch.bool,), device)
    if values:
        _check_values(call)


def _check_out(call: ConvDecodeCall, shape: tuple[int, int, int]) -> None:
    if call.out is None:
        return
    check_tensor("out", call.out, shape, (call.x.dtype,), call.x.device)
    if not call.out.is_contiguous():
        raise ContractError("out", "a contiguous tensor", f"strides {call.out.stride()}")
    for name in ("x", "weight", "bias", "pool"):
        other = getattr(call, name)
        if other is not None and share(call.out, other):
            raise ContractError("out", "memory of its own", f"memory of {name}")


def _check_values(call: ConvCall) -> None:
    if isinstance(call, ConvPrefillCall):
        if call.cu_seqlens is not None:
            checked_bounds(call.cu_seqlens, call.x.shape[1])
    elif call.num_tokens is not None:
        T = call.x.shape[1]
        wrong = (call.num_tokens < 0) | (call.num_tokens > T)
        if bool(wrong.any()):
            raise ContractError("num_tokens", f"values from 0 to T = {T}", int(call.num_tokens[wrong][0]))
    if isinstance(call, ConvDecodeCall) and call.drafts is not None:
        check_draft_values(call, call.pool.shape[0], call.drafts.shape[2])
    name = "read_index" if call.write_index is None else "write_index"
    slots, rows = call.pool.shape[0], torch.arange(call.read_index.shape[0], device=call.x.device)
    live = inside(call.read_index, slots)
    check_writers(slots, call.read_index, call.has_initial_state, call.writes, live, rows, name)


def check_call(operator: Operator, call: ConvCall, values: bool) -> None:
    """Check a call of either form; see ``check``."""
    check(call, values=values)
