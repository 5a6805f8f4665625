"""Gradients: every input's against the float64 vector-Jacobian product

What it does
    Calls chunk and recurrent, sends random cotangents back through o and through the final state, together and each
    alone, and asks for the gradients of q, k, v, g (or its raw input), beta, initial_state, A_log and dt_bias; once
    of a few of them only, and without dt_bias. Packs with empty sequences and odd tails, grouped heads, both layouts,
    partial last chunks.

What it shows
    A missing or wrong term, rows of the last chunk left out, the gradient of the final state dropped, a gradient in the
    wrong order or missing in the tuple that backward returns, inputs changed by backward.

How it judges
    Against autograd through the float64 oracle, row by row, with bounds from the rounding model run backwards. A
    gradient has its input's shape and dtype; None passes only where the gradient is zero by construction. Inputs must
    be bit-identical afterwards. Bounds wider than 64 times the error of a same-dtype reference fail.

What it cannot see
    Gradients of gradients; errors below the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.expected import GRADIENT_INPUTS
from deltaproof.verify.inputs import whole_memory
from deltaproof.verify.observation import Observation, same_bits
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes import _vjp

ORDER = 10
SOME = ("k", "g", "initial_state")
"""The inputs that require a gradient where only some do."""


class GradientsProbe(Probe):
    """Gradients of every input and of the final state."""

    name = "gradients"
    clause = "G1"
    clauses = ("G1", "G2", "G3", "M2", "N2")
    hazards = (
        "wrong-gradient",
        "gradient-arity",
        "low-precision-accumulate",
        "missing-base-offset",
        "resource-limit",
        "unthreaded-option",
    )
    forms = ("chunk", "recurrent")

    def cases(self, plan: Plan) -> Iterator[Case]:
        chunk = plan.form == "chunk"
        base = Case(plan.form, "both", B=1, T=70 if chunk else 19, H=1, HV=2, K=16, V=32)
        yield base
        yield base.but(label="o-only", B=2, gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True)
        yield base.but(label="state-only", layout="v_first", normalize=False, gates="slow")
        packed = (65, 0, 3, 16) if chunk else (9, 0, 1, 6)
        varlen = base.but(label="varlen", seqlens=packed, tail=3, H=2, HV=4, K=24, V=16)
        yield varlen
        yield varlen.but(layout="v_first", gate_in_kernel=True, dtype="bfloat16", H=1, HV=2)
        yield base.but(dtype="bfloat16", gate_dtype="bfloat16", state_dtype="bfloat16", layout="v_first", K=32, V=16)
        yield base.but(dtype="float16", gates="slow", initial_state=False, scale=0.5)
        # without dt_bias nothing widens the raw gate on its way to softplus
        raw = {"gate_in_kernel": True, "dt_bias": False, "beta_sigmoid": True, "gate_dtype": "bfloat16"}
        yield base.but(label="some-inputs", **raw)
        yield base.but(label="parameters", T=19, chunk_size=16, gate_in_kernel=True, parameter_dtype="bfloat16")
        # more heads than a program sums up
        yield base.but(label="parameters", B=1, T=2, HV=20, K=4, V=3, gate_in_kernel=True, beta_sigmoid=True)
        # more than one block of K or V: several programs have a share in a gradient
        blocks = base.but(label="blocks", gate_in_kernel=True)
        if plan.operator.gate_per_channel:
            bounded = base.but(label="parameters", T=min(base.T, 19), gate_in_kernel=True, lower_bound=-5.0)
            yield bounded.but(HV=4, K=5, safe_gate=chunk)
            yield bounded.but(A_log=False, parameter_dtype="bfloat16", dtype="bfloat16", beta_sigmoid=True)
            yield bounded.but(A_log=False, lower_bound=None, layout="v_first")
            if chunk:
                yield base.but(label="safe", safe_gate=True, gates="extreme")
        if chunk:
            yield base.but(chunk_size=16, B=2, T=37)
            yield blocks.but(K=40, V=72, T=18, chunk_size=16)
        else:
            yield blocks.but(K=128, V=40, T=5)
            # a state is kept every so many tokens: long enough for several, and for an empty sequence between
            yield base.but(label="varlen", seqlens=(37, 0, 34), K=9, V=5)
        if plan.full:
            T, last = (150, 69) if chunk else (30, 13)
            pack = {"seqlens": (T - last - 1, 0, 1, last), "tail": 5}
            for dtype, layout in (("float32", "k_first"), ("bfloat16", "v_first"), ("float16", "k_first")):
                for label in ("both", "o-only", "state-only", "varlen"):
                    sizes = base.but(label=label, dtype=dtype, layout=layout, T=T, K=64, V=40)
                    yield sizes.but(**pack) if label == "varlen" else sizes
            wide = base.but(K=64, V=128, T=T)
            yield wide.but(H=2, HV=4)
            yield wide.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True)
            yield wide.but(normalize=False, K=128, dtype="bfloat16")
            # more than one block of K or V, the last one partly filled
            yield base.but(K=40, V=136)
            yield base.but(K=136, V=40, gate_in_kernel=True)
            yield base.but(K=136, V=136, dtype="bfloat16", layout="v_first")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        cotangents = _vjp.Cotangents.draw(
            case, context, o=case.label != "state-only", state=case.label not in ("o-only", "some-inputs")
        )
        _vjp.require_backward(context, cotangents)
        call = context.call(case)
        assert isinstance(call, SequenceCall)
        names = SOME if case.label == "some-inputs" else GRADIENT_INPUTS
        leaves = _vjp.leaves_of(call, names)
        gradients = _vjp.pull_back(case, context, call, leaves, cotangents)
        if isinstance(gradients, Observation):
            yield gradients
            return
        expected = _vjp.expectations(case, context, cotangents)
        yield from _vjp.judge_gradients(gradients, expected, self._clause(case), self.hazards[0], case.chunk_size)
        yield from self._untouched(case, context, call, leaves)
        if case.label == "both":
            yield from _vjp.gauge_gradients(case, context, cotangents, expected)

    def _clause(self, case: Case) -> str:
        if case.label == "state-only":
            return "G2"
        return "G3" if case.seqlens is not None or case.layout == "v_first" else "G1"

    def _untouched(self, case: Case, context: Context, call: SequenceCall, leaves: object) -> Iterator[Observation]:
        """Check that forward and backward left every input as it was, and marked none that asked for nothing."""
        assert isinstance(leaves, dict)
        fresh = context.call(case)
        for name in GRADIENT_INPUTS:
            x = getattr(call, name)
            if x is None:
                continue
            memory, before = whole_memory(x.detach()), whole_memory(getattr(fresh, name))
            yield same_bits(
                name, memory, before, "M2", None, "backward must not change an input or what lies around it"
            )
            marked = x.grad is not None or x.requires_grad is not (name in leaves)
            text = f"{name} was given a gradient, or marked as wanting one, by the backend" if marked else ""
            yield Observation(not marked, "G1", text, self.hazards[0], expected=str(name in leaves), value=str(marked))


PROBE = GradientsProbe()
