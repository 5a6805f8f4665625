"""A speculative step as plain tokens: what the oracle and the torch backend make of drafts.

Shape legend: N rows, T tokens a row, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.slot_checks import inside
from deltaproof.ops.common.torch_pool import store_rows


def replayed(
    draft_half: torch.Tensor, accepted: torch.Tensor, kept: torch.Tensor, writes: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what each row replays and where its new tokens go, without a host sync.

    Args:
        draft_half: [N]; 0 or 1 is the half to replay, anything else replays nothing.
        accepted: [S].
        kept: bool [N], rows that keep a state.
        writes: [N].
        capacity: D.

    Returns:
        the number of tokens to replay [N], the half they are in [N] and the half of the new tokens [N], int64.
    """
    replays = kept & inside(draft_half, 2)
    slots = torch.where(replays, writes, 0).long()
    count = accepted.index_select(0, slots).long().clamp(0, capacity) if accepted.shape[0] else slots
    half = torch.where(replays, draft_half, 1).long()
    return torch.where(replays, count, 0), half, 1 - half


def drafted(part: torch.Tensor, writes: torch.Tensor, kept: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Return a half of each row's slot [N, D, ...] of a part [S, 2, D, ...]; rows that keep nothing get some slot's."""
    whole = part.index_select(0, torch.where(kept, writes, 0).long())  # [N, 2, D, ...]
    return whole[torch.arange(half.shape[0], device=half.device), half]


def keep_drafts(
    part: torch.Tensor, new: torch.Tensor, writes: torch.Tensor, kept: torch.Tensor, half: torch.Tensor,
    counts: torch.Tensor,
) -> None:  # fmt: skip
    """Store the first ``counts`` [N] of the rows' new tokens [N, T, ...] in a half of their slots, without a host sync.

    Rows that keep nothing repeat the store of the first row that does, or store slot 0 back as it is.
    """
    if part.shape[0] == 0 or writes.shape[0] == 0:
        return
    T = new.shape[1]
    whole = part.index_select(0, torch.where(kept, writes, 0).long())  # [N, 2, D, ...]
    rows = torch.arange(new.shape[0], device=new.device)
    held = whole[rows, half, :T]
    runs = (torch.arange(T, device=new.device) < counts[:, None]).view(*new.shape[:2], *(1,) * (new.dim() - 2))
    whole[rows, half, :T] = torch.where(runs, new, held)
    store_rows(part, writes, kept, whole)
