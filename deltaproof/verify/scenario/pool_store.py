"""Our pool: leases, snapshots and step plans do the bookkeeping, and dead rows lie around every layer.

The pool is made with ``debug="poison"``: dead rows and free slots hold NaN, and after each step the store looks whether
one of them was written. A dead row that was hit is nobody's, so the run goes on; a slot that was hit ends it.

Speculation takes a snapshot before the step. Where drafts are refused, the request starts again from it, and the next
step runs the tokens that stand once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deltaproof.state import ConvField, Debug, Lease, PoolExhausted, RecurrentField, Snapshot, StatePool, StepPlan
from deltaproof.state.fields import Field
from deltaproof.state.memory import FieldMemory
from deltaproof.verify.scenario.model import CHANNELS, GDN_LAYERS, HEADS, TAPS, K, V
from deltaproof.verify.scenario.requests import Kept, Request
from deltaproof.verify.scenario.spread import spread_rows
from deltaproof.verify.scenario.store import SIZES, Full, Store

STATES = RecurrentField("gdn", HEADS, K, V)
WINDOWS = ConvField("conv", CHANNELS, TAPS, torch.float32)


class SpreadMemory(FieldMemory):
    """The rows of a field, so far apart that an offset does not fit into 32 bits."""

    def __init__(self, field: Field, layers: int, capacity: int) -> None:
        super().__init__(field, layers, capacity, torch.device("cpu"))
        self._flat = spread_rows(*self._flat.shape)
        self.all_rows = self._flat.unflatten(1, field.shape)


class PoolStore(Store):
    """Slots by lease.

    Args:
        slots: capacity of the pool.
        speculates: whether steps are speculative.
        spread: put the rows of the states far apart.
    """

    def __init__(self, slots: int, *, speculates: bool = False, spread: bool = False) -> None:
        self.pool = StatePool([STATES, WINDOWS], layers=GDN_LAYERS, capacity=slots, debug=[Debug.POISON])
        if spread:
            memory = SpreadMemory(STATES, GDN_LAYERS, slots)
            memory.poison([*memory.dead_rows(), *(row for slot in range(1, slots + 1) for row in memory.rows_of(slot))])
            self.pool._memories[STATES.name] = memory
        self.speculates = speculates
        self.sizes = StepPlan(self.pool, sizes=SIZES)
        self.live: dict[str, Request] = {}
        self.kept: list[Snapshot] = []
        self.before: dict[str, Snapshot] = {}

    def states(self, layer: int) -> torch.Tensor:
        return self.pool.bind(STATES, layer)

    def windows(self, layer: int) -> torch.Tensor:
        return self.pool.bind(WINDOWS, layer)

    def admit(self, request: Request, kept: Kept | None) -> None:
        if self.pool.available < 1 + self.speculates:
            raise Full
        request.handle = self.pool.acquire(request.job.name, start=None if kept is None else kept.handle)
        self.live[request.job.name] = request

    def plan(self, form: str, rows: Sequence[Request], counts: Sequence[int]) -> dict[str, Any]:
        if form == "prefill":
            return self.sizes.extend([row.handle for row in rows], counts)
        if self.speculates:
            for row in rows:
                self.before[row.job.name] = row.handle.snapshot()
        return self.sizes.decode([row.handle for row in rows], counts)

    def settle(self, request: Request, stand: int, count: int, drafts: int) -> int:
        before = self.before.pop(request.job.name)
        if not self.whole(stand, count, drafts):
            request.handle.release()
            request.handle = self.pool.acquire(request.job.name, start=before)
        before.release()
        # the lease says how far its state is, not whoever counted drafts
        position: int = request.handle.position
        return position - request.fed

    def whole(self, stand: int, count: int, drafts: int) -> bool:
        """Return whether all tokens of a step stand."""
        return stand == count

    def keep(self, request: Request) -> Any:
        try:
            kept = request.handle.snapshot()
        except PoolExhausted:
            raise Full from None
        self.kept.append(kept)
        return kept

    def drop(self, handle: Any) -> None:
        self.kept.remove(handle)
        handle.release()

    def release(self, request: Request, *, aborted: bool) -> None:
        del self.live[request.job.name]
        before = self.before.pop(request.job.name, None)
        if before is not None:
            before.release()
        request.handle.release()

    def others(self, rows: Sequence[Request]) -> list[int]:
        leases: list[Lease] = [request.handle for request in self.live.values()]
        held = {lease.read_slot for lease in leases if lease.has_initial_state} | {kept.slot for kept in self.kept}
        return sorted(held - {slot for row in rows for slot in (row.handle.slot, row.handle.read_slot)})

    def content(self, slots: Sequence[int]) -> torch.Tensor:
        parts = [
            torch.stack([self.pool.memory(name).slot(slot).flatten() for slot in slots])
            for name in (STATES.name, WINDOWS.name)
        ]
        return torch.cat(parts, 1).view(torch.int32)

    def watch(self) -> bool:
        found = self.pool.disturbed()
        if found and self.named is None:
            self.named = f"{found[0]} written though nobody holds it"
        dead = {f"row {row} of" for row in (0, self.pool.capacity + 1)}
        return any("before layer" not in text and not any(row in text for row in dead) for text in found)
