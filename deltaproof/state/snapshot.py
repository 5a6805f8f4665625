"""A state that is kept: immutable, counted, and the same for everybody who starts from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltaproof.contracts.errors import ContractError

if TYPE_CHECKING:
    import torch

    from deltaproof.state.lease import Event
    from deltaproof.state.pool import StatePool


class Snapshot:
    """A slot that nobody writes any more. Made by ``Lease.snapshot``.

    Attributes:
        pool: the pool it belongs to; its fields carry the layouts.
        slot: the slot that holds it.
        generation: the slot's generation.
        position: tokens the state has seen.
        holds: how many hold it: callers, and leases that start from it and have not stepped on.
    """

    def __init__(self, pool: StatePool, slot: int, generation: int, position: int) -> None:
        self.pool, self.slot, self.generation, self.position = pool, slot, generation, position
        self.holds = 1
        self._events: list[Event] = []

    def __repr__(self) -> str:
        return f"Snapshot(slot={self.slot}, generation={self.generation}, position={self.position}, holds={self.holds})"

    def check(self) -> None:
        """Check that somebody holds it.

        Raises:
            ContractError: it has been released as often as it was held.
        """
        if self.holds < 1:
            raise ContractError("snapshot", "one that is still held", repr(self))

    def hold(self) -> Snapshot:
        """Hold it once more and return it.

        Raises:
            ContractError: nobody holds it any more.
        """
        self.check()
        self.holds += 1
        return self

    def rows(self, field: str) -> torch.Tensor:
        """Return the state in every layer [layers, *field.shape], a view to read.

        Raises:
            ContractError: there is no such field, or nobody holds the snapshot.
        """
        self.check()
        return self.pool.memory(field).slot(self.slot)

    def release(self, event: Event | None = None) -> None:
        """Hold it once less; the slot is handed out again when nobody holds it and every event is done.

        Args:
            event: recorded after the holder's last use; None where one stream's order is enough.

        Raises:
            ContractError: nobody holds it any more.
        """
        self.check()
        self.holds -= 1
        if event is not None:
            self._events.append(event)
        if self.holds == 0:
            self.pool._retire(self.slot, self._events)
