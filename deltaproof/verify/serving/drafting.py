"""Speculation in a walk: steps whose tokens may be rejected, held to the same steps of each request alone.

Shape legend: N rows of a step, T tokens, D drafts a slot can hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deltaproof.ops.common.calls import DecodeCall, Drafts
from deltaproof.state import Lease
from deltaproof.verify.observation import Observation, same_bits
from deltaproof.verify.serving.requests import Drafted, Request

if TYPE_CHECKING:
    from deltaproof.verify.serving.walk import Walk

HAZARD = "aliased-slot"


def speculate(walk: Walk) -> Observation | None:
    """Draft zero to D tokens of some requests, with or without drafts of their own that are taken in."""
    commit(walk)
    rows = walk.chosen(2 * walk.sizes.drafts, drafted=True)
    counts = [0 if row is None else walk.draw.randint(0, walk.sizes.drafts) for row in rows]
    return _step(walk, rows, counts, walk.plan.speculate(_leases(rows), counts))


def settle(walk: Walk) -> Observation | None:
    """Take in what was accepted of some requests' drafts, and draft nothing."""
    commit(walk)
    able = [item for item in walk.requests if item.lease.drafted]
    rows: list[Request | None] = [*walk.draw.sample(able, min(len(able), walk.draw.randint(1, 4)))]
    rows.insert(walk.draw.randint(0, len(rows)), None)
    problem = _step(walk, rows, [0] * len(rows), walk.plan.settle(_leases(rows)))
    for row in rows:
        if row is not None:
            row.drafted = row.memory = None
    walk.uncommitted = []
    return problem


def commit(walk: Walk) -> None:
    """Say of the last speculative step how many tokens are accepted, on the host or on the device."""
    rows, walk.uncommitted = walk.uncommitted, []
    if not rows:
        return
    counts = []
    for row in rows:
        drafted = None if row is None else row.drafted
        most = 0 if drafted is None else drafted.outputs.shape[0]
        count = walk.draw.choice((0, most, walk.draw.randint(0, most)))
        counts.append(count)
        if row is not None and drafted is not None:
            drafted.accepted = count
            if count:
                row.history.tokens.append({name: x[:count] for name, x in drafted.tokens.items()})
                row.history.outputs.append(drafted.outputs[:count])
    if walk.draw.random() < 0.5:
        walk.plan.commit(counts)
    else:
        # what is more than was drafted is cut
        more = [count + (3 if row is None else 0) for row, count in zip(rows, counts, strict=True)]
        walk.plan.commit(torch.tensor(more, device=walk.device))


def _step(walk: Walk, rows: list[Request | None], counts: list[int], arguments: dict[str, Any]) -> Observation | None:
    walk.plan.guard()
    N, T = walk.plan.size, max([1, *counts])
    parts = [walk.tokens(count) for count in counts]
    shared = walk.pool.bind_drafts(walk.drafts, walk.layer)
    names = [part.name for part in walk.drafts.parts]
    before = {name: walk.pool.memory(name)._flat.clone() for name in names}
    call = DecodeCall(
        **walk.padded(parts, N, T), options=walk.options, **walk.gate, pool=walk.rows, drafts=shared, **arguments
    )  # fmt: skip
    halves = call.draft_half.tolist()[: len(rows)]  # type: ignore[union-attr]
    taken = [None if row is None else _taken(row.drafted) for row in rows]
    found = walk.held("decode", call, rows, parts)
    if found is not None:
        return found
    for row, (request, part, half) in enumerate(zip(rows, parts, halves, strict=True)):
        if request is None:
            continue
        other = 1 - half if half >= 0 else 0
        for name, memory in zip(Drafts._fields, shared, strict=True):
            kept = memory[request.lease.slot, other, : counts[row]]
            seen = same_bits(f"drafts.{name}", kept, part[name], "P7", HAZARD, f"{request.name}: its own tokens")
            if not seen.ok:
                return seen
    written = [row.lease.slot for row in rows if row is not None]
    for name in names:
        found = found or walk.untouched(name, before[name], written)
    found = found or walk.convolved("decode", rows, counts, N, T, arguments, taken)
    walk.uncommitted = rows
    return found


def alone(walk: Walk, call: DecodeCall, row: int, at: int, request: Request) -> dict[str, Any]:
    """Return what the same step of one request alone takes of drafts: memory of its own, in a pool of one slot."""
    assert call.drafts is not None and call.draft_half is not None
    if request.memory is None:
        request.memory = Drafts(*(torch.full_like(x[:1], torch.nan) for x in call.drafts))
    N = 1 if walk.exact_rows else call.read_index.shape[0]
    half = torch.full((N,), -1, dtype=torch.int32, device=walk.device)
    half[at] = call.draft_half[row]
    count = 0 if request.drafted is None else request.drafted.accepted
    accepted = torch.tensor([count], dtype=torch.int32, device=walk.device)
    return {"drafts": request.memory, "draft_half": half, "accepted": accepted}


def _leases(rows: list[Request | None]) -> list[Lease | None]:
    return [None if row is None else row.lease for row in rows]


def _taken(drafted: Drafted | None) -> torch.Tensor | None:
    """Return the convolution's inputs of the accepted tokens."""
    return None if drafted is None or drafted.line is None else drafted.line[: drafted.accepted]
