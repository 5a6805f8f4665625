"""Correlated keys: the hardest triangular systems a chunk can hold

What it does
    Calls every form with identical keys and with keys of cosine 0.9, beta = 1 (each token overwrites the last one) and
    beta = 2 with normalised keys (each token is a reflection), and no decay, over several chunks and in every dtype.

What it shows
    A chunk's inverse computed by a series whose terms grow, or in bf16, fp16 or TF32; states accumulated in a low
    precision; a division by a difference of keys.

How it judges
    Against the oracle with the bound of clause N2; for bf16 and fp16 a bound larger than 64 times the error of a
    same-dtype reference fails. Gradients must be finite (their values are the probe gradients' matter).

What it cannot see
    Precision lost by less than the bound, which is wide for bf16 and beta = 2.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes import _vjp
from deltaproof.verify.probes._gauge import gauge

ORDER = 30


class CorrelatedKeys(Probe):
    """Identical and correlated keys without decay."""

    name = "correlated_keys"
    clause = "N2"
    clauses = ("N2", "N1")
    hazards = ("low-precision-accumulate", "unguarded-division")

    def cases(self, plan: Plan) -> Iterator[Case]:
        tokens = {"decode": 9, "recurrent": 16}.get(plan.form, 140)
        base = Case(plan.form, T=tokens, B=1, H=1, HV=2, K=32, V=16, gates="zero", betas="one", keys="identical")
        yield base
        yield base.but(keys="correlated", dtype="float16", layout="v_first")
        yield base.but(betas="two", keys="correlated", dtype="bfloat16")
        if plan.form == "chunk" or plan.full:
            yield base.but(dtype="bfloat16")
            yield base.but(betas="two")
            # eight heads, so eight keys: whether rounding errors of a chunk's rows add up hangs on the key
            yield base.but(label="reflections", betas="two", H=8, HV=8, K=16, V=8)
        if plan.full:
            for dtype in ("float32", "bfloat16", "float16"):
                for betas, keys in (("one", "identical"), ("two", "correlated")):
                    yield base.but(label="sizes", dtype=dtype, betas=betas, keys=keys, K=64, V=96)
            if plan.form != "decode":
                yield base.but(normalize=False, keys="correlated")
            if plan.form in ("chunk", "prefill"):
                yield base.but(label="long", T=400)
                yield base.but(label="long", T=400, betas="two", keys="correlated", chunk_size=32)

    def still_about(self, case: Case) -> bool:
        # a key rounded to fewer bits may be longer than 1, and then exact arithmetic diverges too
        return case.label != "reflections" or case.dtype == "float32"

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        call: Call = context.call(case)
        outputs = context.run(case, call)
        seen = list(context.judge(case, outputs, call, hazard=self.hazards[0]))
        yield from seen
        if isinstance(call, SequenceCall) and all(item.ok for item in seen):
            # with identical keys the inverse is exact in every dtype, and a reference's error says little of rounding
            if case.dtype != "float32" and case.keys == "correlated":
                yield from gauge(case, context)
            yield from _vjp.finite_gradients(case, context, self.hazards[1])


PROBE = CorrelatedKeys()
