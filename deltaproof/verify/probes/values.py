"""Values: outputs and states against the float64 oracle

What it does
    Calls every form on ordinary inputs (dtypes, head sizes, options, gates) and compares each row of the output and of
    the state with the oracle. Every case is called twice: with the same shapes, in the same memory, with other values.

What it shows
    Wrong arithmetic, lost precision (bf16 or TF32 accumulation, an inverse in bf16), a dropped scale, option or
    rounding, a result answered from a cache of an earlier call.

How it judges
    A row's error is held to the bound of clause N2: 8 times the spread of the operator's rounding model for that row,
    plus the rounding of the stored dtype. Observed / bound is printed. A bound larger than 64 times the error of a
    reference computed in the same dtypes is itself a failure. Outputs stored in bf16 or fp16 must also be rounded
    without bias: the mean signed error in units of the last place is within five standard errors of zero.

What it cannot see
    Errors below the bound; see docs/verify.md for how large that is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes._gauge import bias_of_rounding, gauge

ORDER = 0


class Values(Probe):
    """Outputs and states against the oracle."""

    name = "values"
    judges_values = True
    clause = "N2"
    clauses = ("N2", "S0", "S3")
    hazards = (
        "low-precision-accumulate",
        "unthreaded-option",
        "incomplete-cache-key",
        "ignored-tile-parameter",
        "missing-base-offset",
        "resource-limit",
    )

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, T={"decode": 6, "recurrent": 37}.get(form, 100), B=3 if form == "decode" else 2)
        if plan.light and form != "decode":
            base = base.but(B=1, T=9 if form == "recurrent" else 70)
        yield base
        if plan.light:
            base = base.but(H=1, HV=2)
        yield base.but(dtype="bfloat16", gate_dtype="bfloat16", layout="v_first", K=64, V=48)
        yield base.but(gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True, scale=0.7)
        yield base.but(normalize=False, gates="slow", K=32, V=16, H=1, HV=2)
        yield base.but(dtype="bfloat16", state_dtype="bfloat16", gate_in_kernel=True, gates="slow")
        if form in ("chunk", "prefill"):
            yield base.but(chunk_size=16)
            yield base.but(chunk_size=32, dtype="float16")
        if form in ("chunk", "recurrent"):
            yield base.but(initial_state=False, v_dtype="bfloat16")
        yield base.but(dtype="float16", state_dtype="float16")
        few = base.but(label="parameters", B=1, T=min(base.T, 20), H=1, HV=2, K=16, V=8)
        yield few.but(gate_in_kernel=True, parameter_dtype="bfloat16")
        if plan.operator.gate_per_channel:
            bounded = base.but(label="bounded", gate_in_kernel=True, lower_bound=-5.0)
            yield bounded.but(dtype="bfloat16", safe_gate=form in ("chunk", "prefill"), K=32, V=16)
            yield few.but(label="no-rate", gate_in_kernel=True, A_log=False)
            yield few.but(label="no-rate", gate_in_kernel=True, A_log=False, lower_bound=-0.7, dt_bias=False)
            if form in ("chunk", "prefill"):
                yield base.but(label="safe", safe_gate=True, gates="extreme")
                yield base.but(label="safe", safe_gate=True, gates="extreme", dtype="float16", chunk_size=32)
        if plan.full:
            for dtype in ("float32", "bfloat16", "float16"):
                for K, V in ((128, 128), (64, 128), (256, 64), (96, 160), (256, 256), (16, 16)):
                    for layout in ("k_first", "v_first"):
                        T = base.T if form in ("decode", "recurrent") else 150
                        yield base.but(label="sizes", dtype=dtype, K=K, V=V, layout=layout, T=T, H=1, HV=2)
            if form in ("chunk", "prefill"):
                # more than one block of K or V, the last one partly filled
                for K, V in ((40, 136), (136, 40), (136, 136)):
                    for dtype in ("float32", "bfloat16"):
                        yield base.but(label="blocks", dtype=dtype, K=K, V=V, B=1, H=1, HV=2)
            for options in ({"gate_in_kernel": True}, {"beta_sigmoid": True}, {"normalize": False}, {"scale": 2.0}):
                yield base.but(label="option", **options)
            if form != "decode":
                yield base.but(label="long", T=1000, B=1, H=1, HV=1, gates="slow")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        call: Call = context.call(case)
        for turn in (0, 1):
            # the same memory again: neither shapes nor addresses tell the second turn from the first
            call = context.renew(case, call, turn=turn) if turn else call
            outputs = context.run(case, call)
            yield from context.judge(case, outputs, call, turn=turn)
            if turn == 0 and isinstance(call, SequenceCall):
                yield from gauge(case, context)
            low = outputs.o.dtype in (torch.bfloat16, torch.float16)
            if low and case.form in ("recurrent", "decode"):
                yield bias_of_rounding(case, context, outputs.o, turn)


PROBE = Values()
