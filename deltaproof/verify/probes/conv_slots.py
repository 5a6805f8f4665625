"""Slots of the convolution: which windows a call reads, writes and leaves alone

What it does
    Calls decode and prefill of the causal convolution with indices outside the pool on either side, shared reads,
    windows moved to another slot, also those of rows without tokens, fresh rows over a slot of NaN, gaps between slots,
    indices past 32 bits, and numbers of tokens that nobody checked.

What it shows
    A padding index used as an address, clamped or wrapped; an index cut to 32 bits; an old window under a fresh row; a
    read slot that is overwritten; a stride that is computed instead of asked for.

How it judges
    As ``conv_values``; a padding row's output is exactly zero. Gaps, guard slots and tokens that must not count hold
    plausible stale values, and in a second call NaN.

What it cannot see
    Reads that reach no result, and writes far beyond the memory that is watched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.conv.judge import HAZARD, judge, run
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 201
SLOTS = 7
OUTSIDE = (-1, SLOTS, SLOTS + 5, 2**31 - 1, -(2**31), -SLOTS)
CUT = 2**32 + 2
"""Slot 2 to whoever keeps the lower 32 bits."""
FILLS: tuple[Fill, ...] = ("stale", "nan")
CLAUSES = {
    "padding": "P1",
    "unchecked": "P1",
    "write-outside": "P1",
    "fresh": "P1",
    "shared": "P3",
    "elsewhere": "P4",
    "stride": "P5",
}
HAZARDS = {
    "unchecked": "unmasked-load",
    "fresh": "appended-cache",
    "shared": "aliased-slot",
    "elsewhere": "aliased-slot",
    "stride": None,
}


class ConvSlots(Probe):
    """Clauses P1 to P5 for the convolution."""

    name = "conv_slots"
    clause = "P1"
    clauses = ("P1", "P2", "P3", "P4", "P5", "S1", "S3")
    hazards = (
        "padding-slot-address",
        "aliased-slot",
        "appended-cache",
        "unmasked-load",
        "mask-by-multiply",
        "assumed-contiguous",
        "narrow-offset",
    )
    forms = ("decode", "prefill")
    family: ClassVar[str] = "causal_conv"

    def cases(self, plan: Plan) -> Iterator[ConvCase]:  # type: ignore[override]
        base = ConvCase(plan.form, T=2)
        if plan.form == "prefill":
            base = base.but(seqlens=(5, 1, 9), tail=2)
        outside = OUTSIDE if plan.full else OUTSIDE[:3]
        for bad in outside:
            for row in range(3) if plan.full else (1,):
                reads = [4, 2, 6]
                reads[row] = bad
                yield base.but(label="padding", read=tuple(reads))
            yield base.but(label="padding", read=(bad, bad, bad), layout="time_first")
            yield base.but(label="write-outside", write=(5, bad, 3))
        for read, write in (((CUT, 1, 3), None), ((4, 1, 3), (CUT, 0, 5))):
            yield base.but(label="padding" if write is None else "write-outside", read=read, write=write,
                           index_dtype="int64")  # fmt: skip
        yield base.but(label="padding", read=(-1, 2, 3), fresh=(True, True, False))
        # a padding row writes nothing, wherever its write index points
        yield base.but(label="padding", read=(-1, 2, SLOTS), write=(5, 4, 0))
        yield base.but(label="padding", read=(SLOTS + 1, -2, 3), write=(1, 6, 0), fresh=(True, False, False))
        if plan.form == "decode":
            yield base.but(label="unchecked", num_tokens=(9, -2, 1))
        yield base.but(label="fresh", fresh=(False, True, False), nan_slots=(2,))
        yield base.but(label="fresh", fresh=(True, True, True), read=(0, 4, 6), write=(4, 0, 1), nan_slots=(0, 4))
        yield base.but(label="shared", read=(2, 2, 2), write=(0, 5, 6))
        yield base.but(label="elsewhere", write=(4, 0, 6), layout="time_first")
        yield base.but(label="elsewhere", read=(1, 2, 3), write=(1, 6, 3))
        # a row without tokens hands its window on, and a fresh one hands on zeros
        empty: dict[str, Any] = {"num_tokens": (0, 2, 0)} if plan.form == "decode" else {"seqlens": (0, 5, 0)}
        yield base.but(label="elsewhere", write=(4, 0, 6), fresh=(False, False, True), **empty)
        yield base.but(label="stride", slot_padding=40, layout="time_first")
        yield base.but(label="stride", slot_padding=3, W=2, C=5, state_dtype="bfloat16")

    def run(self, case: ConvCase, context: Context) -> Iterator[Observation]:  # type: ignore[override]
        clause, hazard = CLAUSES[case.label], HAZARDS.get(case.label, HAZARD)
        # on a CPU our own checks would refuse what a GPU's never see
        reached = context.unchecked() if case.label == "unchecked" else context
        for fill in FILLS:
            call = build(case, context.seed, context.device, fill=fill)
            yield from judge(context, case, call, run(reached, case, call), fill, clause, hazard)


PROBE = ConvSlots()
