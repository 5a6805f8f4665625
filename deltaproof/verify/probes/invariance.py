"""Invariance: a sequence's results do not depend on what else is in the call

What it does
    Computes one sequence alone, then as a row of batches of several sizes and at several places of packs, beside
    neighbours of other lengths and values; in decode beside padding rows and rows of fewer tokens, and from other
    slots.

What it shows
    A split or a tile chosen by the size of the batch, atomics over sequences, a workspace shared by neighbours, an
    index into a neighbour's memory.

How it judges
    The sequence's outputs, its state and, where the backend has a backward, the gradients of its tokens and of its
    initial state must be bit-identical everywhere, and finite. chunk and prefill are called with batch_invariant=True.

What it cannot see
    Sizes it does not try: thousands of sequences, or a pack as long as a whole card's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltaproof.contracts.conventions import Padding
from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._exact import exact, snapshot
from deltaproof.verify.probes._runs import require

ORDER = 61
TOKENS = ("q", "k", "v", "g", "beta")
BATCH, SMALL_BATCH, PACK, RAGGED = "batch", "batch of 5", "pack", "ragged rows"
BACKWARD = ", backward"


@dataclass(frozen=True)
class Arrangement:
    """What stands beside the sequence.

    Attributes:
        text: the arrangement in words.
        before, after: lengths of the neighbours on either side; None is a padding row.
        packed: whether the sequences are packed, with a tail of two rows.
        turn: chooses the neighbours' values.
    """

    text: str
    before: tuple[int | None, ...] = ()
    after: tuple[int | None, ...] = ()
    packed: bool = False
    turn: int = 1


class Invariance(Probe):
    """Clause I2."""

    name = "invariance"
    clause = "I2"
    clauses = ("I2",)
    hazards = ("racing-store", "incomplete-cache-key", "resource-limit")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        length = {"decode": 3, "recurrent": 11}.get(form, 75)
        base = Case(form, B=1, T=length, K=24, V=40, batch_invariant=form in ("chunk", "prefill"))
        if plan.light:
            base = base.but(H=1, HV=2, K=9, V=13)
            if form != "decode":
                base = base.but(T=4) if form == "recurrent" else base.but(T=18, chunk_size=16)
        low = base.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True, layout="v_first")
        batch = SMALL_BATCH if plan.light else BATCH
        families = (batch, RAGGED) if form == "decode" else (batch, PACK)
        for label in families:
            few = {"T": 9} if label == SMALL_BATCH and base.batch_invariant else {}
            yield base.but(label=label, **few)
            yield low.but(label=label, **few)
            if form in plan.operator.forms[:2]:
                backward = base.but(label=label + BACKWARD, gate_in_kernel=True, beta_sigmoid=True, **few)
                if form == "chunk" and label == PACK:
                    # whole chunks: where a sequence ends and the next begins is not seen from a chunk that is not full
                    backward = backward.but(T=2 * base.chunk_size, HV=base.H, dtype="bfloat16")
                yield backward
        if plan.full:
            for label in families:
                for K, V in ((128, 128), (64, 64), (96, 160)):
                    for dtype in ("float32", "bfloat16"):
                        yield base.but(label=label, K=K, V=V, dtype=dtype)
                if form != "decode":
                    yield base.but(label=label, T=7 * length, H=1, HV=2)
                if form == "chunk":
                    yield base.but(label=label + BACKWARD, T=300, dtype="bfloat16", K=64, V=128)

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        if case.label.endswith(BACKWARD):
            require(context, "backward")
        alone = _compute(case, context, Arrangement("alone"))
        yield from (exact(name, x, x, "I2", self.hazards[0], "") for name, x in alone.items())
        for arrangement in _arrangements(case, context):
            beside = _compute(case, context, arrangement)
            what = f"one sequence {arrangement.text} and alone"
            for name, want in alone.items():
                yield exact(name, beside[name], want, "I2", self.hazards[0], what)


def _arrangements(case: Case, context: Context) -> Iterator[Arrangement]:
    """Yield what the sequence stands beside."""
    T = case.T
    if case.label.startswith(BATCH):
        yield Arrangement("first of 2", (), (T,))
        yield Arrangement("first of 2, beside other values", (), (T,), turn=50)
        yield Arrangement("last of 3", (T, T), ())
        before, after = (2, 2) if case.label.startswith(SMALL_BATCH) else (9, 7)
        yield Arrangement(f"in the middle of {before + 1 + after}", (T,) * before, (T,) * after)
        if case.form == "decode" and context.target.backend.conventions.padding is not Padding.NONE:
            yield Arrangement("between padding rows", (None, T, None), (None,))
    elif case.label == RAGGED:
        yield Arrangement("beside shorter rows", (1, 0), (T - 1, T))
        yield Arrangement("beside one empty row", (0,), ())
    else:
        yield Arrangement("alone in a pack", packed=True)
        yield Arrangement("first of a pack", (), (3, T, 1), packed=True)
        yield Arrangement("last of a pack", (2 * T + 1, 0, 5), (), packed=True)
        yield Arrangement("last of a pack of other values", (2 * T + 1, 0, 5), (), packed=True, turn=50)
        yield Arrangement("in the middle of a pack", (1, 0, T // 2, 17), (2, T + 3), packed=True)


def _compute(case: Case, context: Context, arrangement: Arrangement) -> dict[str, torch.Tensor]:
    """Make one call and return what is the sequence's own."""
    lengths = (*arrangement.before, case.T, *arrangement.after)
    place = len(arrangement.before)
    lone = case.but(seqlens=None, slots=2, read=(1,), write=None)
    parts = []
    for n, length in enumerate(lengths):
        # in a dense batch all have T tokens; what a row does not use is drawn all the same
        size = length if arrangement.packed and length is not None else case.T
        like = lone.but(T=size)
        turn = 0 if n == place else arrangement.turn + n
        parts.append(context.call(like, device="cpu", turn=turn))
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], 1 if arrangement.packed else 0) for name in TOKENS
    }
    changes: dict[str, Any] = {}
    if arrangement.packed:
        bounds = torch.tensor([0, *(part.q.shape[1] for part in parts)]).cumsum(0)
        changes["cu_seqlens"] = inputs.guarded(bounds, device=context.device)
        for name, x in joined.items():
            joined[name] = torch.cat([x, inputs.red_zone_(x.new_empty(1, 2, *x.shape[2:]), "nan")], 1)
        start = int(bounds[place])
        mine = (slice(0, 1), slice(start, start + case.T))
    else:
        mine = (slice(place, place + 1), slice(None))
    for name, x in joined.items():
        changes[name] = inputs.guarded(x, device=context.device)
    call = replace(parts[place], **changes)
    for name in ("A_log", "dt_bias"):
        if getattr(call, name) is not None:
            call = replace(call, **{name: inputs.guarded(getattr(call, name), device=context.device)})
    if isinstance(call, SequenceCall):
        return _sequence(case, context, call, parts, place, mine)
    return _pool(case, context, call, parts, place, mine, lengths)


