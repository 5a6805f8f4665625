"""Causality: later tokens change nothing before them

What it does
    Makes a call, then makes it again with every token after some token changed (other values, values of 1e4, gates
    wide open, gates shut) or taken away, at cuts inside a chunk, on its borders and behind the first token. In decode,
    tokens past a row's num_tokens are changed too.

What it shows
    A gate referred to the middle or the end of its chunk, a mask that multiplies instead of selecting, a tile that
    reads ahead, a configuration chosen by the number of tokens.

How it judges
    Outputs up to the cut, final states of sequences that ended before it, checkpoints taken before it and slots written
    after earlier tokens must be bit-identical and finite. Outputs behind the cut must change: one that does not was not
    computed from these tokens.

What it cannot see
    Gradients, which flow from later tokens to earlier ones by nature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall
from deltaproof.ops.common.checks import SAFE_GATE
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe
from deltaproof.verify.probes._exact import exact, snapshot
from deltaproof.verify.probes._runs import make

ORDER = 62
TOKENS = ("q", "k", "v", "g", "beta")
KINDS = ("random", "large", "open", "shut")
LARGE = 1e4
CHANGED, APPENDED, DEAD = "changed", "appended", "past num_tokens"


class Causality(Probe):
    """Clause I3."""

    name = "causality"
    clause = "I3"
    clauses = ("I3", "S0")
    hazards = ("mask-by-multiply", "unbounded-exp", "incomplete-cache-key")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, B=2, T={"decode": 6, "recurrent": 19}.get(form, 137), H=1, HV=2, K=24, V=40)
        lengths = (5, 3, 9) if form == "recurrent" else (40, 17, 80)
        if plan.light:
            base = base.but(K=9, V=13) if form == "decode" else base.but(B=1, K=9, V=13)
            if form == "recurrent":
                base, lengths = base.but(T=7), (3, 1, 4)
            elif form != "decode":
                base, lengths = base.but(T=20, chunk_size=16), (10, 5, 20)
        base = _with_states(base)
        low = base.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True, layout="v_first")
        pack = base.but(normalize=False, seqlens=lengths, checkpoints=None)
        for label in (CHANGED, APPENDED):
            yield base.but(label=label)
            yield low.but(label=label)
            # the fp32 gate is computed with full precision: what its last bit depends on shows
            yield base.but(label=label, gate_in_kernel=True, beta_sigmoid=True, HV=3)
            if form != "decode":
                yield _with_states(pack.but(label=label))
            if plan.operator.gate_per_channel and form in ("chunk", "prefill"):
                yield base.but(label=label, safe_gate=True, gates="extreme", dtype="bfloat16")
        if form == "decode":
            yield base.but(label=DEAD, num_tokens=(4, 0), write=None)
            yield low.but(label=DEAD, B=3, num_tokens=(6, 1, 3), write=None)
        if plan.full:
            for label in (CHANGED, APPENDED):
                for K, V in ((128, 128), (64, 64), (96, 160), (256, 32)):
                    for dtype in ("float32", "bfloat16", "float16"):
                        yield base.but(label=label, K=K, V=V, dtype=dtype)
                for size in (16, 32) if form in ("chunk", "prefill") else ():
                    yield _with_states(base.but(label=label, chunk_size=size))
                yield base.but(label=label, keys="correlated", gates="mixed")
                if form == "chunk":
                    yield base.but(label=label, T=1100, B=1)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        whole = snapshot(make(case, context).results)
        if case.label == DEAD:
            for kind in KINDS:
                call = context.call(case)
                for row, count in enumerate(case.num_tokens or ()):
                    self._change(case, context, call, slice(row, row + 1), slice(count, case.T), kind)
                results = snapshot(make(case, context, call).results)
                what = f"tokens past num_tokens were changed ({kind} values)"
                yield from (exact(name, x, whole[name], "I3", _hazard(kind), what) for name, x in results.items())
            return
        end = case.tokens - case.tail
        for cut in _cuts(case, end):
            if case.label == APPENDED:
                shorter = _shortened(case, context, cut)
                before = snapshot(make(case, context, shorter).results)
                what = f"{end - cut} tokens were appended to the first {cut}"
                yield from self._same_before(case, whole, before, cut, None, what)
                continue
            for kind in KINDS:
                call = context.call(case)
                self._change(case, context, call, slice(None), slice(cut, end), kind)
                changed = snapshot(make(case, context, call).results)
                what = f"the tokens from {cut} on were changed ({kind} values)"
                yield from self._same_before(case, changed, whole, cut, _hazard(kind), what)
                if kind == "random":
                    same = torch.equal(changed["o"][:, cut:end], whole["o"][:, cut:end])
                    text = f"outputs from token {cut} on did not change with their tokens" if same else ""
                    yield Observation(not same, "S0", text, "incomplete-cache-key")

    def _change(self, case: Case, context: Context, call: Call, rows: slice, tokens: slice, kind: str) -> None:
        """Overwrite some tokens of a call; they stay finite and legal."""
        other: Call = context.call(case, turn=1)
        for name in TOKENS:
            x = getattr(call, name)
            x[rows, tokens] = getattr(other, name)[rows, tokens]
        if kind == "large":
            # keys without normalisation keep their norm: above it exact arithmetic diverges (clause N1)
            for name in ("q", "k", "v") if case.normalize else ("q", "v"):
                part = getattr(call, name)[rows, tokens]
                part.copy_(torch.where(part < 0, -LARGE, LARGE))
        elif kind in ("open", "shut"):
            shut = SAFE_GATE if case.safe_gate else -LARGE
            raw, log = (-LARGE, 0.0) if kind == "open" else (LARGE, shut)
            call.g[rows, tokens] = raw if case.gate_in_kernel else log

    def _same_before(
        self,
        case: Case,
        got: dict[str, torch.Tensor],
        want: dict[str, torch.Tensor],
        cut: int,
        hazard: str | None,
        what: str,
    ) -> Iterator[Observation]:
        """Compare what belongs to tokens before ``cut``."""
        yield exact("o", got["o"][:, :cut], want["o"][:, :cut], "I3", hazard, what)
        if case.seqlens is not None and "final_state" in want:
            ended = sum(bound <= cut for bound in accumulate(case.seqlens))
            yield exact("final_state", got["final_state"][:ended], want["final_state"][:ended], "I3", hazard, what)
        if "pool" in want:
            late = _slots_after(case, cut)
            slots = [slot for slot in range(case.slots) if slot not in late]
            seen = exact("pool", got["pool"][slots], want["pool"][slots], "I3", hazard, what)
            if seen.location is not None and seen.location.element is not None:
                slot = slots[seen.location.element[0]]
                element = (slot, *seen.location.element[1:])
                place = seen.location.model_copy(update={"row": None, "slot": slot, "element": element})
                seen = replace(seen, location=place)
            yield seen


def _hazard(kind: str) -> str:
    return "unbounded-exp" if kind in ("open", "shut") else "mask-by-multiply"


def _with_states(case: Case) -> Case:
    """Return the case with slots that keep states before the last token, as many as its form allows."""
    N = case.sequences
    if case.form == "decode":
        first = case.B + 1
        write = tuple(tuple(range(first + n * case.T, first + (n + 1) * case.T)) for n in range(N))
        return case.but(slots=first + N * case.T, write=write)
    if case.form == "prefill":
        longest = max(case.seqlens) if case.seqlens is not None else case.T
        count = longest // case.chunk_size
        first = N + 1
        kept = tuple(tuple(range(first + n * count, first + (n + 1) * count)) for n in range(N))
        return case.but(slots=first + N * count, checkpoint_every=case.chunk_size, checkpoints=kept)
    return case


def _cuts(case: Case, end: int) -> list[int]:
    """Return how many tokens stay: one, all but one, and around the borders of chunks."""
    if case.form in ("decode", "recurrent"):
        found = {1, 2, end // 2, end - 1}
    else:
        size = case.chunk_size
        found = {1, size // 2 + 5, size, size + 1, 2 * size, end - 1}
    if case.label == APPENDED and case.seqlens is not None:
        # tokens are appended to the last sequence
        start = end - case.seqlens[-1]
        found = {start + cut for cut in found}
    cuts = sorted(cut for cut in found if 0 < cut < end)
    # four kinds of change at each: every second cut will do
    return cuts[1::2] if case.label == CHANGED else cuts


def _shortened(case: Case, context: Context, cut: int) -> Call:
    """Return the case's call with its first ``cut`` tokens alone, in memory of its own."""
    call: Call = context.call(case)
    parts: dict[str, Any] = {
        name: inputs.guarded(getattr(call, name)[:, :cut], device=context.device) for name in TOKENS
    }
    if case.seqlens is not None:
        assert not isinstance(call, DecodeCall) and call.cu_seqlens is not None
        call.cu_seqlens[-1] = cut
    if isinstance(call, DecodeCall) and call.write_index is not None:
        parts["write_index"] = inputs.guarded(call.write_index[:, :cut], device=context.device)
    shorter: Call = replace(call, **parts)
    return shorter


def _slots_after(case: Case, cut: int) -> set[int]:
    """Return the slots that are written with a state that knows tokens from ``cut`` on."""
    reads = case.read if case.read is not None else tuple(range(1, case.sequences + 1))
    if case.form == "decode":
        assert case.write is not None
        return {slot for row in case.write for slot in row[cut:]}
    lengths = case.seqlens if case.seqlens is not None else (case.T,) * case.B
    starts = list(accumulate(lengths, initial=0))[:-1] if case.seqlens is not None else [0] * case.B
    late = set()
    for n, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start + length > cut:
            late.add(reads[n])
        for j, slot in enumerate(case.checkpoints[n] if case.checkpoints is not None else (), 1):
            assert case.checkpoint_every is not None
            if start + j * case.checkpoint_every > cut:
                late.add(slot)
    return late


PROBE = Causality()
