"""Slots: which slots of a pool a call reads, writes and leaves alone

What it does
    Calls decode and prefill with every kind of slot index: outside the pool on either side, by a little and by a lot,
    in every row, for reads and for writes; shared reads, in-place and moved states, fresh rows over a slot of NaN,
    ragged rows, a write after each token, checkpoints; on pools with gaps between slots and heads, and with heads
    outermost.

What it shows
    A padding index used as an address, clamped to a live slot or wrapped to the last one; an index cut to 32 bits; a
    read slot that is overwritten; a state kept that must not be; an old state under a fresh row; strides that are
    computed instead of asked for.

How it judges
    Outputs and every written slot by the oracle; every other byte of the pool's memory, gaps and guard slots included,
    must be bit-identical; a padding row's output is exactly zero. A failure names the slot. Gaps, guard slots and
    tokens that must not count hold plausible stale values, and in a second call NaN.

What it cannot see
    Reads that reach no result, and writes far beyond the guard slots (those crash, or pass unseen).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from deltaproof.verify.case import Case
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Call, Context, Plan, Probe

ORDER = 20
SLOTS = 7
INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)
OUTSIDE = (-1, SLOTS, SLOTS + 5, INT32_MAX, INT32_MIN, -SLOTS)
CUT = 2**32 + 2
"""Slot 2 to whoever keeps the lower 32 bits."""
CLAUSES = {
    "padding": "P1",
    "write-outside": "P1",
    "fresh": "P1",
    "owner": "P2",
    "checkpoints": "P2",
    "shared": "P3",
    "in-place": "P4",
    "elsewhere": "P4",
    "stride": "P5",
    "heads-outermost": "P5",
    "64-bit": "P5",
}
HAZARDS = {
    "fresh": "appended-cache",
    "shared": "aliased-slot",
    "in-place": "aliased-slot",
    "elsewhere": "aliased-slot",
    "stride": "assumed-contiguous",
    "heads-outermost": "assumed-contiguous",
    "64-bit": "narrow-offset",
}


def _rows(case: Case, count: int) -> Case:
    """Return the case with another number of rows or sequences."""
    return case.but(B=count) if case.seqlens is None else case.but(seqlens=(5, 18, 3, 9)[:count])


def _row_of(case: Case, batch: int, token: int) -> int | None:
    """Return the row or sequence that a token belongs to, None for the tail."""
    if case.seqlens is None:
        return batch
    return next((n for n, end in enumerate(accumulate(case.seqlens)) if token < end), None)


class Slots(Probe):
    """Clauses P1 to P5."""

    name = "slots"
    clause = "P1"
    clauses = ("P1", "P2", "P3", "P4", "P5", "N2")
    hazards = ("padding-slot-address", "aliased-slot", "narrow-offset", "assumed-contiguous", "appended-cache")
    forms = ("decode", "prefill")

    def cases(self, plan: Plan) -> Iterator[Case]:
        decode = plan.form == "decode"
        base = Case(plan.form, B=3, T=2, H=1, HV=2, K=16, V=32, slots=SLOTS)
        if not decode:
            base = base.but(seqlens=(5, 18, 3))

        # a light prefill leaves to decode what both do with one index as with another
        yield from self._padding(base, (-1, SLOTS, INT32_MIN) if plan.light and not decode else OUTSIDE)
        yield from self._placement(base)
        yield from self._memory(base)
        if decode:
            yield from self._per_token(base)
        else:
            yield from self._checkpoints(base, 16 if plan.light else 64)
        if plan.full:
            yield from self._combined(base)

    def _padding(self, base: Case, outside: tuple[int, ...]) -> Iterator[Case]:
        """Indices outside the pool, and rows without an initial state."""
        for slot in outside:
            yield base.but(label="padding", read=(2, slot, 5))
            yield base.but(label="write-outside", read=(2, 4, 5), write=(3, slot, 1))
        if base.form == "decode":
            # a kernel may look at the indices of rows to come
            many = base.but(label="padding", B=12, T=1, slots=16)
            yield many.but(read=(3, 9, 14, 0, 7, 12, 5, 1, -1, INT32_MAX, INT32_MIN, 16))
        dead = base.but(label="padding", dead_tokens=True)
        yield dead.but(read=(-1, 2, 5))
        yield dead.but(read=(2, 5, -1))
        yield dead.but(read=(-1, 2, SLOTS), write=(3, 4, 5), layout="v_first")
        yield _rows(dead, 1).but(read=(-1,))
        yield dead.but(read=(-1, SLOTS, INT32_MIN))
        for dtype in ("int32", "int64"):
            yield dead.but(index_dtype=dtype, read=(3, -1, SLOTS + 5), write=(-1, 0, 1))
        # padding wins over has_initial_state, and a fresh row's slot is never looked at
        yield dead.but(label="fresh", read=(3, -1, 5), fresh=(True, True, False), nan_slots=(3,))
        yield dead.but(label="fresh", read=(3, INT32_MAX, 5), fresh=(True, False, False), nan_slots=(3,))
        yield base.but(label="fresh", read=(3, 4, 6), write=(5, 0, 2), fresh=(True, False, True), nan_slots=(3, 6))
        yield base.but(label="64-bit", index_dtype="int64", read=(CUT, 4, 5), write=(1, CUT + 1, -CUT))

    def _placement(self, base: Case) -> Iterator[Case]:
        """States updated in place, moved elsewhere, and read by several rows."""
        yield base.but(label="in-place", read=(0, SLOTS - 1, 3))
        yield base.but(label="in-place", read=(4, 0, 2), write=(4, 0, 2), layout="v_first")
        yield base.but(label="elsewhere", read=(0, 4, 2), write=(3, SLOTS - 1, 1))
        yield base.but(label="elsewhere", read=(1, 4, 2), write=(0, 4, 5), layout="v_first", state_dtype="bfloat16")
        yield _rows(base, 4).but(label="shared", read=(3, 3, 5, 3), write=(1, 0, -1, SLOTS - 1))

    def _memory(self, base: Case) -> Iterator[Case]:
        """Pools of any slot and head stride."""
        moved = base.but(read=(0, -1, SLOTS - 1), write=(4, 1, 2))
        yield moved.but(label="stride", slot_padding=36)
        yield moved.but(label="stride", slot_padding=100, head_padding=20, state_dtype="float16", layout="v_first")
        yield moved.but(label="stride", K=20, V=12, head_padding=4, state_dtype="bfloat16")
        yield moved.but(label="heads-outermost", heads_outermost=True)
        yield moved.but(
            label="heads-outermost", heads_outermost=True, layout="v_first", slot_padding=16, head_padding=8
        )

    def _per_token(self, base: Case) -> Iterator[Case]:
        """Decode: a write after each token, ragged rows."""
        base = base.but(label="owner", T=3)
        outside = ((1, -1, 2), (SLOTS, 3, INT32_MAX), (-SLOTS, INT32_MIN, 0))
        yield base.but(read=(4, 5, 6), write=outside)
        yield base.but(
            read=(4, -1, SLOTS), write=((4, 1, 2), (3, 0, 5), (6, -1, -1)), dead_tokens=True, layout="v_first"
        )
        shared = base.but(label="shared", index_dtype="int32")
        yield shared.but(read=(6, 6, 6), write=((1, -1, 2), (3, 4, 5), (-1, -1, -1)))
        ragged = base.but(num_tokens=(0, 2, 3), dead_tokens=True)
        yield ragged.but(read=(4, 5, 6))
        yield ragged.but(read=(4, 5, 6), write=(1, 2, 0), state_dtype="bfloat16")
        yield ragged.but(read=(4, 5, -1), write=((0, 1, 2), (3, SLOTS, 6), (-1, 6, 6)))
        yield ragged.but(read=(4, 5, 6), write=(1, -1, 3), fresh=(True, True, False), nan_slots=(4,))

    def _checkpoints(self, base: Case, every: int) -> Iterator[Case]:
        """Prefill: a dense batch, empty sequences, checkpoints."""
        yield base.but(label="elsewhere", seqlens=None, T=20, read=(3, SLOTS, 4), write=(5, 1, 6))
        yield base.but(label="owner", seqlens=(0, 7, 0), tail=3, read=(1, 4, 5), write=(2, 4, 5))
        # the first is one token too short, the others are exactly long enough; slots of those not reached stay
        base = base.but(label="checkpoints", checkpoint_every=every, chunk_size=every, slots=12)
        reached = base.but(seqlens=(every - 1, every, 2 * every + 1))
        yield reached.but(read=(0, 1, 2), checkpoints=((3, 4), (5, 6), (7, 8)))
        yield reached.but(
            read=(0, -1, 2),
            write=(1, 9, -1),
            checkpoints=((3, 4), (5, 6), (12, 11)),
            dead_tokens=True,
            chunk_size=max(every // 2, 16),
        )
        # not after every chunk, and the first reaches more of them than there are slots for
        sparse = reached.but(checkpoint_every=32, chunk_size=16, seqlens=(65, 17, 5))
        yield sparse.but(read=(0, 1, 2), checkpoints=((3,), (5,), (7,)))
        dense = base.but(seqlens=None, B=2, T=2 * every)
        yield dense.but(read=(0, 1), checkpoints=((3, -1), (-12, 6)), layout="v_first", index_dtype="int32")

    def _combined(self, base: Case) -> Iterator[Case]:
        for layout in ("k_first", "v_first"):
            for state in ("float32", "bfloat16", "float16"):
                for slot in OUTSIDE:
                    both = base.but(label="padding", read=(0, slot, SLOTS - 1), write=(slot, 2, 3))
                    yield both.but(layout=layout, state_dtype=state, dtype="bfloat16", dead_tokens=True)
        wide = base.but(label="padding", K=128, V=128, slots=5, read=(0, -1, 4), dead_tokens=True)
        for dtype in ("float32", "bfloat16"):
            yield wide.but(dtype=dtype)
            yield wide.but(dtype=dtype, layout="v_first", H=2)
            yield wide.but(dtype=dtype, label="stride", slot_padding=512, head_padding=128)
            yield wide.but(dtype=dtype, label="heads-outermost", heads_outermost=True)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        clause = CLAUSES[case.label]
        hazard = HAZARDS.get(case.label, self.hazards[0])
        # stale values outside the pool betray a write there, NaN a read: a NaN written over a NaN cannot be told
        simple = case.label in ("padding", "write-outside") and not case.dead_tokens
        fills: tuple[Fill, ...] = ("stale",) if simple else ("stale", "nan")
        for fill in fills:
            call: Call = context.call(case, fill=fill)
            outputs = context.run(case, call)
            for seen in context.judge(case, outputs, call, fill=fill, clause=clause, hazard=hazard):
                yield seen if seen.ok else self._named(seen, case)

    def _named(self, seen: Observation, case: Case) -> Observation:
        """Return a failed observation with the clause it breaks and the row's indices in its message."""
        if seen.location is None:
            return seen
        reads = case.read or ()
        if seen.location.tensor == "o":
            row = _row_of(case, seen.location.row or 0, seen.location.token or 0)
            if row is None or 0 <= reads[row] < case.slots:
                return seen
            text = f"row {row} is padding (it reads slot {reads[row]}), its output must be 0: {seen.message}"
            return replace(seen, clause="P1", hazard=self.hazards[0], message=text)
        if seen.clause != "P2" or case.label == "checkpoints":
            return seen
        slot = seen.location.slot
        moved = [n for n, read in enumerate(reads) if read == slot]
        outside = sorted({i for i in _flat((*reads, *(case.write or ()))) if not 0 <= i < case.slots})
        if moved and not outside:
            text = f"slot {slot} is only read (by row {moved[0]}): {seen.message}"
            return replace(seen, clause="P4", hazard="aliased-slot", message=text)
        named = f" (indices outside the pool: {', '.join(map(str, outside))})" if outside else ""
        return replace(seen, message=seen.message + named)


def _flat(index: tuple[object, ...]) -> Iterator[int]:
    for item in index:
        if isinstance(item, tuple):
            yield from _flat(item)
        else:
            assert isinstance(item, int)
            yield item


PROBE = Slots()
