"""Packed sequences: a pack against the oracle, against its sequences one by one, and behind its end

What it does
    Calls chunk, recurrent and prefill with sequences of very different lengths packed into one row, some of them empty
    (the first, one in the middle, the last, all), with rows after the last sequence that hold NaN, and with int32 and
    int64 bounds. Every sequence is then called alone. New buffers hold NaN, so an element that is not written shows.
    Two calls share one cu_seqlens tensor, whose bounds change in place between them.

What it shows
    A pointer that is not advanced to its sequence, a total length taken for the local one, a state of the wrong
    sequence, options dropped for packs, tail rows that are not written or reach the gradients; chunk indices kept from
    an earlier call because cu_seqlens is the same tensor.

How it judges
    The pack and the oracle must agree within the bound of clause N2; the pack and a sequence alone within the sum of
    both bounds. Rows in no sequence give o = 0 and gradients of exactly 0; all other gradients must be finite. Of two
    calls with one cu_seqlens each must agree with the oracle on the bounds that it was given.

What it cannot see
    Whether the bits depend on the pack: that is clause I2. Wrong gradients inside sequences: that is clause G3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation, locate, number
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._expected import Values, WrongResult, compare_all, compare_between, expected, values
from deltaproof.verify.probes._memory import filled_buffers
from deltaproof.verify.probes._runs import BACKWARD, finite, make, require

TOKENS = ("q", "k", "v", "g", "beta")
CHANGED = "changed-bounds"


class Varlen(Probe):
    """Packed sequences."""

    name = "varlen"
    clause = "S4"
    clauses = ("S4", "S1", "S3", "G3", "S0", "P2")
    hazards = (
        "missing-base-offset",
        "unmasked-load",
        "unwritten-output",
        "unthreaded-option",
        "incomplete-cache-key",
    )
    forms = ("chunk", "recurrent", "prefill")

    def cases(self, plan: Plan) -> Iterator[Case]:
        base = Case(plan.form, K=16, V=24)
        recurrent = plan.form == "recurrent"
        # an odd tail draws int32 bounds, an even one int64
        yield base.but(seqlens=(5, 0, 3, 9) if recurrent else (17, 0, 64, 5), tail=3)
        if plan.light:
            base = base.but(H=1, HV=2)
        yield base.but(seqlens=(0, 1, 7, 0) if recurrent else (0, 1, 65, 0), tail=2, layout="v_first")
        yield base.but(seqlens=(0, 0, 0), tail=1, H=2, HV=4, V=40)
        options = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True, "scale": 0.4}
        yield base.but(seqlens=(6, 2) if recurrent else (15, 16, 18), chunk_size=64 if recurrent else 16, **options)
        # as many tokens, sequences and chunks of 64 as with the bounds in reverse
        yield base.but(label=CHANGED, seqlens=(5, 2) if recurrent else (70, 5), H=1, HV=1)
        if not base.is_pool:
            yield base.but(seqlens=(2, 0, 4), initial_state=False, dtype="bfloat16")
            yield base.but(label=BACKWARD, seqlens=(5, 0, 3), tail=3, gate_in_kernel=True)
            yield base.but(label=BACKWARD, seqlens=(0, 17), tail=2, layout="v_first", chunk_size=16)
        if plan.full:
            for tail in (0, 1, 70):
                yield base.but(label="around", seqlens=(63, 64, 65, 1, 0, 15, 16, 17), tail=tail, slots=11)
                yield base.but(label="around", seqlens=(1, 1, 0, 0, 0, 1, 33), tail=tail, slots=11, chunk_size=16)
                yield base.but(label="bf16", seqlens=(0, 40, 0, 31), tail=tail, dtype="bfloat16", layout="v_first")
            if not base.is_pool:
                for seqlens in ((), (0, 0), (64, 0, 1, 65), (1, 0, 0, 30)):
                    yield base.but(label=BACKWARD, seqlens=seqlens, tail=5, dtype="bfloat16")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        look = {BACKWARD: self._gradients, CHANGED: self._changed}.get(case.label, self._pack)
        try:
            yield from look(case, context)
        except WrongResult as error:
            yield Observation(False, "S1", str(error))

    def _pack(self, case: Case, context: Context) -> Iterator[Observation]:
        alone = self._alone(case, context)
        call = context.call(case)
        pack = make(case, context, call, inside=filled_buffers("nan"))
        got = values(call, pack.outputs)
        want = expected(context, case.form, context.call(case, device="cpu"))
        yield self._tail(case, got["o"])
        yield self._empty(case, got)
        yield from compare_all(got, want, "S4", "missing-base-offset", case)
        what = "the pack against each sequence alone"
        yield from compare_between(got, alone, want, want, "S4", "missing-base-offset", case, what)

    def _changed(self, case: Case, context: Context) -> Iterator[Observation]:
        """Call twice with one cu_seqlens, and in between reverse the lengths in place."""
        assert case.seqlens is not None
        bounds: torch.Tensor | None = None
        for turn, lengths in enumerate((case.seqlens, case.seqlens[::-1])):
            step = case.but(seqlens=lengths)
            call: Any = context.call(step)
            bounds = call.cu_seqlens if bounds is None else bounds.copy_(call.cu_seqlens)
            call = call.with_(cu_seqlens=bounds)
            outputs = context.run(step, call)
            hazard = "incomplete-cache-key" if turn else "missing-base-offset"
            yield from context.judge(step, outputs, call, clause="S4", hazard=hazard)

    def _alone(self, case: Case, context: Context) -> Values:
        """Return what the sequences give in one dense call each, put together as the pack is.

        An empty sequence is not called: its final state is its initial state.
        """
        assert case.seqlens is not None
        whole: Any = context.call(case)
        o = torch.zeros_like(whole.v, memory_format=torch.contiguous_format)
        states = []
        first = 0
        for n, length in enumerate(case.seqlens):
            span = slice(first, first + length)
            first += length
            fresh: Any = context.call(case)
            parts = {name: inputs.guarded(getattr(fresh, name)[:, span], device=context.device) for name in TOKENS}
            for name in ("read_index", "initial_state"):
                if getattr(fresh, name, None) is not None:
                    parts[name] = inputs.guarded(getattr(fresh, name)[n : n + 1], device=context.device)
            one = fresh.with_(cu_seqlens=None, **parts)
            if length:
                found = values(one, context.run(case, one))
                o[:, span] = found["o"]
                states.append(one.pool[int(one.read_index)] if case.is_pool else found["final_state"][0])
            elif case.is_pool:
                states.append(one.pool[int(one.read_index)])
            else:
                state = one.initial_state
                zeros = o.new_zeros(case.HV, *one.options.layout.inner_shape(case.K, case.V), dtype=torch.float32)
                states.append(zeros if state is None else state[0])
        if not case.is_pool:
            return {"o": o, "final_state": torch.stack(states)}
        return {"o": o, **{f"pool[{slot}]": x for slot, x in zip(whole.read_index.tolist(), states, strict=True)}}

    def _tail(self, case: Case, o: torch.Tensor) -> Observation:
        rows = o[:, case.tokens - case.tail :]
        return _zero("o", rows, case.tokens - case.tail, "rows in no sequence must give 0")

    def _empty(self, case: Case, got: Values) -> Observation:
        """Check that the final states of empty sequences hold numbers; which ones the oracle says."""
        assert case.seqlens is not None
        empty = [n for n, length in enumerate(case.seqlens) if length == 0]
        if case.is_pool or not empty or bool(got["final_state"][empty].isfinite().all()):
            return Observation(True, "S4")
        text = "the final state of an empty sequence is not its initial state: new memory held NaN, and still does"
        return Observation(False, "S4", text, "unwritten-output")

    def _gradients(self, case: Case, context: Context) -> Iterator[Observation]:
        require(context, BACKWARD)
        run = make(case, context, backward=True, inside=filled_buffers("nan"))
        end = case.tokens - case.tail
        yield from finite(run, "S4", "unwritten-output", "rows in no sequence held NaN")
        for name in TOKENS:
            grad = run.results.get(f"gradient of {name}")
            if grad is None:
                # with no token in any sequence nothing has to reach an input
                yield Observation(end == 0, "G3", "" if end == 0 else f"{name} received no gradient")
            else:
                what = "rows in no sequence must have no gradient"
                yield _zero(f"gradient of {name}", grad[:, end:], end, what)


def _zero(name: str, rows: torch.Tensor, first: int, what: str) -> Observation:
    """Check that rows [B, tail, ...] are zero; ``first`` is the token of the first of them."""
    bad = ~(rows == 0)
    if not bool(bad.any()):
        return Observation(True, "S4")
    flat = int(bad.int().argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), rows.shape))
    place = locate(name, (at[0], at[1] + first, *at[2:]))
    text = f"{name}: {int(bad.sum())} of {bad.numel()} elements are not 0: {what}"
    return Observation(False, "S4", text, "unwritten-output", place, number(rows[at].cpu()), "0")


PROBE = Varlen()