def _sequence(
    case: Case, context: Context, call: SequenceCall, parts: list[Any], place: int, mine: tuple[slice, slice]
) -> dict[str, torch.Tensor]:
    state = inputs.guarded(torch.cat([part.initial_state for part in parts]), device=context.device)
    call = replace(call, initial_state=state)
    backward = case.label.endswith(BACKWARD)
    leaves = {name: getattr(call, name) for name in (*TOKENS, "initial_state")}
    if backward:
        for leaf in leaves.values():
            leaf.requires_grad_()
    outputs = context.run(case, call)
    assert outputs.final_state is not None
    found = {"o": outputs.o[mine], "final_state": outputs.final_state[place]}
    if backward:
        # the sequence's own have a generator of their own: they do not depend on the neighbours'
        own, others = (torch.Generator().manual_seed(case.seed(context.seed + n)) for n in (1, 2))
        arriving = []
        places: tuple[Any, ...] = ((outputs.o, mine), (outputs.final_state, place))
        for x, where in places:
            drawn = torch.randn(x.shape, generator=others)
            drawn[where] = torch.randn(drawn[where].shape, generator=own)
            arriving.append(inputs.guarded(drawn.to(x.dtype), device=context.device))
        grads = torch.autograd.grad([outputs.o, outputs.final_state], list(leaves.values()), arriving)
        if context.device == "cuda":
            torch.cuda.synchronize()
        for name, grad in zip(leaves, grads, strict=True):
            found[f"gradient of {name}"] = grad[place] if name == "initial_state" else grad[mine]
    return snapshot(found)


def _pool(
    case: Case,
    context: Context,
    call: Any,
    parts: list[Any],
    place: int,
    mine: tuple[slice, slice],
    lengths: tuple[int | None, ...],
) -> dict[str, torch.Tensor]:
    states = [part.pool[1] for part in parts]
    # another slot in every arrangement, from the last one down
    slots = list(range(len(parts), 0, -1))
    pool = torch.stack([parts[place].pool[0], *reversed(states)])
    shape = case.but(slots=len(parts) + 1)
    reads = [-1 if length is None else slot for slot, length in zip(slots, lengths, strict=True)]
    changes: dict[str, Any] = {
        "pool": inputs.strided_pool(pool, shape, "nan", context.device),
        "read_index": inputs.guarded(torch.tensor(reads, dtype=torch.int32), device=context.device),
    }
    if isinstance(call, DecodeCall) and case.label == RAGGED:
        counts = torch.tensor([length or 0 for length in lengths], dtype=torch.int32)
        changes["num_tokens"] = inputs.guarded(counts, device=context.device)
    call = replace(call, **changes)
    outputs = context.run(case, call)
    return snapshot({"o": outputs.o[mine], "pool": call.pool[slots[place]]})


PROBE = Invariance()
