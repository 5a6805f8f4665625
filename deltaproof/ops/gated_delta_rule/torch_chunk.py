"""Chunked gated delta rule in PyTorch: differentiable, any device.

The derivation stands in this folder's README. Shape legend: R rows (chunks, ordered as in ops/common/packing),
N sequences, H query/key heads, G value heads a query head, HV = H * G, C chunk size, K key size, V value size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.packing import Packing
from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE, k_first, operands
from deltaproof.ops.gated_delta_rule.gate import log_gate


@dataclass(frozen=True)
class _Intra:
    """What a chunk needs that does not depend on the state."""

    u: torch.Tensor  # [R, HV, C, V] T @ (beta v)
    w: torch.Tensor  # [R, HV, C, K] T @ (beta exp(G) k)
    q: torch.Tensor  # [R, HV, C, K] exp(G) q
    k: torch.Tensor  # [R, HV, C, K] exp(G_end - G) k
    attention: torch.Tensor  # [R, HV, C, C] q . k, decayed, causal
    decay: torch.Tensor  # [R, HV, 1, 1] exp(G_end)


def _intra(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor) -> _Intra:
    R, C, H, K = q.shape
    HV, V = v.shape[2:]
    q, k = (x.transpose(1, 2)[:, :, None] for x in (q, k))  # [R, H, 1, C, K]
    v, g, beta = (x.transpose(1, 2).unflatten(1, (H, HV // H)) for x in (v, g, beta))  # [R, H, G, C(, V)]
    G = g.clamp(min=MIN_LOG_GATE).cumsum(-1)  # [R, H, G, C]
    lower = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    # masked before the exponential: above the diagonal the difference is positive and may overflow
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(~lower, float("-inf")).exp()  # [R, H, G, C, C]
    system = (k @ k.mT) * decay * beta[..., None]
    grown = G.exp()[..., None]  # [R, H, G, C, 1]
    right = torch.cat([v * beta[..., None], k * (beta[..., None] * grown)], -1)  # [R, H, G, C, V + K]
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split([V, K], -1)
    end = G[..., -1:]
    parts = (u, w, q * grown, k * (end - G).exp()[..., None], (q @ k.mT) * decay, end.exp()[..., None])
    return _Intra(*(x.flatten(1, 2) for x in parts))


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
        step = _intra(*rows)
        new_values = step.u - step.w @ running  # [count, HV, C, V]
        outputs.append(step.q @ running + step.attention @ new_values)
        running = step.decay * running + step.k.mT @ new_values
        after.append(running)
    if outputs:
        packing.scatter((scale * torch.cat(outputs)).transpose(1, 2), out)
    else:
        out.zero_()
    final = packing.unsort(torch.cat([running, *reversed(finished)]))
    return out, final, after


def chunk(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Form ``chunk`` of the torch backend."""
    B, T, _, HV, K, V = call.dims
    packing = Packing.of((B, T), call.cu_seqlens, call.options.chunk_size)
    live = packing.live(call)
    q, k, v, beta = operands(live.q, live.k, live.v, live.beta, call.options)
    g = log_gate(live, torch.float32)
    device = q.device
    layout = call.options.layout
    if call.initial_state is None:
        state = torch.zeros(call.sequences, HV, K, V, dtype=torch.float32, device=device)
    else:
        # a library matmul may sum in another order where strides differ (clause M3)
        state = k_first(call.initial_state, layout).float().contiguous()
    out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=device)
    out, final, _ = chunk_delta_rule(q, k, v, g, beta, state, scale=call.options.scale, packing=packing, out=out)
    return out, store_final(call, final) if call.output_final_state else None


def store_final(call: SequenceCall, final: torch.Tensor) -> torch.Tensor:
    """Return ``final`` [N, HV, K, V] in the call's layout and dtype, in memory of its own."""
    dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
    view = k_first(final, call.options.layout)
    return call.allocate(view.shape, dtype=dtype, device=view.device).copy_(view)
