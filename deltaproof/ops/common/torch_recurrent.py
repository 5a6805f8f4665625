"""The recurrent delta rule in PyTorch: token by token, differentiable, any device.

Shape legend: N sequences, HV value heads, K key size, V value size; states are [N, HV, K, V] in fp32.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.packing import Packing
from deltaproof.ops.common.torch_chunk import start_state, store_final
from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE, operands, repeat_heads
from deltaproof.ops.common.torch_rule import TorchRule


def token_step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advance ``state`` [N, HV, K, V] by one token; q, k [N, HV, K], v [N, HV, V], g [N, HV] or [N, HV, K],
    beta [N, HV].

    Returns the output [N, HV, V] and the new state; ``state`` stays as it was.
    """
    fade = g.clamp(min=MIN_LOG_GATE).exp()[..., None]  # [N, HV, 1] or [N, HV, K, 1]
    decayed = state * (fade if g.dim() == 3 else fade[..., None])
    error = (v - (k.unsqueeze(-2) @ decayed).squeeze(-2)) * beta[..., None]
    state = decayed + k.unsqueeze(-1) * error.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2) * scale, state


def recurrent(call: SequenceCall, rule: TorchRule) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Form ``recurrent`` of the torch backend."""
    B, T, _, HV, _, V = call.dims
    packing = Packing.of((B, T), call.cu_seqlens, 1)
    live = packing.live(call)
    q, k, v, beta = operands(live.q, live.k, live.v, live.beta, call.options)
    heads = (repeat_heads(q, HV), repeat_heads(k, HV), v, rule.log_gate(live, torch.float32), beta)
    steps = zip(*(packing.gather(x)[:, 0].split(packing.active) for x in heads), strict=True)  # [count, HV, ...] each
    state = packing.sort(start_state(call))
    finished: list[torch.Tensor] = []
    outputs = []
    for count, rows in zip(packing.active, steps, strict=True):
        if count < state.shape[0]:
            finished.append(state[count:])
            state = state[:count]
        o, state = token_step(state, *rows, scale=call.options.scale)
        outputs.append(o)
    out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=q.device)
    if outputs:
        packing.scatter(torch.cat(outputs)[:, None], out)
    else:
        out.zero_()
    if not call.output_final_state:
        return out, None
    return out, store_final(call, packing.unsort(torch.cat([state, *reversed(finished)])))
