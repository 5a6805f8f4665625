"""Drafts of the convolution: the window takes in what was accepted, and of the rest no trace

What it does
    Makes speculative steps of the causal convolution: rows that take in none, some and all of their drafts, fewer and
    more than a window holds, from either half of their slot; with zero to all of their tokens drafted anew, in place
    and from another slot, fresh, padding, or with a write index outside the pool. What must not count holds NaN and
    huge numbers, and in a second call plausible stale values.

What it shows
    A window that a rejected token has moved; taps that skip the drafts or take them twice; drafts of the wrong half or
    slot; drafts kept of a padding row.

How it judges
    Outputs within the bound of ``conv_values``; windows, the half that was written, and all other memory to the bit.

What it cannot see
    Whether the counts are those that were accepted: they are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.conv.judge import judge, run
from deltaproof.verify.draft_inputs import HAZARD, judge_drafts
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 202
SLOTS = 7
FILLS: tuple[Fill, ...] = ("nan", "stale")


class ConvDrafts(Probe):
    """Clause P7 for the convolution."""

    name = "conv_drafts"
    clause = "P7"
    clauses = ("P1", "P2", "P4", "P5", "P7", "S1", "S3")
    hazards = ("aliased-slot", "padding-slot-address", "appended-cache")
    forms = ("decode",)
    family: ClassVar[str] = "causal_conv"

    def cases(self, plan: Plan) -> Iterator[ConvCase]:  # type: ignore[override]
        base = ConvCase("decode", B=4, T=3, drafts=4, read=(2, 5, 1, 6))
        some = base.but(halves=(0, 1, -1, 1), accepted=(1, 4, 0, 2))
        yield some
        yield some.but(layout="time_first", dtype="bfloat16", state_dtype="bfloat16", slot_padding=12, C=5)
        yield base.but(label="nothing", halves=(0, 1, -1, 0), accepted=(0, 0, 0, 0), num_tokens=(3, 0, 1, 2))
        yield base.but(label="settle", T=1, halves=(0, 1, 0, 1), accepted=(3, 4, 1, 0), num_tokens=(0, 0, 0, 0))
        # tokens of padding that could be anybody's show where they are kept
        stray = base.but(label="padding", stray_tokens=True)
        yield stray.but(read=(2, -1, SLOTS, 3), halves=(1, 0, 1, 0), accepted=(2, 3, 4, 1))
        yield base.but(
            label="padding", read=(2, -1, SLOTS, 6), halves=(1, 0, 1, 0), accepted=(2, 3, 4, 1), num_tokens=(1, 3, 2, 0)
        )
        yield base.but(
            label="elsewhere",
            read=(2, 2, 5, 5),
            write=(0, 4, -1, SLOTS - 1),
            halves=(-1, 0, 1, 2),
            accepted=(0, 2, 3, 1),
        )
        yield some.but(label="fresh", fresh=(True, False, True, False), nan_slots=(2,))
        yield some.but(label="wide", W=9, C=3, silu=False, bias=False)
        if not plan.full:
            return
        for drafts in (1, 2, 8, 16):
            for W in (2, 4, 16):
                long = some.but(label="room", drafts=drafts, T=drafts, W=W, accepted=(drafts, drafts - 1, 0, 1))
                yield long
                yield long.but(layout="time_first", dtype="float16", C=33)
        for dtype in ("int32", "int64"):
            yield some.but(label="index", index_dtype=dtype, read=(2**31 - 1, 3, -(2**31), 0))

    def run(self, case: ConvCase, context: Context) -> Iterator[Observation]:  # type: ignore[override]
        for fill in FILLS:
            call = build(case, context.seed, context.device, fill=fill)
            assert isinstance(call, ConvDecodeCall) and call.drafts is not None
            yield from judge(context, case, call, run(context, case, call), fill, "P7", HAZARD)
            clean = build(case, context.seed, fill=fill)
            yield from judge_drafts({"": call.drafts}, clean, {"": clean.x})


PROBE = ConvDrafts()
