"""Clause E1 for speculative steps of any operator on a pool: the drafts' memory and the rows' halves.

Shape legend: N rows, T tokens a row, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.checks import ALIGNMENT, check_tensor
from deltaproof.ops.common.slot_checks import INTS, inside, share

HALVES = 2


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
        _check_memory(name, part)
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


def _check_memory(name: str, part: torch.Tensor) -> None:
    if part.numel() == 0:
        return
    size = part[0].numel()
    if not part[0].is_contiguous():
        raise ContractError(name, "contiguous slots (drafts are never copied)", f"strides {part.stride()}")
    if part.shape[0] > 1 and part.stride(0) < size:
        raise ContractError(name, "slots that do not overlap", f"a slot stride of {part.stride(0)} elements")
    step = part.stride(0) * part.element_size() if part.shape[0] > 1 else 0
    if step % ALIGNMENT:
        raise ContractError(name, f"a slot stride that is a multiple of {ALIGNMENT} bytes", f"{step} bytes")
    if not torch.compiler.is_dynamo_compiling() and part.data_ptr() % ALIGNMENT:
        address = f"address % {ALIGNMENT} = {part.data_ptr() % ALIGNMENT}"
        raise ContractError(name, f"memory aligned to {ALIGNMENT} bytes", address)
    if part.requires_grad:
        raise ContractError(name, "a tensor without gradient", "requires_grad=True")


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
