"""Drafts: a speculative step keeps what was accepted, and of the rest no trace

What it does
    Makes speculative steps: rows that replay none, some and all of their drafts, from either half of their slot, with
    zero to all of their tokens drafted anew, in place and from another slot, fresh, padding, or with a write index
    outside the pool. Drafts that were not accepted, drafts of other slots, the counts of slots that replay nothing and
    the gaps between slots hold NaN and huge numbers, and in a second call plausible stale values. One call has numbers
    of tokens and of accepted drafts below 0 and above what there is, without the public functions' look at values, as
    on a GPU.

What it shows
    A state that a rejected token has moved; the state of a wrong column where nothing was accepted or nothing drafted;
    drafts of the wrong half, slot, layer or head; keys that one program reads while another writes them; drafts kept of
    a padding row.

How it judges
    Outputs and every written slot by the oracle: those of the accepted drafts and the row's tokens, decoded one after
    another; a state that nothing was replayed into must be itself to the bit. The half that was written must hold the
    row's tokens to the bit; every other byte of pool and drafts must be as it was. A number out of range counts as the
    nearest in it, or a backend refuses it with a ValueError.

What it cannot see
    Whether the counts are those that were accepted: they are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.ops.common.calls import DecodeCall, Drafts
from deltaproof.verify.case import Case
from deltaproof.verify.draft_inputs import HAZARD, judge_drafts
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 21
UNCHECKED = "unchecked"
SLOTS = 7


class DraftsProbe(Probe):
    """Clause P7."""

    name = "drafts"
    clause = "P7"
    clauses = ("P1", "P2", "P4", "P5", "P7", "N2", "E1")
    hazards = ("aliased-slot", "padding-slot-address", "appended-cache")
    forms = ("decode",)

    def cases(self, plan: Plan) -> Iterator[Case]:
        usual = list(self._usual())
        yield from usual
        if not plan.full:
            return
        some = usual[0]
        for K, V in ((128, 128), (64, 64), (1, 1), (256, 33), (33, 256)):
            for layout in ("k_first", "v_first"):
                for dtype in ("float32", "bfloat16", "float16"):
                    yield some.but(label="sizes", K=K, V=V, layout=layout, dtype=dtype, H=2, HV=4)
        for drafts in (1, 2, 8, 16):
            long = some.but(label="room", drafts=drafts, T=drafts, accepted=(drafts, drafts - 1, 0, 1))
            yield long
            yield long.but(gate_in_kernel=True, beta_sigmoid=True, normalize=False, state_dtype="float16")
        for dtype in ("int32", "int64"):
            yield some.but(label="index", index_dtype=dtype, read=(2**31 - 1, 3, -(2**31), 0))
        yield some.but(label="heads outermost", heads_outermost=True, slot_padding=8)
        yield some.but(label="gates", gates="mixed")
        yield from self._wide(usual)

    def _usual(self) -> Iterator[Case]:
        base = Case("decode", B=4, T=3, H=1, HV=2, K=16, V=24, slots=SLOTS, drafts=4, read=(2, 5, 0, 6))
        some = base.but(halves=(0, 1, -1, 1), accepted=(3, 1, 0, 4))
        yield some
        yield some.but(layout="v_first", state_dtype="bfloat16", dtype="bfloat16", slot_padding=12)
        yield base.but(label="nothing", halves=(0, 1, -1, 0), accepted=(0, 0, 0, 0), num_tokens=(3, 0, 1, 2))
        yield base.but(label="settle", halves=(0, 1, 0, 1), accepted=(3, 4, 1, 0), num_tokens=(0, 0, 0, 0), T=1)
        mixed = base.but(gate_in_kernel=True, beta_sigmoid=True, neg_eigval=True, dead_tokens=True)
        # tokens of padding that could be anybody's show where they are kept
        yield base.but(label="padding", read=(2, -1, SLOTS, 3), halves=(1, 0, 1, 0), accepted=(2, 3, 4, 1))
        yield mixed.but(
            label="padding", read=(2, -1, SLOTS, 6), halves=(1, 0, 1, 0), accepted=(2, 3, 4, 1), num_tokens=(1, 3, 2, 0)
        )
        yield mixed.but(
            label="elsewhere",
            read=(2, 2, 5, 5),
            write=(0, 4, -1, SLOTS - 1),
            halves=(-1, 0, 1, 2),
            accepted=(0, 2, 3, 1),
        )
        yield base.but(
            label="elsewhere",
            read=(2, 2**31 - 1, 5, 3),
            write=(1, 4, SLOTS, -5),
            halves=(0, 1, 0, 1),
            accepted=(2, 3, 1, 4),
            fresh=(False, False, True, False),
        )
        # a kernel may look at the indices of rows to come
        yield base.but(
            label="padding",
            B=12,
            T=1,
            slots=16,
            read=(3, 9, 14, 0, 7, 12, 5, 1, -1, 2**31 - 1, -(2**31), 16),
            halves=(0, 1, -1, 1, 0, 0, 1, 1, 0, 1, 0, -1),
            accepted=(3, 1, 0, 4, 2, 0, 1, 4, 0, 2, 3, 1),
        )
        # more than one block of V: several programs share a head's drafts
        yield some.but(label="blocks", K=12, V=64, T=2)
        yield base.but(label=UNCHECKED, halves=(0, 1, 0, 1), accepted=(9, -3, 5, 1), num_tokens=(5, -1, 2, 4))
        yield some.but(label="fresh", fresh=(True, False, True, False), nan_slots=(2,))
        yield some.but(label="heads", H=2, HV=6, K=9, V=13, layout="v_first", dtype="float16", gate_dtype="bfloat16")

    def _wide(self, usual: list[Case]) -> Iterator[Case]:
        """Yield what serving runs, and a backend may have a kernel of its own for: bf16, states [V, K], K from 64."""
        for case in usual:
            wide = case.but(K=128, V=48, layout="v_first", dtype="bfloat16", slot_padding=16 * (case.slot_padding > 0))
            yield wide
            yield wide.but(K=64, state_dtype="bfloat16", gate_dtype="bfloat16")
        for drafts, T in ((1, 1), (2, 2), (3, 1), (5, 4), (6, 6), (7, 7), (8, 3), (8, 8), (9, 9)):
            room = usual[0].but(label="room", K=64, V=80, H=2, HV=4, layout="v_first", dtype="bfloat16")
            room = room.but(drafts=drafts, T=T, accepted=(drafts, drafts - 1, 0, 1), gate_in_kernel=True)
            yield room
            yield room.but(K=128, V=16, beta_sigmoid=True, num_tokens=(T, 0, T - 1, T), dead_tokens=True)
            yield room.but(K=128, V=32, normalize=False, gates="mixed", state_dtype="float16")

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label == UNCHECKED:
            context = context.unchecked()
        fills: tuple[Fill, ...] = ("nan", "stale")
        for fill in fills:
            call: DecodeCall = context.call(case, fill=fill)
            try:
                outputs = context.run(case, call)
            except ValueError as error:
                if case.label != UNCHECKED:
                    raise
                yield Observation(True, "E1", f"refused: {error}")
                return
            yield from context.judge(case, outputs, call, fill=fill, clause="P7", hazard=HAZARD)
            clean: DecodeCall = context.call(case, device="cpu", fill=fill)
            assert call.drafts is not None
            own = {name: getattr(clean, name) for name in Drafts._fields}
            yield from judge_drafts(call.drafts._asdict(), clean, own)


PROBE = DraftsProbe()
