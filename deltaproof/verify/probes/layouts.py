"""Layouts: a state is read and written in the order of dimensions that was asked for

What it does
    Runs both layouts with K ≠ V and with K = V from a state that is neither zero nor symmetric, contiguous and as a
    transposed view. Passes a state or pool in the other layout's shape, one of integers, and a pool whose inner matrix
    is transposed.

What it shows
    A state whose shape, strides and dtype nobody checks: read transposed without a word, or its bytes reinterpreted.

How it judges
    Legal calls are held to the oracle within the bound of clause N2; where K = V nothing but the values can show the
    layout. A state of the wrong shape must be refused. One of integers, and a pool with a transposed inner matrix, must
    be refused; a backend called without the public functions' checks may also give the right values. The public
    functions must raise ContractError.

What it cannot see
    With K = V, whether a caller passed the layout he meant: a raw tensor does not carry it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes._expected import compare_all, expected, on_cpu, values
from deltaproof.verify.probes._runs import refusal

WRONG_SHAPE = "wrong-shape"
INTEGERS = "integers"
TRANSPOSED = "transposed-view"


class Layouts(Probe):
    """States in both orders."""

    name = "layouts"
    clause = "T1"
    clauses = ("T1", "P5", "M3", "E1", "P2", "S0", "S1", "S3")
    hazards = ("unchecked-state-layout", "assumed-contiguous")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, T=4 if form in ("decode", "recurrent") else 18, gates="slow")
        if plan.light:
            base = base.but(B=1)
        for layout in ("k_first", "v_first"):
            yield base.but(label="unequal", K=16, V=24, layout=layout)
            yield base.but(label="equal", K=16, V=16, layout=layout)
            yield base.but(label=TRANSPOSED, K=16, V=16, layout=layout)
            yield base.but(label=WRONG_SHAPE, K=16, V=24, layout=layout)
        yield base.but(label=TRANSPOSED, K=16, V=24)
        yield base.but(label=INTEGERS, K=16, V=24)
        if form != "decode":
            yield base.but(label="equal", K=16, V=16, layout="v_first", seqlens=(3, 0, 2))
        if plan.full:
            for layout in ("k_first", "v_first"):
                for state_dtype in ("float32", "bfloat16", "float16"):
                    for K, V in ((64, 64), (128, 128), (32, 64), (64, 32), (20, 20)):
                        yield base.but(label="sizes", K=K, V=V, layout=layout, state_dtype=state_dtype)
                    for label in (TRANSPOSED, WRONG_SHAPE, INTEGERS):
                        yield base.but(label=label, K=32, V=64, layout=layout, state_dtype=state_dtype)
                yield base.but(label="equal", K=64, V=64, layout=layout, slot_padding=24, head_padding=8)

    def still_about(self, case: Case) -> bool:
        return case.label != WRONG_SHAPE or case.K != case.V

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        call: Any = context.call(case)
        name = "pool" if case.is_pool else "initial_state"
        state: torch.Tensor = getattr(call, name)
        if case.label == WRONG_SHAPE:
            rows, columns = state.shape[2:]
            other = state.new_empty(*state.shape[:2], columns, rows).copy_(state.transpose(-1, -2))
            yield self._refused(case, context, call.with_(**{name: inputs.guarded(other, device=context.device)}), name)
        elif case.label == INTEGERS:
            yield from self._integers(case, context, call, name)
        elif case.label == TRANSPOSED:
            turned = inputs.guarded(state.transpose(-1, -2).contiguous(), device=context.device).transpose(-1, -2)
            yield from self._transposed(case, context, call.with_(**{name: turned}))
        else:
            outputs = context.run(case, call)
            yield from context.judge(case, outputs, call, clause="T1", hazard="unchecked-state-layout")

    def _refused(self, case: Case, context: Context, call: Call, name: str) -> Observation:
        error, _ = refusal(case, context, call)
        x = getattr(call, name)
        text = f"{name} of shape {list(x.shape)} in layout {case.layout} with K = {case.K}, V = {case.V}"
        return self._error(context, error, text)

    def _error(self, context: Context, error: Exception | None, text: str) -> Observation:
        wanted = "ContractError" if context.target.face else "an exception"
        if error is None:
            message = f"{text} was accepted without a word"
            return Observation(False, "T1", message, "unchecked-state-layout", value="no error", expected=wanted)
        if context.target.face and not isinstance(error, ContractError):
            message = f"{text} raised {type(error).__name__}: {error}"
            return Observation(False, "E1", message, "unchecked-state-layout", value=repr(error), expected=wanted)
        return Observation(True, "T1")

    def _integers(self, case: Case, context: Context, call: Any, name: str) -> Iterator[Observation]:
        """A state of integers is refused, or (without the public checks) read as numbers; not as another's bytes."""
        whole = torch.randint(-3, 4, getattr(call, name).shape, generator=torch.Generator().manual_seed(context.seed))
        changes: dict[str, Any] = {name: inputs.guarded(whole.to(torch.int32), device=context.device)}
        if case.is_pool:
            # nothing is kept: a state rounded to integers is not the question
            changes["write_index"] = inputs.guarded(call.read_index * 0 - 1, device=context.device)
        else:
            changes["output_final_state"] = False
        call = call.with_(**changes)
        error, outputs = refusal(case, context, call)
        text = f"{name} of int32"
        if outputs is None or context.target.face:
            yield self._error(context, error, text)
            return
        clean = on_cpu(context.call(case, device="cpu").with_(**changes))
        want = expected(context, case.form, clean.with_(**{name: whole.float()}))
        got = {"o": outputs.o}
        what = f"{text} was neither refused nor read as numbers"
        yield from compare_all(got, {"o": want["o"]}, "T1", "unchecked-state-layout", case, what)

    def _transposed(self, case: Case, context: Context, call: Any) -> Iterator[Observation]:
        """A transposed view is an ordinary initial state; as a pool it breaks clause P5."""
        hazard = "assumed-contiguous"
        if not case.is_pool:
            error, outputs = (None, context.run(case, call)) if context.target.face else refusal(case, context, call)
            if outputs is None:
                yield Observation(True, "M3", f"refused: {error}")
                return
            yield from context.judge(case, outputs, call, clause="T1", hazard=hazard)
            return
        error, outputs = refusal(case, context, call)
        if outputs is None or context.target.face:
            yield self._error(context, error, "pool with a transposed inner matrix")
            return
        want = expected(context, case.form, context.call(case, device="cpu"))
        what = "a pool with a transposed inner matrix was neither refused nor honoured"
        yield from compare_all(values(call, outputs), want, "P5", hazard, case, what)


PROBE = Layouts()
