"""Inputs unchanged: a call leaves its arguments alone, and its results share no memory with them

What it does
    Keeps the bytes of every argument, with the red zones around it, and compares them after the call; for the sequence
    forms also after a backward, together with the gradients that arrived. Cases are such that a conversion does nothing
    (fp32 throughout, no option) and such that every option is on. Sequences of no tokens, whose final state equals the
    initial state, are among them.

What it shows
    Normalisation, gates or states computed in place, an initial state that doubles as the final one, an in-place update
    of an argument that a tuner runs more than once.

How it judges
    Bit by bit. Only the slots of a pool and ``out`` may change; those are judged by clause P2 and by value. The memory
    behind o and the final state must not overlap that of any argument, nor each other's.

What it cannot see
    A change that is undone before the call returns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaproof.verify.case import Case
from deltaproof.verify.inputs import whole_memory
from deltaproof.verify.observation import Observation, same_bits
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._memory import surroundings
from deltaproof.verify.probes._runs import BACKWARD, Run, arguments, drawn_cotangents, make, require


class InputsUnchanged(Probe):
    """Arguments stay as they were."""

    name = "inputs_unchanged"
    clause = "M2"
    clauses = ("M2", "T2", "M1")
    hazards = ("autotuned-in-place", "aliased-slot")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, T=3 if form == "decode" else 17, K=16, V=24)
        every = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True, "layout": "v_first"}
        yield base.but(normalize=False, scale=1.0)
        yield base.but(H=4, **every)
        if form == "decode":
            yield base.but(B=3, num_tokens=(0, 1, 3), write=(4, 5, 6), fresh=(False, True, False))
        else:
            yield base.but(seqlens=(5, 0, 12), tail=2)
            yield base.but(label="no-tokens", T=0)
        if not base.is_pool:
            yield base.but(T=1, H=4, K=20, V=20)
            yield base.but(label=BACKWARD, normalize=False)
            yield base.but(label=BACKWARD, seqlens=(5, 0, 12), tail=2, **every)
        if plan.full:
            for dtype in ("float32", "bfloat16", "float16"):
                for options in ({}, every):
                    yield base.but(label="dtypes", dtype=dtype, gate_dtype=dtype, state_dtype=dtype, T=16, **options)
                    if not base.is_pool:
                        yield base.but(label=BACKWARD, dtype=dtype, gate_dtype=dtype, state_dtype=dtype, **options)
            if form == "decode":
                writes = ((4, 5, -1), (6, 0, 9))
                yield base.but(label="token-writes", write=writes, layout="v_first")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label == BACKWARD:
            require(context, BACKWARD)
        call = context.call(case)
        before = {name: whole_memory(x).clone() for name, x in arguments(call).items()}
        run = make(case, context, call, backward=case.label == BACKWARD)
        when = "after the backward" if case.label == BACKWARD else "after the call"
        for name, x in arguments(call).items():
            if name == "pool":
                continue
            state = name == "initial_state"
            clause, hazard = ("T2", "aliased-slot") if state else ("M2", "autotuned-in-place")
            was = _like(x, before[name])
            yield same_bits(name, x.detach(), was, clause, hazard, f"{name} changed {when}")
            around = f"the memory around {name} changed {when}"
            yield same_bits(name, whole_memory(x.detach()), before[name], clause, hazard, around)
        yield from self._apart(run)
        if case.label == BACKWARD:
            yield from self._cotangents(case, context, run)

    def _apart(self, run: Run) -> Iterator[Observation]:
        """Check that results lie in memory of their own."""
        made = {name: x for name, x in run.results.items() if name != "pool"}
        others = {**arguments(run.call), **run.cotangents}
        for name, x in made.items():
            given = dict(others)
            if name == "o":
                given.pop("out", None)
            given |= {other: y for other, y in made.items() if other > name and not other.startswith("gradient")}
            for other, y in given.items():
                state = other == "initial_state" and name == "final_state"
                ok = not _overlap(x, y)
                text = "" if ok else f"{name} shares memory with {other}"
                yield Observation(ok, "T2" if state else "M2", text, "aliased-slot" if state else None)

    def _cotangents(self, case: Case, context: Context, run: Run) -> Iterator[Observation]:
        # drawn again, and never shown to the backend
        clean = drawn_cotangents(case, context, context.call(case), "nan")
        for name, x in run.cotangents.items():
            what = f"the gradient that arrives ({name}) changed in the backward"
            yield same_bits(name, x, clean[name], "M2", None, what)
            yield surroundings(name, x, "nan")


def _like(x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return the view of other memory that ``x`` is of its own."""
    return memory.view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())


def _overlap(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether the elements of two tensors can share bytes."""
    if x.device != y.device or not x.numel() or not y.numel():
        return False
    (a, b), (c, d) = (_extent(z) for z in (x, y))
    return a < d and c < b


def _extent(x: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


PROBE = InputsUnchanged()
