"""Large offsets of the convolution: windows that start more than 2**31 elements into a pool

What it does
    Gives decode and prefill of the causal convolution pools whose slots lie 2**30 + 32 elements apart, so that a stride
    fits into 32 bits and only its product with an index does not, and 2**31 + 64 elements apart. On a CPU the memory is
    reserved and only the touched pages exist; on a GPU it is real.

What it shows
    Offsets computed in 32 bits: the last slot is 2**32 + 128 elements from the first, which a 32-bit offset takes for
    the 128th element.

How it judges
    As ``conv_values``, on the same values in a compact pool; the memory right behind the first slot must be
    bit-identical.

What it cannot see
    Writes to other places of the large memory: it is not read as a whole. Inputs of more than 2**31 elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch

from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.conv.judge import judge, run
from deltaproof.verify.inputs import dtype_of
from deltaproof.verify.observation import Observation, same_bits
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes.large_offsets import CANARIES, SPAN, STEP, WIDE_STEP, large_memory

ORDER = 203
HAZARD = "narrow-offset"


class ConvLargeOffsets(Probe):
    """Clause P5 for the convolution, beyond 2**31 elements."""

    name = "conv_large_offsets"
    clause = "P5"
    clauses = ("P5", "P2", "S1", "S3")
    hazards = (HAZARD,)
    forms = ("decode", "prefill")
    alone = True
    timeout = 180.0
    family: ClassVar[str] = "causal_conv"

    def cases(self, plan: Plan) -> Iterator[ConvCase]:  # type: ignore[override]
        base = ConvCase(plan.form, label="slot-stride", B=2, T=2, state_dtype="bfloat16", slots=5)
        if plan.form == "prefill":
            # shorter than the window, so that part of the old one stays
            base = base.but(seqlens=(2, 1), tail=1)
        yield base.but(read=(4, -1))
        yield base.but(read=(0, -1), write=(4, 1))
        yield base.but(label="wide-slot-stride", slots=3, read=(2, -1), layout="time_first")
        if plan.full:
            yield base.but(read=(4, 1), write=(-1, 0), layout="time_first", index_dtype="int64")
            yield base.but(label="wide-slot-stride", slots=3, read=(0, 1), write=(2, 1), state_dtype="float16")

    def run(self, case: ConvCase, context: Context) -> Iterator[Observation]:  # type: ignore[override]
        call: Any = build(case, context.seed, context.device)
        context.target.require(case.form, call)
        step = WIDE_STEP if case.label.startswith("wide") else STEP
        compact = call.pool
        size = compact[0].numel()
        memory = large_memory(SPAN + size + CANARIES, dtype_of(case.state_dtype), context.device)
        pool = memory.as_strided(compact.shape, (step, *compact.stride()[1:])).copy_(compact)
        behind = memory[size : size + CANARIES].fill_(1.5)
        y = run(context, case, call.with_(pool=pool))
        compact.copy_(pool)
        canaries = behind.clone()
        del pool, behind, memory
        seen = list(judge(context, case, call, y, "nan", "P5", HAZARD))
        what = "the memory right behind the first slot must stay as it is"
        seen.append(same_bits("pool", canaries, torch.full_like(canaries, 1.5), "P2", HAZARD, what))
        for item in seen:
            yield item if item.ok else replace(item, hazard=HAZARD)


PROBE = ConvLargeOffsets()
