"""Extreme gates: log gates down to -1e4 beside gates at 0, and other edges of the exponential

What it does
    Calls every form with log gates at -1e4 and at 0 mixed and alternating inside a chunk, all at -1e4, and around -40;
    with raw gates and dt_bias so far out that softplus in fp32 overflows if it is written as log(1 + exp(x)); with zero
    rows of q and k under normalisation; with beta = 0. In the full tier also with a state that is written in time and
    then decays through two chunks, below exp(-20), with nothing new beside it. Sequence forms are also asked for
    gradients.

What it shows
    exp of a positive difference of cumulated gates, inf - inf, a mask applied by multiplication after the
    exponential, a division by the norm of a zero row. A chunked kernel that splits a sequence and drops what has
    decayed below a threshold, where that is all there is.

How it judges
    Values and gradients are finite and within the bounds of clause N2 of the oracle's. A token's log gate may be
    clamped at -64 before it is summed.

What it cannot see
    Gates between these; the values probe draws ordinary ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes import _vjp

ORDER = 31
FAR = "far-state"


class ExtremeGates(Probe):
    """Gates at the edges of the exponential, zero rows, zero betas."""

    name = "extreme_gates"
    clause = "N1"
    clauses = ("N1",)
    hazards = ("unbounded-exp", "mask-by-multiply", "unguarded-division")

    def cases(self, plan: Plan) -> Iterator[Case]:
        tokens = {"decode": 7, "recurrent": 10}.get(plan.form, 70)
        base = Case(plan.form, T=tokens, B=1, H=1, HV=2, K=16, V=32)
        yield base.but(gates="mixed")
        yield base.but(gates="overflow", gate_in_kernel=True)
        yield base.but(keys="zero_rows", layout="v_first")
        yield base.but(gates="all_extreme")
        if plan.form in ("chunk", "prefill") or plan.full:
            yield base.but(gates="alternating", dtype="bfloat16", layout="v_first")
            yield base.but(gates="forties")
            yield base.but(betas="zero")
        if plan.operator.gate_per_channel:
            yield base.but(gates="overflow", gate_in_kernel=True, lower_bound=-5.0, safe_gate=plan.form == "chunk")
            yield base.but(gates="mixed", dtype="float16")
        if plan.full:
            for dtype in ("float32", "bfloat16", "float16"):
                for gates in ("mixed", "extreme"):
                    yield base.but(label="sizes", gates=gates, dtype=dtype, K=64, V=48)
            yield base.but(gates="alternating")
            yield base.but(gates="overflow", gate_in_kernel=True, dtype="bfloat16", layout="v_first")
            yield base.but(keys="zero_rows", gates="mixed", dtype="float16", B=2)
            if plan.form in ("chunk", "prefill"):
                for layout in ("k_first", "v_first"):
                    far = base.but(label=FAR, T=320, gates="steady", betas="early", layout=layout)
                    yield far.but(dtype="bfloat16" if layout == "k_first" else "float32")
            if plan.form == "chunk":
                yield base.but(gates="mixed", chunk_size=16)
                yield base.but(gates="mixed", seqlens=(33, 0, 64, 5), tail=2)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        hazard = self._hazard(case)
        call: Call = context.call(case)
        outputs = context.run(case, call)
        seen = list(context.judge(case, outputs, call, clause="N1", hazard=hazard))
        yield from seen
        # where the values are wrong already, gradients would only hide by how much
        if not all(item.ok for item in seen):
            return
        if not isinstance(call, SequenceCall) or "backward" in context.target.backend.unsupported:
            return
        cotangents = _vjp.Cotangents.draw(case, context, state="G2" not in context.target.backend.unsupported)
        again = context.call(case)
        gradients = _vjp.pull_back(case, context, again, _vjp.leaves_of(again), cotangents)
        if isinstance(gradients, Observation):
            yield gradients
            return
        expected = _vjp.expectations(case, context, cotangents)
        yield from _vjp.judge_gradients(gradients, expected, "N1", hazard, case.chunk_size)

    def still_about(self, case: Case) -> bool:
        return case.label != FAR or (case.T >= 320 and not case.gate_in_kernel and not case.beta_sigmoid)

    def _hazard(self, case: Case) -> str | None:
        exp, multiply, division = self.hazards
        if case.label == FAR:
            # dropped on purpose, by none of these
            return None
        if case.keys == "zero_rows":
            return division
        return multiply if case.gates in ("mixed", "alternating") else exp


PROBE = ExtremeGates()
