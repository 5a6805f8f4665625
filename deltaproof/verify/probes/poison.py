"""Poison: new memory holds NaN, then stale values, and nobody can tell

What it does
    Makes one call three times: with every new buffer holding zeros, holding NaN (integers: a number far out of range),
    and holding plausible stale values. Buffers are reached through the project's allocation function and through
    torch's own allocators. Covers packed sequences with rows after the last one, padding rows, ragged decode rows, a
    given ``out``, and the backward.

What it shows
    Output rows that a kernel skips, a workspace read before it is written, garbage that is multiplied by zero where it
    should be left out.

How it judges
    The results of the three runs must be the same bits, all finite, and those of the first run within the bound of
    clause N2. Where NaN shows and stale values do not, the fault is a product with zero; else nobody wrote an element.
    A backend that does not promise clause I1 is held to the bounds in every run.

What it cannot see
    Memory that a kernel library allocates by itself, outside torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._memory import Content, filled_buffers
from deltaproof.verify.probes._runs import BACKWARD, Run, finite, make, repeatable, require, same

FILLS: tuple[tuple[Fill, str], ...] = (("nan", "new memory held NaN"), ("stale", "new memory held stale values"))
OUT = "out"


class Poison(Probe):
    """What new memory held must not matter."""

    name = "poison"
    clause = "M1"
    clauses = ("M1", "P2", "N2", "S0", "S1", "S3")
    hazards = ("unwritten-output", "mask-by-multiply", "unmasked-load")

    def cases(self, plan: Plan) -> Iterator[Case]:
        base = Case(plan.form, T=21, K=20, V=36, chunk_size=16 if plan.form in ("chunk", "prefill") else 64)
        if plan.light:
            base = base.but(H=1, HV=2, V=12)
        yield from self._decode(base, plan.full) if plan.form == "decode" else self._sequences(base, plan.full)

    def _decode(self, base: Case, full: bool) -> Iterator[Case]:
        base = base.but(B=4, T=3, chunk_size=64, layout="v_first")
        yield base.but(label="padding", read=(2, -1, 9, 4), fresh=(False, False, True, True))
        yield base.but(label="ragged-rows", num_tokens=(3, 0, 1, 2))
        yield base.but(label=OUT, read=(2, -1, 3, 4), num_tokens=(3, 2, 0, 1), dtype="bfloat16")
        if full:
            writes = ((6, 5, -1), (9, 0, 1), (-1, -1, -1), (3, 2, 12))
            yield base.but(label="token-writes", read=(4, 4, -1, 4), write=writes, slot_padding=12)
            for dtype in ("float32", "bfloat16", "float16"):
                for T in (1, 2, 16):
                    yield base.but(label=OUT, T=T, dtype=dtype, num_tokens=(T, 0, 1, T // 2), K=72, V=136)

    def _sequences(self, base: Case, full: bool) -> Iterator[Case]:
        pooled = base.form == "prefill"
        packed = base.but(seqlens=(7, 0, 20), tail=5)
        yield base
        yield packed.but(read=(3, 1, -1)) if pooled else packed
        yield base.but(label="no-sequences", seqlens=(), tail=3)
        if not pooled:
            yield base.but(initial_state=False, final_state=False, normalize=False, T=9)
            yield packed.but(label=BACKWARD, gate_in_kernel=True, layout="v_first")
            yield base.but(label=BACKWARD, T=5)
        if full:
            for dtype in ("bfloat16", "float16"):
                yield packed.but(dtype=dtype, seqlens=(64, 0, 1, 65), tail=70, chunk_size=64)
                yield base.but(dtype=dtype, T=63, K=72, V=136, gate_in_kernel=True, beta_sigmoid=True)
            if pooled:
                every = {"checkpoint_every": 16, "checkpoints": ((4, -1), (5, 6), (0, 9))}
                yield packed.but(label="checkpoints", read=(1, 2, 3), **every)
            else:
                yield packed.but(label=BACKWARD, dtype="bfloat16", seqlens=(64, 0, 1, 65), tail=70)
                yield packed.but(label=BACKWARD, initial_state=False, final_state=False)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label == BACKWARD:
            require(context, BACKWARD)
        # what a backend imports or builds at its first call is built in peace
        context.run(case, context.call(case))
        clean = self._make(case, context, "zeros")
        poisoned = {fill: self._make(case, context, fill) for fill, _ in FILLS}
        yield from finite(clean, "M1", "unmasked-load", "NaN lay around every argument")
        # stale values that show come from an element nobody wrote; NaN alone shows a product with zero
        stale = list(self._seen(clean, poisoned["stale"], context, "unwritten-output", FILLS[1][1]))
        yield from stale
        hazard = "mask-by-multiply" if all(item.ok for item in stale) else "unwritten-output"
        yield from self._seen(clean, poisoned["nan"], context, hazard, FILLS[0][1])
        for run in (clean,) if repeatable(context) else (clean, *poisoned.values()):
            yield from context.judge(case, run.outputs, run.call)

    def _make(self, case: Case, context: Context, fill: Content) -> Run:
        call: Any = context.call(case)
        if case.label == OUT:
            out = torch.zeros(call.v.shape, dtype=call.v.dtype)
            if fill != "zeros":
                inputs.red_zone_(out, fill)
            call = call.with_(out=inputs.guarded(out, device=context.device))
        return make(case, context, call, backward=case.label == BACKWARD, inside=filled_buffers(fill))

    def _seen(self, clean: Run, run: Run, context: Context, hazard: str, what: str) -> Iterator[Observation]:
        if _all_finite(clean):
            yield from finite(run, "M1", hazard, what)
        if repeatable(context):
            yield from same(run, clean, "M1", hazard, f"what they are must not change when {what}")
        out = getattr(run.call, "out", None)
        if out is not None:
            ok = run.outputs.o.data_ptr() == out.data_ptr()
            yield Observation(ok, "M1", "" if ok else "what was returned is not the out that was given")


def _all_finite(run: Run) -> bool:
    return all(bool(x.isfinite().all()) for x in run.results.values())


PROBE = Poison()
