"""Repeatability: the same call gives the same bits, run after run

What it does
    Makes one call three times with the same values in new memory. Between the runs it makes calls of other shapes and
    takes and gives back memory, so that caches, the allocator and the backend's own workspaces stand differently.

What it shows
    Float atomics and stores that race, a kernel tuned by running it on a state it updates in place, a result that
    depends on an address or on which call came first.

How it judges
    Outputs, final states, every slot of the pool and, where the backend has a backward, every gradient must be
    bit-identical in all runs, and finite.

What it cannot see
    A race that is lost once in thousands of calls, and wrong results that are always the same: values and gradients
    judge those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation, Unsupported
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._exact import exact, snapshot
from deltaproof.verify.probes._runs import BACKWARD, Run, make, require

ORDER = 60
RUNS = 3


class Repeatability(Probe):
    """Clause I1."""

    name = "repeatability"
    clause = "I1"
    clauses = ("I1",)
    hazards = ("racing-store", "autotuned-in-place", "incomplete-cache-key")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, B=3, T={"decode": 5, "recurrent": 19}.get(form, 90), K=40, V=56)
        packed: tuple[int, ...] = (33, 0, 70, 5) if form != "recurrent" else (3, 0, 9, 5)
        short = (20, 7)
        if plan.light:
            base = base.but(B=3 if form == "decode" else 1, H=1, HV=2, K=20, V=24)
            if form == "recurrent":
                base, packed, short = base.but(T=5), (3, 0, 2), (4, 1)
            elif form != "decode":
                base, packed, short = base.but(T=18, chunk_size=16), (17, 0, 5), (18, 3)
        low = base.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True, layout="v_first")
        yield base
        if form == "decode":
            rows = ((4, 5, 6, 7, 8), (9, 2, 10, 10, 10), (11, 11, 11, 11, 11))
            yield low.but(num_tokens=(5, 2, 0), write=rows, slots=12)
        else:
            yield low.but(seqlens=packed, tail=3)
        if form in plan.operator.forms[:2]:
            yield base.but(label=BACKWARD)
            yield low.but(label=BACKWARD, seqlens=short, tail=2)
        if plan.full:
            for K, V in ((128, 128), (64, 256), (96, 48)):
                for dtype in ("float32", "bfloat16", "float16"):
                    yield base.but(label="sizes", K=K, V=V, dtype=dtype)
            for size in (16, 32) if form in ("chunk", "prefill") else ():
                yield base.but(label="chunk size", chunk_size=size)
            if form == "chunk":
                # many chunks and heads: enough programs to race
                yield base.but(label=BACKWARD, T=700, H=4, HV=8, K=64, V=32)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        backward = case.label == BACKWARD
        if backward:
            require(context, "backward")
        kept: list[Run | torch.Tensor] = []
        first: dict[str, torch.Tensor] = {}
        for turn in range(RUNS):
            run = make(case, context, backward=backward)
            # held to the end, so that no later run gets this memory
            kept += [run, torch.empty(100_003 * (turn + 1), device=context.device)]
            results = snapshot(run.results)
            if turn == 0:
                first = results
                yield from (exact(name, x, x, "I1", self.hazards[0], "") for name, x in first.items())
            else:
                yield from self._compare(results, first, turn + 1)
            if turn + 1 < RUNS:
                self._other_work(case, context, turn)

    def _compare(
        self, results: dict[str, torch.Tensor], first: dict[str, torch.Tensor], number: int
    ) -> Iterator[Observation]:
        what = f"run {number} of {RUNS} of one call differs from the first"
        for name in {**first, **results}:
            hazard = "autotuned-in-place" if name == "pool" else "racing-store"
            if name not in first or name not in results:
                yield Observation(False, "I1", f"{name} was not given by both runs: {what}", hazard)
            else:
                yield exact(name, results[name], first[name], "I1", hazard, what)

    def _other_work(self, case: Case, context: Context, turn: int) -> None:
        """Make calls of other shapes; those that the backend lacks are left out."""
        longer: dict[str, Any] = {"T": case.T + 3, "write": None, "num_tokens": None}
        if case.seqlens is not None:
            longer = {"seqlens": (*case.seqlens, 11), "slots": case.slots + 1}
        others = (longer, {"K": 24, "V": 16, "H": 1, "HV": 3}, {"dtype": "float16", "HV": 2 * case.HV})
        # all before the second run; before the third only what its caches may not have met: other lengths
        for changes in others if turn == 0 else others[:1]:
            try:
                make(case.but(**changes), context, backward=case.label == BACKWARD and turn == 0)
            except Unsupported:
                continue


PROBE = Repeatability()
