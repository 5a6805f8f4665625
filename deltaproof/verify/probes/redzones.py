"""Red zones: what lies around arguments, outputs and the pool is neither read nor written

What it does
    Makes one call twice: once with NaN around every argument (indices: numbers far out of range) and once with
    plausible stale values there. Every buffer the backend allocates through torch stands in a larger one, and so do
    ``out`` and the pool, whose gaps hold the same. Sizes are odd, so that no block is full. One decode has num_tokens
    below 0 and above T, and one pack has bounds below 0, above T and falling; these are made without the public
    functions' look at values, as on a GPU.

What it shows
    Loads and stores that reach past a tensor's end, into the next head's gap, or in front of the first row; a number of
    tokens or a bound that is believed.

How it judges
    The two runs must give the same bits, all finite, the first within the bound of clause N2; and every byte around an
    argument, an output, a workspace and the pool's slots must be as it was. Two different fillings are used, so a stray
    store that writes one of them still shows in the other run. A backend that does not promise clause I1 is held to the
    bounds instead of to the same bits. A num_tokens outside 0 to T counts as the nearer of the two (clause P1); what
    becomes of tokens between wrong bounds is open, but for the bytes around (clause E1). A backend may also refuse
    either with a ValueError.

What it cannot see
    A load of foreign memory that changes no result, a store more than 4096 elements away, and memory that a kernel
    library allocates outside torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._memory import Canaries, surroundings
from deltaproof.verify.probes._runs import BACKWARD, Run, arguments, finite, make, repeatable, require, same

OUT = "out"
UNCHECKED = "num-tokens"
BOUNDS = "bounds"
FAR = 1 << 30
AROUND: dict[Fill, str] = {"nan": "NaN lay around every argument", "stale": "stale values lay around every argument"}


class RedZones(Probe):
    """What lies around a tensor is none of the call's business."""

    name = "redzones"
    clause = "M1"
    clauses = ("M1", "P1", "P2", "N2", "S0", "S1", "S3", "E1")
    hazards = ("unmasked-load", "unmasked-store")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, T=3 if form == "decode" else 19, K=20, V=36, chunk_size=64)
        pool = {"slot_padding": 20, "head_padding": 12} if base.is_pool else {}
        base = base.but(**pool)
        yield base
        if plan.light:
            base = base.but(H=1, HV=2)
        yield base.but(K=3, V=5, gate_in_kernel=True, beta_sigmoid=True, dtype="bfloat16", layout="v_first")
        if form == "decode":
            yield base.but(label=OUT, B=3, num_tokens=(3, 1, 0), K=9, V=13)
            few = base.but(label=UNCHECKED, B=3, T=2, num_tokens=(4, -1, 5), K=9, V=13)
            yield few
            yield few.but(write=((5, -1), (6, 0), (-1, 4)))
        else:
            yield base.but(seqlens=(7, 0, 9), tail=3, K=9, V=13)
            # gradients of A_log and dt_bias are sums over tokens: one token too many shows
            yield base.but(label=BOUNDS, seqlens=(24, 3, 22), chunk_size=16, K=9, V=13, gate_in_kernel=True)
        if not base.is_pool:
            yield base.but(label=BACKWARD, T=5, K=9, V=13, gate_in_kernel=True)
            yield base.but(label=BACKWARD, seqlens=(3, 0, 4), tail=2, H=1, HV=3, K=9, V=13, gate_in_kernel=True)
        if plan.full:
            for K, V, dtype in ((1, 1, "float32"), (72, 136, "bfloat16"), (100, 33, "float32"), (256, 255, "bfloat16")):
                yield base.but(label="sizes", T=min(base.T, 5), K=K, V=V, dtype=dtype)
            if form == "decode":
                yield base.but(label="token-writes", read=(4, 4), write=((6, -1, 5), (9, 0, 2)))
            else:
                for T in (1, 15, 63, 65):
                    for chunk_size in (16, 64) if form != "recurrent" else (64,):
                        yield base.but(label="lengths", T=T, chunk_size=chunk_size)
                yield base.but(seqlens=(1, 63, 0, 65, 16), tail=1, K=33, V=17)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label == BACKWARD:
            require(context, BACKWARD)
        if case.label in (UNCHECKED, BOUNDS):
            context = context.unchecked()
        if case.label == BOUNDS:
            yield from self._bounds(case, context)
            return
        if case.label == UNCHECKED:
            try:
                context.run(case, context.call(case))
            except ValueError as error:
                yield Observation(True, "E1", f"refused: {error}")
                return
        runs = {}
        for fill, what in AROUND.items():
            canaries = Canaries(fill)
            run = runs[fill] = self._make(case, context, fill, canaries)
            yield from canaries.observe()
            yield from self._around(case, context, run, fill)
            yield from finite(run, "M1", "unmasked-load", what)
        if repeatable(context):
            what = "NaN around the arguments gave other bits than stale values there"
            yield from same(runs["nan"], runs["stale"], "M1", "unmasked-load", what)
        for run in list(runs.values())[: 1 if repeatable(context) else None]:
            clause = "P1" if case.label == UNCHECKED else "N2"
            yield from context.judge(case, run.outputs, run.call, clause=clause)

    def _bounds(self, case: Case, context: Context) -> Iterator[Observation]:
        T, backward = case.tokens, not case.is_pool and "backward" not in context.target.backend.unsupported
        # the last two: a length below 0 in front of others, and more chunks than as many tokens have
        wrongs = ((0, T + 5, 3, FAR), (-FAR, 9, -2, T + 1), (FAR, 0, T, 2), (0, T, 0, T))
        for wrong, (fill, what) in zip(wrongs, cycle(AROUND.items())):
            canaries = Canaries(fill)
            call: Any = context.call(case, fill=fill)
            given = torch.tensor(wrong, dtype=call.cu_seqlens.dtype)
            call = call.with_(cu_seqlens=inputs.guarded(given, fill, context.device))
            try:
                run = make(case, context, call, fill=fill, backward=backward, inside=canaries)
            except ValueError as error:
                yield Observation(True, "E1", f"refused: {error}")
                continue
            where = f"cu_seqlens {list(wrong)} of {T} tokens"
            for seen in (*canaries.observe(), *self._around(case, context, run, fill)):
                yield seen if seen.ok else replace(seen, clause="E1", message=f"{where}: {seen.message}")
            yield from finite(run, "E1", "unmasked-load", f"{where}; {what}")

    def _make(self, case: Case, context: Context, fill: Fill, canaries: Canaries) -> Run:
        call: Any = context.call(case, fill=fill)
        if case.label in (OUT, UNCHECKED):
            out = torch.zeros(call.v.shape, dtype=call.v.dtype)
            call = call.with_(out=inputs.guarded(out, fill, context.device))
        return make(case, context, call, fill=fill, backward=case.label == BACKWARD, inside=canaries)

    def _around(self, case: Case, context: Context, run: Run, fill: Fill) -> Iterator[Observation]:
        for name, x in {**arguments(run.call), **run.cotangents}.items():
            if name != "pool":
                yield surroundings(name, x, fill)
        if isinstance(run.call, SequenceCall):
            return
        clean = context.call(case, fill=fill)
        # what slots hold is judged by value; here only the memory that belongs to no slot
        yield context.untouched(run.call.pool, clean.pool, set(range(case.slots)))


PROBE = RedZones()
