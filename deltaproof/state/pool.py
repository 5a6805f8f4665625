"""The pool: slots that hold every field of a request in every layer, handed out as leases."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.calls import Drafts
from deltaproof.state.fields import DRAFTS, ConvDraftField, ConvField, DraftField, Field, RecurrentField, check_same
from deltaproof.state.lease import Event, Lease, LeaseState
from deltaproof.state.memory import FieldMemory
from deltaproof.state.report import PoolReport, describe, inspect
from deltaproof.state.snapshot import Snapshot


class Debug(str, Enum):
    """What a pool watches besides."""

    GENERATION = "generation"
    """Steps carry the generation of each slot they use, and ``StepPlan.guard`` compares it on the device."""
    POISON = "poison"
    """Free slots and dead rows hold NaN; ``StatePool.disturbed`` names those that were written."""


class PoolExhausted(ContractError):
    """No slot is free. Release a lease or a snapshot, or wait for an event, and ask again."""


class StatePool:
    """Slots for the states of a hybrid model's layers, under one number in every field and layer.

    A lease is one request's right to a slot. It carries what the state starts from, so nothing is cleared and no flag
    is kept elsewhere. Operators take plain tensors: ``bind`` gives a layer's, and a ``StepPlan`` the indices.

    Not thread-safe: one scheduler owns it. Nothing here waits for the device.

    Args:
        fields: what a slot holds in each layer.
        layers: number of layers.
        capacity: number of slots that can be leased.
        device: where the memory lies.
        debug: members of ``Debug``.

    Attributes:
        layers: number of layers.
        capacity: number of slots that can be leased, 1 to ``capacity``.
        device: where the memory lies.
        debug: what it watches besides.
        accepted: with draft fields how many of its last drafts each slot keeps, int32 [capacity + 2] on the device;
            else None. ``StepPlan.commit`` fills it.
        generations: with ``Debug.GENERATION`` the generation of each slot, int32 [capacity + 2] on the device,
            negative while nobody holds the slot; else None.

    Raises:
        ContractError: no field, two of one name, or ``layers`` or ``capacity`` is not positive.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        layers: int,
        capacity: int,
        device: torch.device | str = "cpu",
        debug: Iterable[Debug | str] = (),
    ) -> None:
        for name, number in (("layers", layers), ("capacity", capacity)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ContractError(name, "a positive int", repr(number))
        names = [field.name for field in fields]
        if not names or len(set(names)) < len(names):
            raise ContractError("fields", "at least one, each of a name of its own", names)
        self.layers, self.capacity, self.device = layers, capacity, torch.device(device)
        try:
            self.debug = frozenset(Debug(item) for item in ([debug] if isinstance(debug, str) else debug))
        except ValueError as error:
            raise ContractError("debug", f"members of {[item.value for item in Debug]}", str(error)) from None
        self._fields: dict[str, Field] = {field.name: field for field in fields}
        parts = [part for field in fields for part in (field.parts if isinstance(field, DRAFTS) else (field,))]
        self._memories = {part.name: FieldMemory(part, layers, capacity, self.device) for part in parts}
        self._generations = [0] * (capacity + 2)
        self._free = deque(range(1, capacity + 1))
        self._draining: list[tuple[int, list[Event]]] = []
        self._holders: dict[int, weakref.ref[Lease | Snapshot]] = {}
        self._owners: dict[int, str] = {}
        self.accepted: torch.Tensor | None = None
        if any(isinstance(field, DRAFTS) for field in fields):
            self.accepted = torch.zeros(capacity + 2, dtype=torch.int32, device=self.device)
        self.generations: torch.Tensor | None = None
        if Debug.GENERATION in self.debug:
            self.generations = torch.zeros(capacity + 2, dtype=torch.int32, device=self.device)
        if Debug.POISON in self.debug:
            for memory in self._memories.values():
                memory.poison(list(range(memory.all_rows.shape[0])))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The records of what a slot holds."""
        return tuple(self._fields.values())

    @property
    def states(self) -> tuple[RecurrentField | ConvField, ...]:
        """The records of what a state is made of: all but drafts."""
        return tuple(field for field in self.fields if not isinstance(field, DRAFTS))

    @property
    def draft_tokens(self) -> int:
        """The most tokens a speculative step may have; 0 without draft fields."""
        return min((field.tokens for field in self.fields if isinstance(field, DRAFTS)), default=0)

    @property
    def available(self) -> int:
        """Slots that ``acquire`` could hand out now."""
        self._collect()
        return len(self._free)

    def memory(self, field: str) -> FieldMemory:
        """Return the memory of a field, or of a draft field's part ("drafts.k").

        Raises:
            ContractError: there is no such field.
        """
        if field not in self._memories:
            raise ContractError("field", f"one of {', '.join(self._memories)}", repr(field))
        return self._memories[field]

    def bind(self, takes: RecurrentField | ConvField | ConvDraftField, layer: int) -> torch.Tensor:
        """Return a layer's rows [capacity + 2, *takes.shape] for a kernel, checked once against what it takes.

        Of a ``ConvDraftField`` they are [capacity + 2, 2, D, C].

        The address stays the same as long as the pool lives, so a captured graph may use it.

        Args:
            takes: what the kernel takes: name, sizes, dtype and layout.
            layer: the layer, from 0.

        Raises:
            ContractError: the pool's field of that name differs; the message names the attribute.
        """
        self._check_field(takes)
        return self.memory(takes.parts[0].name if isinstance(takes, ConvDraftField) else takes.name).layer(layer)

    def bind_drafts(self, takes: DraftField, layer: int) -> Drafts:
        """Return a layer's drafts for ``gated_delta_rule_decode``, checked once as ``bind`` does.

        Raises:
            ContractError: the pool's field of that name differs.
        """
        self._check_field(takes)
        return Drafts(*(self.memory(part.name).layer(layer) for part in takes.parts))

    def _check_field(self, takes: Field) -> None:
        if takes.name not in self._fields:
            raise ContractError("field", f"one of {', '.join(self._fields)}", repr(takes.name))
        check_same(self._fields[takes.name], takes)

    def generation(self, slot: int) -> int:
        """Return how many times a slot has been handed out."""
        return self._generations[slot]

    def acquire(self, owner: str = "", *, start: Snapshot | None = None, outside: bool = False) -> Lease:
        """Lease a slot.

        Args:
            owner: whose it is, for reports.
            start: start from this snapshot (which the lease holds until it has stepped on); None starts from zero.
            outside: the state comes from outside: the lease is PENDING until ``fill`` or ``filled``.

        Raises:
            PoolExhausted: no slot is free.
            ContractError: the snapshot is another pool's or no longer held, or both ways to start are asked for.
        """
        if start is not None:
            if outside:
                raise ContractError("outside", "False together with a snapshot to start from", outside)
            if not isinstance(start, Snapshot) or start.pool is not self:
                raise ContractError("start", "a snapshot of this pool", repr(start))
            start.check()
        slot = self._take()
        lease = Lease(self, owner, slot, self._generations[slot], None if start is None else start.hold())
        if outside:
            lease.state, lease.position = LeaseState.PENDING, None
        self._hold(slot, lease, owner)
        return lease

    def disturbed(self) -> list[str]:
        """Name the dead rows and free slots that were written since they were poisoned (syncs).

        Raises:
            ContractError: the pool was made without ``Debug.POISON``.
        """
        if Debug.POISON not in self.debug:
            raise ContractError("debug", "a pool made with debug='poison'", sorted(self.debug))
        found = []
        for name, memory in self._memories.items():
            rows = memory.dead_rows() + [row for slot in self._free for row in memory.rows_of(slot)]
            for row in memory.disturbed(sorted(rows)):
                layer, place = divmod(row - 1, memory.rows_a_layer)
                found.append(f"{name}: row {place} of layer {layer}" if row else f"{name}: the row before layer 0")
        return found

    def describe(self) -> str:
        """Return what a slot holds and what the pool takes, in words."""
        return describe(self)

    def inspect(self) -> PoolReport:
        """Return who holds what, and what is wrong: leases and snapshots that were lost, slots counted twice."""
        self._collect()
        return inspect(self)

    def reclaim(self) -> list[int]:
        """Free the slots of leases and snapshots that no longer exist and were never released; return them.

        One that was lost may still be read by a step in flight: call it when the device is idle.
        """
        lost = [slot for slot, holder in self._holders.items() if holder() is None]
        for slot in lost:
            self._retire(slot, [])
        return lost

    def _take(self) -> int:
        self._collect()
        if not self._free:
            held = f"{len(self._holders)} held, {len(self._draining)} waiting for an event"
            raise PoolExhausted("capacity", f"a free slot among {self.capacity}", held)
        slot = self._free.popleft()
        self._generations[slot] += 1
        if self.generations is not None:
            self.generations[slot].fill_(self._generations[slot])
        return slot

    def _hold(self, slot: int, holder: Lease | Snapshot, owner: str) -> None:
        self._holders[slot], self._owners[slot] = weakref.ref(holder), owner

    def _collect(self) -> None:
        """Free the slots whose last use is done, without waiting."""
        waiting = []
        for slot, events in self._draining:
            left = [event for event in events if not event.query()]
            if left:
                waiting.append((slot, left))
            else:
                self._set_free(slot)
        self._draining = waiting

    def _set_free(self, slot: int) -> None:
        if Debug.POISON in self.debug:
            for memory in self._memories.values():
                memory.poison(memory.rows_of(slot))
        self._free.append(slot)

    def _retire(self, slot: int, events: list[Event]) -> None:
        """Take a slot back; it is free once its events are done."""
        del self._holders[slot], self._owners[slot]
        if self.generations is not None:
            self.generations[slot].fill_(-self._generations[slot])
        if events:
            self._draining.append((slot, list(events)))
        else:
            self._set_free(slot)

    def _release(self, lease: Lease, event: Event | None) -> None:
        lease.check(live=False)
        lease.state = LeaseState.RELEASED
        for snapshot in (lease._spent, lease._source):
            if snapshot is not None:
                snapshot.release(event)
        lease._spent = lease._source = None
        self._retire(lease.slot, [] if event is None else [event])

    def _snapshot(self, lease: Lease, position: int | None) -> Snapshot:
        lease.check(settled=True)
        if lease._source is not None:
            return lease._source.hold()
        if not lease.has_initial_state:
            raise ContractError("lease", "one that holds a state: it has not stepped yet", repr(lease))
        if position is None:
            position = lease.position
        if position is None:
            raise ContractError("position", "the number of tokens the state has seen, after a speculative step", None)
        slot = self._take()
        kept = Snapshot(self, lease.slot, lease.generation, position)
        self._hold(lease.slot, kept, lease.owner)
        lease.slot, lease.generation, lease.position = slot, self._generations[slot], position
        lease._source, lease._written = kept.hold(), False
        self._hold(slot, lease, lease.owner)
        return kept

    def _fork(self, lease: Lease, owner: str, position: int | None) -> Lease:
        lease.check(settled=True)
        needed = 1 if lease._source is not None else 2
        if self.available < needed:
            raise PoolExhausted("capacity", f"{needed} free slots", f"{len(self._free)} of {self.capacity}")
        kept = self._snapshot(lease, position)
        child = self.acquire(owner, start=kept)
        kept.release()
        return child

    def _copy_in(self, slot: int, values: Mapping[str, torch.Tensor], layouts: Mapping[str, Any]) -> None:
        fields = {field.name: field for field in self.states}
        if set(values) != set(fields):
            raise ContractError("values", f"the fields {', '.join(fields)}", ", ".join(values) or "none")
        for name, field in fields.items():
            value = values[name]
            shape = (self.layers, *field.shape)
            if layouts.get(name) != field.layout:
                raise ContractError(f"layouts[{name!r}]", field.layout.value, layouts.get(name))
            if tuple(value.shape) != shape or value.dtype != field.dtype:
                got = f"{value.dtype} {list(value.shape)}"
                raise ContractError(f"values[{name!r}]", f"{field.dtype} {list(shape)}", got)
        for name in fields:
            self.memory(name).slot(slot).copy_(values[name], non_blocking=True)
