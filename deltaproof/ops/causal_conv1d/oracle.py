"""The causal convolution by its definition: float64, token by token. Every backend is held to this.

For each channel, with w the W - 1 inputs before the first token (zeros for a fresh sequence) and x the inputs:

    y_t = f(bias + sum over j of weight[j] * (w, x)[t + j]),   j = 0 ... W - 1

so that weight[W - 1] meets x_t. f is silu or nothing. The window that is kept is the last W - 1 of (w, x). In a
speculative step accepted drafts d lie between, (w, d, x), and the window that is kept is the last W - 1 of (w, d).
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


def replayed(call: ConvCall, row: int) -> torch.Tensor:
    """Return the accepted drafts of a row [a, C] that is not padding (clause P7)."""
    if not isinstance(call, ConvDecodeCall) or call.drafts is None:
        return call.x.new_zeros(0, call.x.shape[2])
    assert call.draft_half is not None and call.accepted is not None
    slot, half = int(call.writes[row]), int(call.draft_half[row])
    if half not in (0, 1) or not 0 <= slot < call.pool.shape[0]:
        return call.drafts[0, 0, :0]
    return call.drafts[slot, half, : min(max(int(call.accepted[slot]), 0), call.drafts.shape[2])]


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
        past = replayed(call, n)
        window = torch.cat([window, past.double()])
        line = torch.cat([window[window.shape[0] - (W - 1) :], call.x[b, span].double()])  # [W - 1 + t, C]
        for t in range(span.stop - span.start):
            terms = weight.mT * line[t : t + W]  # [W, C]
            total = bias + terms.sum(0)
            y[b, span.start + t] = total * total.sigmoid() if call.options.silu else total
            magnitude[b, span.start + t] = bias.abs() + terms.abs().sum(0)
        if 0 <= writers[n] < slots:
            # a speculative step keeps the window before its own tokens
            whole = window if isinstance(call, ConvDecodeCall) and call.drafts is not None else line
            kept = whole[whole.shape[0] - (W - 1) :].to(call.pool.dtype)
            writes[writers[n]] = time_first(kept, call.options.layout)
    return ConvResult(y, magnitude, writes)


decode = prefill = run
