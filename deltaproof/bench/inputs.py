"""A workload's input sets on the device: whole calls, with their states.

Shape legend: T tokens, N sequences, R decode rows, S slots, HV value heads, K, V head sizes.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import Any

import torch

from deltaproof.bench.device import set_count
from deltaproof.bench.gates import GATES
from deltaproof.bench.tokens import Source, beforehand, raw
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload
from deltaproof.ops.common.calls import DecodeCall, Drafts, SequenceCall


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as "bfloat16"."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def call_bytes(call: SequenceCall | DecodeCall) -> int:
    """Return the bytes one call reads: its tokens and its states, of a pool the slots it names."""
    parts = [call.q, call.k, call.v, call.g, call.beta]
    if isinstance(call, SequenceCall):
        parts += [] if call.initial_state is None else [call.initial_state]
        return sum(x.nbytes for x in parts)
    slot = call.pool[0].nbytes if call.pool.shape[0] else 0
    return sum(x.nbytes for x in parts) + call.read_index.shape[0] * slot


def bounds(workload: SequenceWorkload, device: str) -> torch.Tensor | None:
    """Return cu_seqlens [N + 1] int64, or None for a single sequence."""
    if len(workload.lengths) == 1:
        return None
    return torch.tensor([0, *accumulate(workload.lengths)], dtype=torch.int64, device=device)


def sequence_call(
    operator: str, workload: SequenceWorkload, dtype: torch.dtype, source: Source, cu_seqlens: torch.Tensor | None
) -> SequenceCall:
    """Return one call of the chunk form, from an initial to a final state.

    Where the operator's models leave what comes before the rule to the kernel, the tokens are raw, and a bound on the
    gate is promised as ``safe_gate``.
    """
    gate, T = GATES[operator], workload.tokens
    if gate.raw_sequences:
        tokens = raw(gate, workload, 1, T, dtype, source, safe_gate=gate.lower_bound is not None)
    else:
        tokens = beforehand(workload, T, dtype, source)
    shape = (len(workload.lengths), workload.heads[1], *workload.layout.inner_shape(workload.K, workload.V))
    return SequenceCall(
        **tokens,
        initial_state=(0.1 * source.normal(*shape)).to(dtype_of(workload.state_dtype)),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )


def sequence_sets(
    operator: str, workload: SequenceWorkload, dtype: torch.dtype, device: str, cache_bytes: int
) -> list[SequenceCall]:
    """Return input sets that exceed twice the cache together; they share cu_seqlens, whose plan a backend may keep."""
    source, cu_seqlens = Source(device), bounds(workload, device)
    first = sequence_call(operator, workload, dtype, source, cu_seqlens)
    more = set_count(call_bytes(first), cache_bytes) - 1
    return [first, *(sequence_call(operator, workload, dtype, source, cu_seqlens) for _ in range(more))]


def output_gradients(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random gradients of o [1, T, HV, V] and of the final state, in their dtypes."""
    assert call.initial_state is not None
    source = Source(call.q.device.type)
    do, dht = source.normal(*call.v.shape).to(call.v.dtype), source.normal(*call.initial_state.shape)
    return do, dht.to(call.initial_state.dtype)


def _pool(workload: DecodeWorkload, slots: int, source: Source) -> torch.Tensor:
    """Return random states [S, HV, ...] with gaps between slots."""
    HV = workload.heads[1]
    stride = HV * workload.K * workload.V + workload.slot_padding
    memory = torch.zeros(slots * stride, dtype=dtype_of(workload.state_dtype), device=source.device)
    rows, columns = workload.layout.inner_shape(workload.K, workload.V)
    pool = memory.as_strided((slots, HV, rows, columns), (stride, rows * columns, columns, 1))
    for slot in pool:
        slot.copy_(0.1 * source.normal(*slot.shape))
    return pool


def decode_sets(
    operator: str, workload: DecodeWorkload, dtype: torch.dtype, device: str, cache_bytes: int
) -> list[DecodeCall]:
    """Return the calls that a model's layers make in one step, as many as exceed twice the cache together.

    A set is a layer: it has tokens, gate parameters, drafts and a pool [S, HV, ...] of its own. The rows' slots, in
    random order, and a speculative step's counts are the step's, in buffers that all layers read.
    """
    gate, source = GATES[operator], Source(device)
    HV, K, V, R = workload.heads[1], workload.K, workload.V, workload.rows
    shapes = gate.token_shapes(workload)
    token = dtype.itemsize * sum(map(prod, shapes.values()))
    layers = set_count(R * (HV * K * V * dtype_of(workload.state_dtype).itemsize + token), cache_bytes)
    slots = R + max(2, R // 8)
    T, D = max(workload.drafts, 1), workload.drafts
    step: dict[str, Any] = {"read_index": torch.randperm(slots, generator=source.generator, device=device)[:R].int()}
    if D:
        # half 0 is taken in and half 1 written, so that every call does the same
        step["draft_half"] = torch.zeros(R, dtype=torch.int32, device=device)
        step["accepted"] = torch.full((slots,), D, dtype=torch.int32, device=device)

    def drafts() -> Drafts:
        return Drafts(*(source.normal(slots, 2, D, *shapes[name]).to(dtype) for name in Drafts._fields))

    return [
        DecodeCall(
            **raw(gate, workload, R, T, dtype, source),
            pool=_pool(workload, slots, source),
            out=torch.empty(R, T, HV, V, dtype=dtype, device=device),
            drafts=drafts() if D else None,
            **step,
        )
        for _ in range(layers)
    ]


def dense_call(call: DecodeCall) -> SequenceCall:
    """Return the same token as a call of the recurrent form, from a dense copy of the rows' states."""
    return SequenceCall(
        call.q,
        call.k,
        call.v,
        call.g,
        call.beta,
        call.options,
        call.A_log,
        call.dt_bias,
        initial_state=call.pool[call.read_index.long()],
        output_final_state=True,
    )
