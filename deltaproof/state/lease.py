"""The right to use a slot, and what a request's state starts from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from deltaproof.contracts.errors import ContractError

if TYPE_CHECKING:
    import torch

    from deltaproof.state.pool import StatePool
    from deltaproof.state.snapshot import Snapshot


class Event(Protocol):
    """A point in a stream's work, such as ``torch.cuda.Event``."""

    def query(self) -> bool:
        """Return whether the work before it is done, without waiting."""
        ...


class LeaseState(str, Enum):
    """Where a lease stands; it only moves downwards."""

    PENDING = "pending"
    """The slot is held; its content comes from outside and is not there yet."""
    LIVE = "live"
    """Steps may use it."""
    RELEASED = "released"
    """Given back; any use raises."""


class Lease:
    """One request's slot. Made by ``StatePool.acquire``, not by hand.

    The slot a lease writes may change (a snapshot keeps the old one), so steps ask the lease, never a number kept
    elsewhere.

    Attributes:
        pool: the pool it belongs to.
        owner: whose it is, as ``acquire`` was told; for reports.
        slot: the slot it writes, 1 to capacity.
        generation: how many times that slot had been handed out; with the slot it names this lease alone.
        state: PENDING, LIVE or RELEASED.
        position: tokens that the state has seen; None where drafts were committed on the device alone.
    """

    def __init__(self, pool: StatePool, owner: str, slot: int, generation: int, source: Snapshot | None) -> None:
        self.pool, self.owner = pool, owner
        self.slot, self.generation = slot, generation
        self.state = LeaseState.LIVE
        self.position: int | None = 0 if source is None else source.position
        self._source = source
        self._spent: Snapshot | None = None
        self._written = False
        self._half: int | None = None
        self._committed = True

    def __repr__(self) -> str:
        return f"Lease({self.owner!r}, slot={self.slot}, generation={self.generation}, {self.state.value})"

    @property
    def read_slot(self) -> int:
        """Slot the next step reads: the lease's own, or that of the snapshot it starts from."""
        return self.slot if self._source is None else self._source.slot

    @property
    def has_initial_state(self) -> bool:
        """Whether the next step starts from what ``read_slot`` holds; False means from zero."""
        return self._written or self._source is not None

    @property
    def drafted(self) -> bool:
        """Whether its slot holds drafts of which some may have been accepted; see ``StepPlan.settle``."""
        return self._half is not None

    def check(self, *, live: bool = True, settled: bool = False) -> None:
        """Check that the lease is still the one that holds its slot.

        Args:
            live: also check that it is not PENDING.
            settled: also check that its slot holds the whole state, with no drafts to take in.

        Raises:
            ContractError: it is released, stale or, with ``live``, PENDING, or with ``settled`` has drafts.
        """
        if self.state is LeaseState.RELEASED:
            raise ContractError("lease", "a lease that is not released", repr(self))
        if self.pool.generation(self.slot) != self.generation:
            now = self.pool.generation(self.slot)
            raise ContractError("lease", f"generation {now} of slot {self.slot}: this one is stale", repr(self))
        if live and self.state is LeaseState.PENDING:
            raise ContractError("lease", "a lease whose state has been filled", repr(self))
        if settled and self.drafted:
            raise ContractError("lease", "a lease without drafts (StepPlan.settle takes them in)", repr(self))

    def fill(self, values: Mapping[str, torch.Tensor], *, position: int, layouts: Mapping[str, Any]) -> None:
        """Take a state from outside and go from PENDING to LIVE.

        Args:
            values: for every field of the pool by name [layers, *field.shape], of the field's dtype.
            position: tokens that this state has seen.
            layouts: the layout of each field's values, since no shape shows it where K = V.

        Raises:
            ContractError: the lease is not PENDING, or a field is missing or of another shape, dtype or layout. The
                slot is then as it was.
        """
        self.check(live=False)
        if self.state is not LeaseState.PENDING:
            raise ContractError("lease", "a PENDING lease (acquire(..., outside=True))", repr(self))
        self.pool._copy_in(self.slot, values, layouts)
        self._filled(position)

    def filled(self, *, position: int) -> None:
        """Say that ``rows`` hold the state now (written by a transfer of the caller's own).

        Raises:
            ContractError: the lease is not PENDING, or ``position`` is negative.
        """
        self.check(live=False)
        if self.state is not LeaseState.PENDING:
            raise ContractError("lease", "a PENDING lease (acquire(..., outside=True))", repr(self))
        self._filled(position)

    def _filled(self, position: int) -> None:
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise ContractError("position", "a number of tokens, 0 or more", repr(position))
        self.position, self._written, self.state = position, True, LeaseState.LIVE

    def rows(self, field: str) -> torch.Tensor:
        """Return the slot in every layer [layers, *field.shape], a view to transfer a state into or out of.

        Raises:
            ContractError: there is no such field, or the lease is released or stale, or has drafts, or it is LIVE and
                the slot does not hold its state yet (it starts from zero or from a snapshot).
        """
        self.check(live=False, settled=True)
        if self.state is LeaseState.LIVE and not self._written:
            raise ContractError("lease", "a lease whose slot has been written", repr(self))
        return self.pool.memory(field).slot(self.slot)

    def snapshot(self, *, position: int | None = None) -> Snapshot:
        """Keep the state as it is now: the slot is not written any more, and the lease goes on in another one.

        Nothing is copied. The next step reads the snapshot's slot and writes the new one.

        Args:
            position: tokens the state has seen, where the lease cannot know (after a speculative step).

        Returns:
            the snapshot, held once; ``release`` it.

        Raises:
            ContractError: the lease cannot be used, holds no state yet, has drafts, or its position is unknown.
            PoolExhausted: no slot is free to go on in; the lease is as it was.
        """
        return self.pool._snapshot(self, position)

    def fork(self, owner: str, *, position: int | None = None) -> Lease:
        """Return a second lease that starts from this one's state, which stays as it is.

        Args:
            owner: whose the second lease is.
            position: as for ``snapshot``.

        Raises:
            ContractError, PoolExhausted: as for ``snapshot`` and ``StatePool.acquire``; two slots are needed where
                this lease's slot has been written since its last snapshot, else one.
        """
        return self.pool._fork(self, owner, position)

    def release(self, event: Event | None = None) -> None:
        """Give the slot back.

        Args:
            event: recorded after the last step that uses the slot; it is handed out again once the event is done.
                None: everything that uses the pool runs on one stream, whose order is enough.

        Raises:
            ContractError: the lease is released already, or stale.
        """
        self.pool._release(self, event)

    def _drafts(self, half: int | None) -> None:
        """Note which half of the slot holds the drafts of the step that was planned; None for none."""
        self._half, self._committed = half, half is None

    def _accepted(self, count: int | None) -> None:
        """Note that the last drafts were committed, and where the host knows it how many."""
        self._committed = True
        self.position = None if count is None or self.position is None else self.position + count

    def _stepped(self, tokens: int | None) -> Snapshot | None:
        """Note that a step which writes the slot was planned; return a snapshot that is no longer needed."""
        spent, self._spent = self._spent, self._source
        self._source, self._written = None, True
        self.position = None if tokens is None or self.position is None else self.position + tokens
        return spent
