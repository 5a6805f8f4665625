"""The causal convolution by its definition: float64, token by token. Every backend is held to this.

For each channel, with w the W - 1 inputs before the first token (zeros for a fresh sequence) and x the inputs:

    y_t = f(bias + sum over j of weight[j] * (w, x)[t + j]),   j = 0 ... W - 1

so that weight[W - 1] meets x_t. f is silu or nothing. The window that is kept is the last W - 1 of (w, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall, time_first


@dataclass(frozen=True)
class ConvResult:
    """What a call must return and leave behind.

    Attributes:
        y: [N or B, T, C] in float64.
        magnitude: what the terms of each output add up to, absolutely, before silu; float64.
        writes: slot -> the window it must hold, in the call's layout, in the pool's dtype; others are unchanged.
    """

    y: torch.Tensor
    magnitude: torch.Tensor
    writes: dict[int, torch.Tensor]


def spans(call: ConvCall) -> list[tuple[int, slice]]:
    """Return the batch row and the tokens of every row or sequence."""
    B, T, _, _ = call.dims
    if isinstance(call, ConvPrefillCall) and call.cu_seqlens is not None:
        return [(0, slice(a, b)) for a, b in pairwise(call.cu_seqlens.tolist())]
    if isinstance(call, ConvDecodeCall) and call.num_tokens is not None:
        return [(n, slice(0, min(max(count, 0), T))) for n, count in enumerate(call.num_tokens.tolist())]
    return [(n, slice(0, T)) for n in range(B)]


def run(call: ConvCall) -> ConvResult:
    """Return what a call must return and write."""
    _, _, C, W = call.dims
    weight = call.weight.double()
    bias = torch.zeros(C, dtype=torch.float64) if call.bias is None else call.bias.double()
    y = torch.zeros(call.x.shape, dtype=torch.float64)
    magnitude = torch.zeros_like(y)
    writes: dict[int, torch.Tensor] = {}
    slots, writers = call.pool.shape[0], call.writes.tolist()
    for n, (b, span) in enumerate(spans(call)):
        slot = int(call.read_index[n])
        if not 0 <= slot < slots:
            continue
        window = time_first(call.pool[slot], call.options.layout).double()
        if call.has_initial_state is not None and not bool(call.has_initial_state[n]):
            window = torch.zeros_like(window)
        line = torch.cat([window, call.x[b, span].double()])  # [W - 1 + t, C]
        for t in range(span.stop - span.start):
            terms = weight.mT * line[t : t + W]  # [W, C]
            total = bias + terms.sum(0)
            y[b, span.start + t] = total * total.sigmoid() if call.options.silu else total
            magnitude[b, span.start + t] = bias.abs() + terms.abs().sum(0)
        if 0 <= writers[n] < slots:
            kept = line[line.shape[0] - (W - 1) :].to(call.pool.dtype)
            writes[writers[n]] = time_first(kept, call.options.layout)
    return ConvResult(y, magnitude, writes)


decode = prefill = run
