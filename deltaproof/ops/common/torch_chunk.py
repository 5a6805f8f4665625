"""The chunked delta rule in PyTorch: differentiable, any device.

Shape legend: N sequences, H query/key heads, HV value heads, C chunk size, K key size, V value size.
"""

from __future__ import annotations

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.packing import Packing
from deltaproof.ops.common.torch_inputs import k_first, operands
from deltaproof.ops.common.torch_rule import TorchRule


def chunk_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    *,
    scale: float,
    packing: Packing,
    out: torch.Tensor,
    rule: TorchRule,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Run fp32 operands [B, T, ...] chunk by chunk from ``state`` [N, HV, K, V].

    Returns ``out`` filled, the final states [N, HV, K, V] and, for every step, the states of the sequences still
    running after it (longest first).
    """
    steps = zip(*(packing.gather(x).split(packing.active) for x in (q, k, v, g, beta)), strict=True)
    running = packing.sort(state)
    finished: list[torch.Tensor] = []
    outputs, after = [], []
    for count, rows in zip(packing.active, steps, strict=True):
        if count < running.shape[0]:
            finished.append(running[count:])
            running = running[:count]
        # one step at a time: a library matmul over all chunks would choose its order of summation by their number
        step = rule.intra(*rows)
        missing = step.beta * (step.v - step.keys @ running)  # [count, HV, C, V]
        new_values = torch.linalg.solve_triangular(step.system, missing, upper=False, unitriangular=True)
        outputs.append(step.queries @ running + step.attention @ new_values)
        running = step.decay * running + step.kept.mT @ new_values
        after.append(running)
    if outputs:
        packing.scatter((scale * torch.cat(outputs)).transpose(1, 2), out)
    else:
        out.zero_()
    final = packing.unsort(torch.cat([running, *reversed(finished)]))
    return out, final, after


def chunk(call: SequenceCall, rule: TorchRule) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Form ``chunk`` of the torch backend."""
    B, T, _, HV, _, V = call.dims
    packing = Packing.of((B, T), call.cu_seqlens, call.options.chunk_size)
    live = packing.live(call)
    q, k, v, beta = operands(live.q, live.k, live.v, live.beta, call.options)
    g = rule.log_gate(live, torch.float32)
    out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=q.device)
    state, scale = start_state(call), call.options.scale
    out, final, after = chunk_delta_rule(q, k, v, g, beta, state, scale=scale, packing=packing, out=out, rule=rule)
    if call.chunk_states is not None:
        _store_chunk_states(call, call.chunk_states, [packing.sort(state), *after], packing)
    return out, store_final(call, final) if call.output_final_state else None


def _store_chunk_states(call: SequenceCall, into: torch.Tensor, before: list[torch.Tensor], packing: Packing) -> None:
    """Store the states before each step's chunks, of the sequences longest first, where ``chunk_states`` has them."""
    N, steps = call.sequences, len(packing.active)
    order = torch.arange(N, device=into.device) if packing.order is None else packing.order
    starts = torch.arange(N, device=into.device) * steps
    if call.cu_seqlens is not None:
        lengths = call.cu_seqlens[1:] - call.cu_seqlens[:-1]
        chunks = (lengths + packing.width - 1) // packing.width
        starts = chunks.cumsum(0) - chunks
    if into.shape[0] * into.shape[1] != sum(packing.active):
        rows = f"{sum(packing.active)} chunks, as cu_seqlens has"
        raise ContractError("chunk_states", rows, f"{into.shape[0] * into.shape[1]}")
    flat = into.view(-1, *into.shape[2:])
    for step, (count, states) in enumerate(zip(packing.active, before, strict=False)):
        flat[starts[order[:count]] + step] = k_first(states[:count], call.options.layout).to(into.dtype)


def start_state(call: SequenceCall) -> torch.Tensor:
    """Return the initial states, or zeros, [N, HV, K, V] in fp32."""
    _, _, _, HV, K, V = call.dims
    if call.initial_state is None:
        return torch.zeros(call.sequences, HV, K, V, dtype=torch.float32, device=call.device)
    # contiguous: a library matmul may sum in another order where strides differ (clause M3)
    return k_first(call.initial_state, call.options.layout).float().contiguous()


def store_final(call: SequenceCall, final: torch.Tensor) -> torch.Tensor:
    """Return ``final`` [N, HV, K, V] in the call's layout and dtype, in memory of its own."""
    dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
    view = k_first(final, call.options.layout)
    return call.allocate(view.shape, dtype=dtype, device=view.device).copy_(view)
