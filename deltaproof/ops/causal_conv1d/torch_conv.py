"""The causal convolution in PyTorch: products and sums of single elements, so a row's bits depend on nothing else.

Shape legend: N rows or sequences, B batch, T tokens, C channels, W width in tokens, S slots.
"""

from __future__ import annotations

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, time_first
from deltaproof.ops.common.drafts import drafted, keep_drafts, replayed
from deltaproof.ops.common.slot_checks import inside
from deltaproof.ops.common.torch_pool import store_rows


def _spans(call: ConvCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first token of every row or sequence in [B * T] and its length, both int64 [N]."""
    B, T, _, _ = call.dims
    device = call.x.device
    if not isinstance(call, ConvDecodeCall) and call.cu_seqlens is not None:
        bounds = call.cu_seqlens.long().clamp(0, T)
        # unchecked bounds stay inside the tokens, in order
        bounds = bounds.cummax(0).values
        return bounds[:-1], bounds[1:] - bounds[:-1]
    first = torch.arange(B, device=device) * T
    if isinstance(call, ConvDecodeCall) and call.num_tokens is not None:
        return first, call.num_tokens.long().clamp(0, T)
    return first, torch.full_like(first, T)


@torch.no_grad()
def run(call: ConvCall, out: torch.Tensor) -> None:
    """Write the outputs into ``out`` [B, T, C], and the windows into the pool."""
    B, T, C, W = call.dims
    slots, N = call.pool.shape[0], call.read_index.shape[0]
    out.zero_()
    if N == 0 or slots == 0:
        return
    x = call.x.reshape(B * T, C)
    live = inside(call.read_index, slots)
    used = live if call.has_initial_state is None else live & call.has_initial_state
    held = call.pool.index_select(0, torch.where(used, call.read_index, 0).long())
    # what a fresh or padding row's slot holds is selected away, never multiplied
    window = torch.where(used[:, None, None], time_first(held, call.options.layout), 0)  # [N, W - 1, C]
    first, length = _spans(call)
    if isinstance(call, ConvDecodeCall) and call.drafts is not None:
        # the window moves on through the accepted drafts, is kept, and is what the row's own tokens see
        window = _replay(call, window, live)
        store_rows(call.pool, call.writes, live, time_first(window.to(call.pool.dtype), call.options.layout))
        _outputs(call, out, x, window, first, length, live)
        return
    if B * T:
        _outputs(call, out, x, window, first, length, live)
    _keep(call, x, window, first, length, live)


def _replay(call: ConvDecodeCall, window: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return the windows [N, W - 1, C] after the accepted drafts, in fp32, and keep the rows' tokens as new drafts."""
    assert call.drafts is not None and call.draft_half is not None and call.accepted is not None
    N, T, _, W = call.dims
    kept = live & inside(call.writes, call.pool.shape[0])
    count, half, other = replayed(call.draft_half, call.accepted, kept, call.writes, call.drafts.shape[2])
    line = torch.cat([window.float(), drafted(call.drafts, call.writes, kept, half).float()], 1)
    place = count[:, None] + torch.arange(W - 1, device=line.device)  # [N, W - 1]
    counts = torch.full_like(count, T) if call.num_tokens is None else call.num_tokens
    keep_drafts(call.drafts, call.x, call.writes, kept, other, counts)
    return line.gather(1, place[..., None].expand(-1, -1, line.shape[2]))


def _outputs(
    call: ConvCall,
    out: torch.Tensor,
    x: torch.Tensor,
    window: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    live: torch.Tensor,
) -> None:
    B, T, C, W = call.dims
    at = torch.arange(B * T, device=x.device)
    # the last row or sequence that starts at or before a token and is not empty
    owner = torch.bucketize(at, first + length, right=True).clamp(max=first.shape[0] - 1)
    if isinstance(call, ConvDecodeCall) or call.cu_seqlens is None:
        owner = at // T
    place = at - first[owner]
    inner = (place >= 0) & (place < length[owner]) & live[owner]
    weight = call.weight.float()
    total = torch.zeros(B * T, C, device=x.device) if call.bias is None else call.bias.float().expand(B * T, C)
    for j in range(W):
        back = place - (W - 1) + j
        # both sides are read inside their memory, and one is taken
        past = window[owner, (back + W - 1).clamp(0, W - 2)]
        now = x[(at - (W - 1) + j).clamp(min=0)]
        term = torch.where((back < 0)[:, None], past.float(), now.float())
        total = total + weight[:, j] * term
    if call.options.silu:
        total = total / (1 + torch.exp(-total))
    out.view(B * T, C).copy_(torch.where(inner[:, None], total, 0))


def _keep(
    call: ConvCall,
    x: torch.Tensor,
    window: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    live: torch.Tensor,
) -> None:
    """Store the windows after the last tokens."""
    W, pool = call.weight.shape[1], call.pool
    place = length[:, None] - (W - 1) + torch.arange(W - 1, device=x.device)  # [N, W - 1]
    past = window.gather(1, (place + W - 1).clamp(0, W - 2)[..., None].expand(-1, -1, window.shape[2]))
    if x.shape[0]:
        now = x[(first[:, None] + place).clamp(0, x.shape[0] - 1)]
        past = torch.where((place < 0)[..., None], past.to(pool.dtype), now.to(pool.dtype))
    store_rows(pool, call.writes, live, time_first(past.to(pool.dtype), call.options.layout))
