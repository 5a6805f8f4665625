"""Clauses E1, P3 and P5 for the pool forms: the pool's memory, the indices, and who writes which slot.

Shape legend: N rows or sequences, T tokens, S slots, HV value heads, K, V head sizes, M checkpoints a sequence.
"""

from __future__ import annotations

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.contracts.operator import Operator
from deltaproof.ops.common.calls import DecodeCall, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.common.checks import (
    ALIGNMENT,
    FLOATS,
    MAX_DECODE_TOKENS,
    _check_cu_seqlens,
    _check_options,
    _check_ranges,
    _check_tokens,
    check_sequence,
    check_tensor,
    checked_bounds,
)
from deltaproof.ops.common.draft_checks import check_draft_values, check_drafts
from deltaproof.ops.common.slot_checks import INTS, check_writers, inside, share


def _check_pool(call: DecodeCall | PrefillCall) -> None:
    _, _, _, HV, K, V = call.dims
    layout = call.options.layout
    rows, columns = layout.inner_shape(K, V)
    pool = call.pool
    if isinstance(pool, torch.Tensor) and pool.dim() == 4 and pool.shape[1:] == (HV, columns, rows) and rows != columns:
        shape = f"shape [S, {HV}, {rows}, {columns}] in layout {layout.value}"
        raise ContractError("pool", shape, f"shape {list(pool.shape)}, the other layout")
    check_tensor("pool", pool, ("S", HV, rows, columns), FLOATS, call.q.device)
    if (columns > 1 and pool.stride(3) != 1) or (rows > 1 and pool.stride(2) != columns):
        raise ContractError("pool", "a contiguous inner matrix (a pool is never copied)", f"strides {pool.stride()}")
    itemsize = pool.element_size()
    if pool.numel() == 0:
        return
    # an address is nothing that torch.compile can trace
    if not torch.compiler.is_dynamo_compiling() and pool.data_ptr() % ALIGNMENT:
        raise ContractError(
            "pool", f"memory aligned to {ALIGNMENT} bytes", f"address % {ALIGNMENT} = {pool.data_ptr() % ALIGNMENT}"
        )
    for name, dim in (("slot", 0), ("head", 1)):
        size, step = pool.shape[dim], pool.stride(dim)
        if size > 1 and step * itemsize % ALIGNMENT:
            raise ContractError(
                "pool", f"a {name} stride that is a multiple of {ALIGNMENT} bytes", f"{step * itemsize} bytes"
            )
        if size > 1 and abs(step) < rows * columns:
            raise ContractError("pool", f"{name}s that do not overlap", f"a {name} stride of {step} elements")
    if _interleaved_overlap(pool, rows * columns):
        steps = f"strides of {pool.stride(0)} and {pool.stride(1)} elements"
        raise ContractError("pool", "slots and heads that do not overlap", steps)
    if pool.requires_grad:
        raise ContractError("pool", "a tensor without gradient", "requires_grad=True")


