"""What a pool says of itself: sizes, holders, and what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.state.fields import DRAFTS
from deltaproof.state.lease import Lease
from deltaproof.state.snapshot import Snapshot

if TYPE_CHECKING:
    from deltaproof.state.pool import StatePool


@dataclass(frozen=True)
class Holder:
    """Who holds a slot.

    Attributes:
        slot: the slot.
        generation: its generation.
        owner: whose it is.
        kind: "lease", "snapshot", or "lost" for one that no longer exists and was never released.
        state: a lease's state, or how often a snapshot is held.
        position: tokens the state has seen, where known.
    """

    slot: int
    generation: int
    owner: str
    kind: str
    state: str
    position: int | None


@dataclass(frozen=True)
class PoolReport:
    """A pool at one moment.

    Attributes:
        capacity: slots that can be leased.
        free: slots that are free.
        draining: slots that wait for an event.
        holders: who holds the others, by slot.
        leaked: slots whose lease or snapshot was lost without a release.
        aliased: slots that are in two places at once; always empty unless the pool itself is wrong.
        nbytes: bytes of all buffers, dead rows included.
        slot_bytes: bytes of one slot in all fields and layers.
        dead_bytes: bytes that guard the slots.
    """

    capacity: int
    free: int
    draining: int
    holders: tuple[Holder, ...]
    leaked: tuple[int, ...]
    aliased: tuple[int, ...]
    nbytes: int
    slot_bytes: int
    dead_bytes: int


def inspect(pool: StatePool) -> PoolReport:
    """Return what a pool holds now."""
    holders = []
    for slot, reference in sorted(pool._holders.items()):
        found = reference()
        if isinstance(found, Lease):
            told: tuple[str, str, int | None] = ("lease", found.state.value, found.position)
        elif isinstance(found, Snapshot):
            told = ("snapshot", f"held {found.holds}", found.position)
        else:
            told = ("lost", "never released", None)
        holders.append(Holder(slot, pool.generation(slot), pool._owners[slot], *told))
    places = Counter([*pool._free, *(slot for slot, _ in pool._draining), *pool._holders])
    memories = list(pool._memories.values())
    slot_bytes = sum(memory.slot_bytes for memory in memories)
    nbytes = sum(memory.nbytes for memory in memories)
    return PoolReport(
        capacity=pool.capacity,
        free=len(pool._free),
        draining=len(pool._draining),
        holders=tuple(holders),
        leaked=tuple(holder.slot for holder in holders if holder.kind == "lost"),
        aliased=tuple(sorted(slot for slot, count in places.items() if count > 1)),
        nbytes=nbytes,
        slot_bytes=slot_bytes,
        dead_bytes=nbytes - pool.capacity * slot_bytes,
    )


def describe(pool: StatePool) -> str:
    """Return what a slot holds and what the pool takes, a line a field."""
    found = inspect(pool)
    head = f"{pool.capacity} slots x {pool.layers} layers on {pool.device}: {_size(found.nbytes)}"
    lines = [f"{head}, {_size(found.slot_bytes)} a slot, {_size(found.dead_bytes)} in dead rows"]
    for field in pool.states:
        memory = pool.memory(field.name)
        kind = type(field).__name__.removesuffix("Field").lower()
        shape = " x ".join(map(str, field.shape))
        dtype = str(field.dtype).removeprefix("torch.")
        size = f"{_size(memory.slot_bytes)} a slot"
        lines.append(f"  {field.name}: {kind} {shape}, {field.layout.value}, {dtype}, {size}")
    for drafts in pool.fields:
        if isinstance(drafts, DRAFTS):
            size = _size(sum(pool.memory(part.name).slot_bytes for part in drafts.parts))
            lines.append(f"  {drafts.name}: drafts of {drafts.tokens} tokens, {size} a slot")
    return "\n".join(lines)


def _size(count: float) -> str:
    """Return a number of bytes in the largest unit of which it has one."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
