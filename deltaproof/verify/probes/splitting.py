"""Splitting: the parts of a sequence, and its other forms, give what the whole gives

What it does
    Cuts a sequence at a chunk boundary, off it, at 0 and at T, and runs the pieces one after another, each from the
    state the backend itself left. Runs decode token by token against one call of several tokens, and states kept after
    each token by ``write_index`` [N, T] against the states of those steps. Runs the same sequence through two forms.

What it shows
    A state that is appended to, kept from an earlier call, or handed over after the wrong token; a chunk's tail that
    reaches the state; forms that compute different functions.

How it judges
    Every piece is held to the oracle started from the state that the backend carried into it, within the bound of
    clause N2. The pieces put together are held to the whole's values within the sum of two bounds: the whole's, which
    covers what errors before the cut do after it, and the piece's own. Two forms must each lie within their bound of
    the same oracle, and within the sum of both of each other. States are fp32, so that a cut rounds nothing that the
    whole does not round.

What it cannot see
    A difference between whole and parts that stays below the bounds: bitwise agreement is not promised.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected
from deltaproof.verify.observation import Observation, Unsupported
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._expected import (
    Values,
    WrongResult,
    compare_all,
    compare_between,
    expected,
    on_cpu,
    values,
)
from deltaproof.verify.target import Outputs

TOKENS = ("q", "k", "v", "g", "beta")
CUTS = "cuts"
WITH = "with-"
WRITES = "token-writes"
# each pair of forms is compared once, under the form it is listed for
PARTNERS = {
    "chunk": ("recurrent",),
    "recurrent": ("decode",),
    "decode": ("chunk", "prefill"),
    "prefill": ("chunk", "recurrent"),
}


class Splitting(Probe):
    """Whole against parts, form against form."""

    name = "splitting"
    clause = "T3"
    clauses = ("T3", "S0", "S1", "S3")
    hazards = ("appended-cache",)

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, K=16, V=24, T={"decode": 5, "recurrent": 11}.get(form, 39))
        base = base.but(chunk_size=16 if form in ("chunk", "prefill") else 64)
        T = base.T
        yield base.but(label={"decode": f"{CUTS}-1-2-3-4", "recurrent": f"{CUTS}-4-7"}.get(form, f"{CUTS}-16-30"))
        if form == "decode":
            yield base.but(label=f"{CUTS}-3", layout="v_first", gate_in_kernel=True)
            writes = ((6, 2, 4, 7, 8), (9, 10, -1, 3, 0))
            yield base.but(label=WRITES, read=(1, 5), write=writes, slots=11)
        else:
            yield base.but(label=f"{CUTS}-0-{T}", B=1, layout="v_first", gate_in_kernel=True)
        for partner in PARTNERS[form]:
            yield base.but(label=WITH + partner, B=1 + (partner == "chunk"), gates="slow", T=9 if T < 16 else 19)
        if not plan.full:
            return
        if form == "decode":
            yield base.but(label=f"{CUTS}-1-8-15", T=16, dtype="bfloat16", normalize=False)
            yield base.but(label=f"{CUTS}-" + "-".join(map(str, range(1, 16))), T=16, B=1, gates="mixed")
        else:
            T = 20 if form == "recurrent" else 150
            for cut in (1, 15, 16, 17, 64, 65, 128, 149):
                if cut < T:
                    options = {"layout": "v_first" if cut % 2 else "k_first", "gate_in_kernel": cut % 2 == 0}
                    yield base.but(label=f"{CUTS}-{cut}", T=T, chunk_size=64, **options)
            every = "-".join(map(str, range(1, 33)))
            yield base.but(label=f"{CUTS}-{every}", T=33, B=1, gates="slow")
            yield base.but(label=f"{CUTS}-7-{T - 1}", T=T, dtype="bfloat16")
        for partner in PARTNERS[form]:
            for dtype, layout in (("float32", "v_first"), ("bfloat16", "k_first")):
                yield base.but(label=WITH + partner, T=35, dtype=dtype, layout=layout, K=24, V=40, chunk_size=64)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        try:
            if case.label.startswith(WITH):
                yield from self._forms(case, context, case.label.removeprefix(WITH))
            elif case.label == WRITES:
                yield from self._token_writes(case, context)
            else:
                yield from self._pieces(case, context)
        except WrongResult as error:
            yield Observation(False, "S1", str(error))

    def _pieces(self, case: Case, context: Context) -> Iterator[Observation]:
        call: Any = context.call(case)
        whole = values(call, context.run(case, call))
        cuts = [int(cut) for cut in case.label.split("-")[1:]]
        bounds = [0, *cuts, case.tokens]
        carried: Any = context.call(case)
        calls, results = [], []
        for a, b in itertools.pairwise(bounds):
            piece = _piece(context, case, slice(a, b), carried)
            calls.append(on_cpu(piece))
            outputs = context.run(case, piece)
            results.append(values(piece, outputs))
            carried = _carry(piece, outputs)
        want = expected(context, case.form, context.call(case, device="cpu"))
        yield from compare_all(whole, want, "T3", "appended-cache", case, "the whole against the oracle")
        for a, got in zip(bounds, results, strict=False):
            if not all(bool(x.isfinite().all()) for x in got.values()):
                yield Observation(False, "T3", f"results of the piece from token {a} are not finite", "appended-cache")
                return
        wants = [expected(context, case.form, piece) for piece in calls]
        for a, b, got, own in zip(bounds[:-1], bounds[1:], results, wants, strict=True):
            what = f"tokens {a} to {b}, from the state the backend left at {a}"
            yield from compare_all(got, own, "T3", "appended-cache", case, what)
        together = {**results[-1], "o": torch.cat([got["o"] for got in results], 1)}
        bound = {**wants[-1], "o": replace(want["o"], bound=torch.cat([own["o"].bound for own in wants], 1))}
        what = f"cut at {', '.join(map(str, cuts))} against the oracle of the whole"
        wide = {name: replace(row, bound=row.bound + bound[name].bound) for name, row in want.items()}
        yield from compare_all(together, wide, "T3", "appended-cache", case, what)
        what = f"cut at {', '.join(map(str, cuts))} against the whole"
        # the whole, and the pieces together: each within its own bound of the oracle
        yield from compare_between(together, whole, want, wide, "T3", "appended-cache", case, what)

    def _token_writes(self, case: Case, context: Context) -> Iterator[Observation]:
        """Compare the states that one call keeps after each token with those of one call a token."""
        assert case.write is not None
        call: Any = context.call(case)
        at_once = values(call, context.run(case, call))
        carried: Any = context.call(case)
        carried = carried.with_(write_index=None)
        stepped: Values = {}
        outputs = []
        for t in range(case.T):
            piece = _piece(context, case, slice(t, t + 1), carried)
            result = context.run(case, piece)
            outputs.append(values(piece, result)["o"])
            for row, slots in enumerate(case.write):
                stepped[f"pool[{slots[t]}]"] = piece.pool[piece.read_index[row]].clone()
            carried = _carry(piece, result)
        stepped["o"] = torch.cat(outputs, 1)
        want = expected(context, case.form, context.call(case, device="cpu"))
        yield from compare_all(at_once, want, "T3", "appended-cache", case, "states after each token")
        what = "states after each token, one call against one call a token"
        yield from compare_between(at_once, stepped, want, want, "T3", "appended-cache", case, what)

    def _forms(self, case: Case, context: Context, partner: str) -> Iterator[Observation]:
        """Run one drawn sequence through two forms."""
        if not callable(getattr(context.target.backend, partner, None)):
            raise Unsupported(f"{partner}: {context.target.backend.name} has no such form")
        shared = case.but(form="chunk", label=f"{case.form}-{partner}", slots=7)
        got = {form: _through(form, shared, context) for form in (case.form, partner)}
        want: dict[str, dict[str, Expected]] = {}
        for form in got:
            # decode is the recurrence, prefill the chunked form; the oracle is the same
            like = "chunk" if form in ("chunk", "prefill") else "recurrent"
            want[form] = expected(context, like, context.call(shared, device="cpu"))
            yield from compare_all(got[form], want[form], "T3", None, case, f"{form} against the oracle")
        first, second = got
        what = f"{first} against {second}"
        yield from compare_between(got[first], got[second], want[first], want[second], "T3", None, case, what)


def _piece(context: Context, case: Case, span: slice, carried: Any) -> Any:
    """Return the call over some tokens, from the state that ``carried`` holds."""
    fresh: Any = context.call(case)
    parts = {name: inputs.guarded(getattr(fresh, name)[:, span], device=context.device) for name in TOKENS}
    if case.is_pool:
        return fresh.with_(**parts, pool=carried.pool, write_index=carried.write_index)
    return fresh.with_(**parts, initial_state=carried.initial_state)


def _carry(call: Any, outputs: Outputs) -> Any:
    """Return the call with the state the backend left as the one to start from; a pool holds it already."""
    return call if outputs.final_state is None else call.with_(initial_state=outputs.final_state)


def _through(form: str, case: Case, context: Context) -> Values:
    """Return o and the final states of a drawn sequence call, computed by one form."""
    call: SequenceCall = context.call(case)
    as_form = case.but(form=form)
    if form in ("chunk", "recurrent"):
        return values(call, context.run(as_form, call))
    assert call.initial_state is not None
    N = call.sequences
    # states 1 to N of a pool, slot 0 in nobody's use
    states = torch.cat([torch.zeros_like(call.initial_state[:1]), call.initial_state])
    pool = inputs.strided_pool(states, case, "nan", context.device)
    read_index = inputs.guarded(torch.arange(1, N + 1), device=context.device)
    step = 16 if form == "decode" else case.tokens
    kind = DecodeCall if form == "decode" else PrefillCall
    parts = []
    for start in range(0, case.tokens, step):
        span = slice(start, start + step)
        tokens: dict[str, Any] = {
            name: inputs.guarded(getattr(call, name)[:, span], device=context.device) for name in TOKENS
        }
        one = kind(
            **tokens, options=call.options, A_log=call.A_log, dt_bias=call.dt_bias, pool=pool, read_index=read_index
        )
        parts.append(values(one, context.run(as_form, one))["o"])
    return {"o": torch.cat(parts, 1), "final_state": pool[1:].clone()}


PROBE = Splitting()