def _interleaved_overlap(pool: torch.Tensor, size: int) -> bool:
    """Return whether a head of one slot shares memory with another head of another slot."""
    (slots, heads), (slot_step, head_step) = pool.shape[:2], pool.stride()[:2]
    if slots == 1 or heads == 1:
        return False
    if slot_step >= (heads - 1) * head_step + size or head_step >= (slots - 1) * slot_step + size:
        return False
    for head in range(1, heads):
        below = min(head * head_step // slot_step, slots - 1)
        near = (below, min(below + 1, slots - 1))
        if any(slot and abs(head * head_step - slot * slot_step) < size for slot in near):
            return True
    return False


def _check_no_grad(call: DecodeCall | PrefillCall) -> None:
    if not torch.is_grad_enabled():
        return
    for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias"):
        x = getattr(call, name)
        if x is not None and x.requires_grad:
            raise ContractError(
                name, "no gradient: pool forms are for inference (use torch.no_grad())", "requires_grad=True"
            )


def _check_indices(call: DecodeCall | PrefillCall, N: int) -> None:
    device = call.q.device
    check_tensor("read_index", call.read_index, (N,), INTS, device)
    if call.has_initial_state is not None:
        check_tensor("has_initial_state", call.has_initial_state, (N,), (torch.bool,), device)


def check_decode(call: DecodeCall, *, gate_per_channel: bool, values: bool) -> None:
    """Check a call of decode; with ``values`` also what the tensors hold (syncs on a GPU)."""
    _check_options(call)
    _check_tokens(call, gate_per_channel)
    N, T, _, HV, _, V = call.dims
    if not 1 <= T <= MAX_DECODE_TOKENS:
        raise ContractError("q", f"T from 1 to {MAX_DECODE_TOKENS} tokens a row", f"T = {T}")
    _check_pool(call)
    _check_no_grad(call)
    _check_indices(call, N)
    device = call.q.device
    if call.write_index is not None:
        ragged = isinstance(call.write_index, torch.Tensor) and call.write_index.dim() == 2
        check_tensor("write_index", call.write_index, (N, T) if ragged else (N,), INTS, device)
    if call.num_tokens is not None:
        check_tensor("num_tokens", call.num_tokens, (N,), INTS, device)
    if call.out is not None:
        check_tensor("out", call.out, (N, T, HV, V), (call.v.dtype,), device)
        if not call.out.is_contiguous():
            raise ContractError("out", "a contiguous tensor", f"strides {call.out.stride()}")
        shared = [name for name in ("q", "k", "v", "g", "beta", "pool") if share(call.out, getattr(call, name))]
        if shared:
            raise ContractError("out", "memory of its own", f"memory of {shared[0]}")
    if call.drafts is not None and not isinstance(call.drafts, Drafts):
        raise ContractError("drafts", "Drafts(k, v, g, beta) or None", type(call.drafts).__name__)
    names = () if call.drafts is None else Drafts._fields
    parts = {name: (getattr(call.drafts, name), getattr(call, name)) for name in names}
    check_drafts(call, parts, call.pool.shape[0])
    if values:
        _check_decode_values(call)


def _check_decode_values(call: DecodeCall) -> None:
    N, T, *_ = call.dims
    slots = call.pool.shape[0]
    live = inside(call.read_index, slots)
    runs = live[:, None].expand(N, T)
    if call.num_tokens is not None:
        wrong = (call.num_tokens < 0) | (call.num_tokens > T)
        if bool(wrong.any()):
            raise ContractError("num_tokens", f"values from 0 to T = {T}", int(call.num_tokens[wrong][0]))
        runs = runs & (torch.arange(T, device=live.device) < call.num_tokens[:, None])
    _check_ranges(call, call.g[runs], call.beta[runs])
    if call.drafts is not None:
        check_draft_values(call, slots, call.drafts.k.shape[2])
    writes = call.writes
    kept = runs if writes.dim() == 2 else live
    rows = torch.arange(N, device=live.device)
    name = "read_index" if call.write_index is None else "write_index"
    check_writers(
        call.pool.shape[0],
        call.read_index,
        call.has_initial_state,
        writes,
        kept,
        rows[:, None].expand(N, T) if writes.dim() == 2 else rows,
        name,
    )


def check_prefill(call: PrefillCall, *, gate_per_channel: bool, values: bool) -> None:
    """Check a call of prefill; with ``values`` also what the tensors hold (syncs on a GPU)."""
    _check_options(call)
    _check_tokens(call, gate_per_channel)
    _check_cu_seqlens(call)
    _check_pool(call)
    _check_no_grad(call)
    N = call.sequences
    _check_indices(call, N)
    device = call.q.device
    if call.write_index is not None:
        check_tensor("write_index", call.write_index, (N,), INTS, device)
    if (call.checkpoint_every is None) != (call.checkpoint_index is None):
        given = "checkpoint_index" if call.checkpoint_every is None else "checkpoint_every"
        raise ContractError("checkpoint_every", "checkpoint_every and checkpoint_index together", f"only {given}")
    if call.checkpoint_index is not None:
        check_tensor("checkpoint_index", call.checkpoint_index, (N, "M"), INTS, device)
        every, chunk = call.checkpoint_every, call.options.chunk_size
        if not isinstance(every, int) or every < 1 or every % chunk:
            raise ContractError("checkpoint_every", f"a positive multiple of chunk_size = {chunk}", every)
    if values:
        _check_prefill_values(call)


def _check_prefill_values(call: PrefillCall) -> None:
    end = None if call.cu_seqlens is None else checked_bounds(call.cu_seqlens, call.q.shape[1])[-1]
    live = inside(call.read_index, call.pool.shape[0])
    T, N = call.q.shape[1], call.sequences
    if call.cu_seqlens is None:
        tokens = live[:, None].expand(N, T)
        lengths = torch.full_like(call.read_index, T)
    else:
        assert end is not None
        lengths = call.cu_seqlens[1:] - call.cu_seqlens[:-1]
        owned = live.repeat_interleave(lengths)
        tokens = torch.cat([owned, owned.new_zeros(T - end)])[None]
    _check_ranges(call, call.g[tokens], call.beta[tokens])
    writes = call.read_index if call.write_index is None else call.write_index
    rows = torch.arange(N, device=live.device)
    name = "read_index" if call.write_index is None else "write_index"
    check_writers(call.pool.shape[0], call.read_index, call.has_initial_state, writes, live, rows, name)
    if call.checkpoint_index is not None:
        assert call.checkpoint_every is not None
        M = call.checkpoint_index.shape[1]
        reached = lengths[:, None] >= (torch.arange(M, device=live.device) + 1) * call.checkpoint_every
        writes = torch.cat([writes.long(), call.checkpoint_index.flatten().long()])
        kept = torch.cat([live, (live[:, None] & reached).flatten()])
        rows = torch.cat([rows, rows[:, None].expand(N, M).flatten()])
        check_writers(
            call.pool.shape[0], call.read_index, call.has_initial_state, writes, kept, rows, "checkpoint_index"
        )


def check_call(operator: Operator, call: SequenceCall | DecodeCall | PrefillCall, values: bool) -> None:
    """Check a call of any form of a delta-rule operator; see the check of each form."""
    if isinstance(call, DecodeCall):
        check_decode(call, gate_per_channel=operator.gate_per_channel, values=values)
    elif isinstance(call, PrefillCall):
        check_prefill(call, gate_per_channel=operator.gate_per_channel, values=values)
    else:
        check_sequence(call, gate_per_channel=operator.gate_per_channel, values=values)
