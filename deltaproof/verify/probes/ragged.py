"""Ragged sizes: lengths around a chunk, head sizes that fill no block, nothing at all

What it does
    Calls every form with T of 0, 1 and either side of 16 and 64, with head sizes from 1 to 256 that are mostly no power
    of two, with no rows and no sequences, with rows of fewer tokens than the rest, and with chunks and checkpoints of
    other sizes than 64. NaN lies in front of and behind every argument.

What it shows
    A load or store whose extent is rounded up and not masked, a tail masked by multiplying, a literal chunk size where
    the caller passes one, a grid of size zero.

How it judges
    Outputs and states are held to the oracle within the bound of clause N2. A result of no elements must have the right
    shape and dtype; with T = 0 the final state is the initial state.

What it cannot see
    A load past the end whose value is dropped later: nothing shows it but a memory checker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe

LENGTHS = (1, 15, 16, 17, 63, 64, 65)
FEW = (1, 2, 3, 5, 16)
SIZES = ((1, 1), (3, 5), (72, 136), (33, 17), (16, 1), (7, 100), (1, 16))
MORE_SIZES = (*SIZES, (96, 40), (129, 3), (255, 256), (256, 127), (20, 20), (64, 65))


class Ragged(Probe):
    """Sizes that fill no block."""

    name = "ragged"
    clause = "S2"
    clauses = ("S0", "S1", "S2", "S3", "P2")
    hazards = ("unmasked-load", "unmasked-store", "mask-by-multiply", "ignored-tile-parameter")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, H=1, HV=2)
        if form == "decode":
            yield from self._decode(base, plan.full)
        else:
            yield from self._sequences(base, plan.full)
        yield base.but(label="no-rows", B=0, T=3)

    def _decode(self, base: Case, full: bool) -> Iterator[Case]:
        for turn, (K, V) in enumerate(SIZES):
            yield base.but(T=FEW[turn % len(FEW)], K=K, V=V, layout="v_first" if turn % 2 else "k_first")
        yield base.but(label="ragged-rows", B=4, T=5, K=9, V=13, num_tokens=(5, 0, 1, 4))
        if full:
            for T in (1, 5):
                for K, V in MORE_SIZES:
                    yield base.but(label="sizes", T=T, K=K, V=V, layout="v_first" if T == 5 else "k_first")
            for count in (0, 1, 7, 8, 15):
                yield base.but(label="ragged-rows", T=16, K=9, V=13, num_tokens=(count, 16 - count))

    def _sequences(self, base: Case, full: bool) -> Iterator[Case]:
        form = base.form
        # a recurrence knows no chunks: few tokens do, and they are cheap
        lengths = (1, 2, 3, 5, 17) if form == "recurrent" else LENGTHS
        for turn, (K, V) in enumerate(SIZES):
            T = lengths[turn % len(lengths)]
            yield base.but(T=T, K=K, V=V, layout="v_first" if turn % 2 else "k_first")
        yield base.but(label="no-tokens", T=0, K=9, V=13)
        yield base.but(label="no-sequences", seqlens=(), tail=3)
        if form != "recurrent":
            yield base.but(T=17, K=24, V=40, chunk_size=16)
            yield base.but(T=33, K=24, V=40, chunk_size=32, dtype="bfloat16")
        if form == "prefill":
            yield base.but(T=33, K=9, V=13, chunk_size=16, checkpoint_every=16, checkpoints=((3, 4, 5), (6, 0, -1)))
        if full:
            yield base.but(label="no-tokens", B=0, T=0)
            yield base.but(label="no-tokens", T=0, initial_state=False, layout="v_first")
            yield base.but(label="no-sequences", seqlens=())
            for T in (*LENGTHS, 31, 33, 127, 129):
                for chunk_size in (16, 64) if form != "recurrent" else (64,):
                    yield base.but(label="lengths", T=T, K=9, V=13, chunk_size=chunk_size)
            for K, V in MORE_SIZES:
                for dtype in ("float32", "bfloat16"):
                    yield base.but(label="sizes", T=3 if form == "recurrent" else 17, K=K, V=V, dtype=dtype)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        call = context.call(case)
        outputs = context.run(case, call)
        hazard = "unmasked-load" if case.chunk_size == 64 else "ignored-tile-parameter"
        for seen in context.judge(case, outputs, call, clause="S2", hazard=hazard):
            # every index here is legal: a slot that should not have changed holds a checkpoint of another length
            yield seen if seen.ok or case.checkpoints is None else replace(seen, hazard=hazard)


PROBE = Ragged()
