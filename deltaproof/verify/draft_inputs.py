"""Drafts of a speculative step: drawing their memory, and what it must hold afterwards (clause P7).

Shape legend: N rows, T tokens a row, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, Drafts
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import RED_ZONE, Draw, Fill, guarded, red_zone_, whole_memory
from deltaproof.verify.observation import Observation, same_bits

HAZARD = "aliased-slot"


@dataclass(frozen=True)
class Placement:
    """Where drafts lie and what of them was accepted.

    Attributes:
        slots: S.
        halves, accepted: of each row, the half it replays and how many tokens of it.
        gap: whether there is a gap between slots.
    """

    slots: int
    halves: tuple[int, ...]
    accepted: tuple[int, ...]
    gap: bool = False


def place_drafts(
    tokens: Mapping[str, torch.Tensor], writes: list[int], place: Placement, fill: Fill, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Put the accepted drafts of each row [N, D, ...] into memory that else holds what the red zones hold.

    Returns:
        the parts [S, 2, D, ...] by name, ``draft_half`` [N] and ``accepted`` [S].
    """
    counts = torch.full((place.slots,), 10**6 if fill == "nan" else 1, dtype=torch.int32)
    parts = {}
    for name, x in tokens.items():
        shape = (place.slots, 2, *x.shape[1:])
        unit = 16 // x.element_size()
        room = -(-math.prod(shape[1:]) // unit) * unit + unit * place.gap
        memory = red_zone_(torch.empty(place.slots * room + 2 * RED_ZONE, dtype=x.dtype), fill).to(device)
        strides = [math.prod(shape[at + 1 :]) for at in range(1, len(shape))]
        parts[name] = memory.as_strided(shape, (room, *strides), RED_ZONE)
        for row, (slot, half, count) in enumerate(zip(writes, place.halves, place.accepted, strict=True)):
            if 0 <= slot < place.slots and half in (0, 1):
                parts[name][slot, half, :count] = x[row, :count].to(device)
                counts[slot] = count
    halves = torch.tensor(place.halves, dtype=torch.int32)
    return parts, guarded(halves, fill, device), guarded(counts, fill, device)


def judge_drafts(
    parts: Mapping[str, torch.Tensor], clean: Any, own: Mapping[str, torch.Tensor]
) -> Iterator[Observation]:
    """Compare the drafts' memory with what it was, and with the tokens of the rows that keep them.

    Args:
        parts: what the backend left, by name.
        clean: the same call as it was drawn, on the CPU.
        own: the tokens [N, T, ...] that ``clean`` gives, by name; and ``clean``'s drafts are changed here.
    """
    N, T = clean.read_index.shape[0], next(iter(own.values())).shape[1]
    counts = [T] * N if clean.num_tokens is None else clean.num_tokens.clamp(0, T).tolist()
    slots = clean.pool.shape[0]
    for name, part in parts.items():
        before = getattr(clean.drafts, name) if name else clean.drafts
        for row, slot in enumerate(clean.writes.tolist()):
            if not 0 <= slot < slots or not 0 <= int(clean.read_index[row]) < slots:
                continue
            half = int(clean.draft_half[row])
            before[slot, 1 - half if half in (0, 1) else 0, : counts[row]] = own[name][row, : counts[row]]
        what = "what must hold the tokens of rows that keep them, and else what it held"
        found, wanted = whole_memory(part).cpu(), whole_memory(before)
        yield same_bits(f"drafts.{name}" if name else "drafts", found, wanted, "P7", HAZARD, what)


def speculative(call: DecodeCall, case: Case, seed: int, fill: Fill, *, gate_per_channel: bool = False) -> DecodeCall:
    """Return a call of decode with the case's drafts, drawn like its tokens."""
    draw = Draw(case.but(T=case.drafts), seed, gate_per_channel=gate_per_channel)
    values = {"k": draw.keys(), "v": draw.normal(case.B, case.drafts, case.HV, case.V)}
    values |= {"g": draw.gates(), "beta": draw.betas()}
    tokens = {name: x.to(getattr(call, name).dtype) for name, x in values.items()}
    place = Placement(case.slots, case.halves, case.accepted, case.slot_padding > 0)
    parts, half, accepted = place_drafts(tokens, call.writes.tolist(), place, fill, call.device)
    return call.with_(drafts=Drafts(**parts), draft_half=half, accepted=accepted)
