"""Clause E1 for speculative steps of any operator on a pool: the drafts' memory and the rows' halves.

Shape legend: N rows, T tokens a row, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.checks import check_tensor
from deltaproof.ops.common.slot_checks import INTS, check_slot_memory, inside, share

HALVES = 2
"""Halves of a slot's drafts: one is read while the other is written (clause P7)."""


def check_drafts(call: Any, parts: Mapping[str, tuple[Any, torch.Tensor]], slots: int) -> None:
    """Check ``drafts``, ``draft_half`` and ``accepted`` of a call of decode.

    Args:
        call: the call; ``write_index``, ``draft_half``, ``accepted`` and its first tensor's N and T are looked at.
        parts: name of each part of the drafts -> the part, and the call's own tensor [N, T, ...] that it keeps.
        slots: S.

    Raises:
        ContractError: an argument breaks the contract.
    """
    given = {name: getattr(call, name) for name in ("draft_half", "accepted")}
    if call.drafts is None:
        for name, x in given.items():
            if x is not None:
                raise ContractError(name, "None without drafts", type(x).__name__)
        return
    N, T = call.dims[:2]
    if call.write_index is not None and call.write_index.dim() == 2:
        raise ContractError("write_index", "shape [N] with drafts, which keep one state", "shape [N, T]")
    tensors = []
    D: int | str = "D"
    for name, (part, own) in parts.items():
        name = f"drafts.{name}" if name else "drafts"
        check_tensor(name, part, (slots, HALVES, D, *own.shape[2:]), (own.dtype,), own.device)
        check_slot_memory(name, part, "contiguous slots (drafts are never copied)")
        D = part.shape[2]
        if T > D:
            raise ContractError(name, f"room for T = {T} tokens", f"D = {D}")
        tensors.append((name, part))
    for at, (name, part) in enumerate(tensors):
        others = [*tensors[:at], ("pool", call.pool), *([] if call.out is None else [("out", call.out)])]
        for other, x in others:
            if share(part, x):
                raise ContractError(name, "memory of its own", f"memory of {other}")
    device = call.device
    check_tensor("draft_half", call.draft_half, (N,), INTS, device)
    check_tensor("accepted", call.accepted, (slots,), INTS, device)


def check_draft_values(call: Any, slots: int, capacity: int) -> None:
    """Check what ``accepted`` holds for the rows that replay (syncs on a GPU).

    Args:
        call: the call.
        slots: S.
        capacity: D.

    Raises:
        ContractError: a row that replays has a count outside 0 to D.
    """
    if call.drafts is None:
        return
    replays = (call.draft_half == 0) | (call.draft_half == 1)
    rows = replays & inside(call.read_index, slots) & inside(call.writes, slots)
    counts = call.accepted[call.writes[rows].long()]
    wrong = (counts < 0) | (counts > capacity)
    if bool(wrong.any()):
        raise ContractError("accepted", f"values from 0 to D = {capacity}", int(counts[wrong][0]))
