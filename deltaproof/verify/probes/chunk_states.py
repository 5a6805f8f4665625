"""Chunk states: the state before each chunk is the state of the tokens before it

What it does
    Asks form chunk for the state before each chunk: dense and packed, with an empty sequence and with sequences that
    end inside a chunk, in both layouts, with and without an initial state. Their memory is filled with NaN beforehand.

What it shows
    A state that is written after its chunk and not before it, a sequence that starts at another's chunk, a state in the
    other layout, one that nobody wrote, and an output that changes when states are asked for.

How it judges
    Each state against the oracle's final state of the tokens before the chunk, row by row, within the bound of clause
    N2. Output and final state are bit for bit those of the call that asks for no states. Memory around them stays as it
    was.

What it cannot see
    What a backend that declares chunk_states unsupported would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected
from deltaproof.verify.inputs import guarded, whole_memory
from deltaproof.verify.observation import Observation, compare, same_bits
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 12


class ChunkStates(Probe):
    """The states between chunks, where they are asked for."""

    name = "chunk_states"
    clause = "T3"
    clauses = ("T3", "M1")
    hazards = ("unwritten-output", "missing-base-offset", "unchecked-state-layout")
    forms = ("chunk",)

    def cases(self, plan: Plan) -> Iterator[Case]:
        if not plan.operator.chunk_states:
            return
        base = Case(plan.form, T=70, H=1, HV=2, K=16, V=24, chunk_size=32)
        if plan.light:
            base = base.but(T=37, chunk_size=16)
        yield base
        yield base.but(layout="v_first", seqlens=(33, 0, 5, 32), tail=2, dtype="bfloat16", gate_in_kernel=True)
        yield base.but(initial_state=False, final_state=False, K=9, V=5, T=33, B=3)
        if plan.full:
            for size in (16, 32, 64):
                yield base.but(T=130, chunk_size=size, state_dtype="bfloat16", layout="v_first", K=64, V=64)
                yield base.but(seqlens=(64, 1, 0, 129, 16), chunk_size=size, normalize=False)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        plain = context.run(case, context.call(case))
        call: SequenceCall = context.call(case)
        states = guarded(torch.full(_shape(case, call), torch.nan, dtype=_dtype(call)), device=context.device)
        before = whole_memory(states).clone()
        with torch.no_grad():
            outputs = context.run(case, call.with_(chunk_states=states))
        what = "asking for the states between chunks must not change it"
        yield same_bits("o", outputs.o, plain.o, "T3", None, what)
        if plain.final_state is not None and outputs.final_state is not None:
            yield same_bits("final_state", outputs.final_state, plain.final_state, "T3", None, what)
        found = states.clone().cpu()
        for place, expected in _expected(case, context):
            yield compare(found[place], expected, "T3", self.hazards[0])
        states.fill_(torch.nan)
        what = "memory around the states must stay as it was"
        yield same_bits("chunk_states", whole_memory(states), before, "M1", self.hazards[1], what)


def _dtype(call: SequenceCall) -> torch.dtype:
    return torch.float32 if call.initial_state is None else call.initial_state.dtype


def _shape(case: Case, call: SequenceCall) -> tuple[int, ...]:
    lengths = case.seqlens if case.seqlens is not None else (case.T,)
    count = sum(-(-length // case.chunk_size) for length in lengths)
    return case.batch, count, case.HV, *call.options.layout.inner_shape(case.K, case.V)


def _expected(case: Case, context: Context) -> Iterator[tuple[tuple[slice, int], Expected]]:
    """Yield the place of each chunk of every sequence, and what its state must be."""
    lengths = case.seqlens if case.seqlens is not None else (case.T,)
    counts = [-(-length // case.chunk_size) for length in lengths]
    for n, start in enumerate(accumulate(lengths, initial=0)):
        if n == len(lengths):
            return
        for j in range(counts[n]):
            shorter = _first_tokens(context.call(case, device="cpu"), case, n, start, j * case.chunk_size)
            expected = context.reference.sequence(shorter, chunked=True)["final_state"]
            name = f"chunk_states[:, {sum(counts[:n]) + j}]"
            yield (slice(None), sum(counts[:n]) + j), replace(expected, name=name)


def _first_tokens(call: SequenceCall, case: Case, n: int, start: int, count: int) -> SequenceCall:
    """Return the first tokens of every row, or of one sequence of a pack alone."""
    tokens = {name: getattr(call, name)[:, start : start + count] for name in ("q", "k", "v", "g", "beta")}
    state = call.initial_state
    if case.seqlens is not None and state is not None:
        state = state[n : n + 1]
    found: SequenceCall = call.with_(**tokens, initial_state=state, output_final_state=True, cu_seqlens=None)
    return found


PROBE = ChunkStates()
