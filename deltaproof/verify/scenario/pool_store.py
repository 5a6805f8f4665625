"""Our pool: leases, snapshots and step plans do the bookkeeping, and dead rows lie around every layer.

The pool is made with ``debug="poison"``: dead rows and free slots hold NaN, and after each step the store looks whether
one of them was written. A dead row that was hit is nobody's, so the run goes on; a slot that was hit ends it.

Speculation goes through draft fields: a step leaves no state of tokens that may be refused, and the next one takes in
those that stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deltaproof.ops.common.calls import Drafts
from deltaproof.state import (
    ConvDraftField,
    ConvField,
    Debug,
    DraftField,
    Lease,
    PoolExhausted,
    RecurrentField,
    Snapshot,
    StatePool,
    StepPlan,
)
from deltaproof.state.fields import Field
from deltaproof.state.memory import FieldMemory
from deltaproof.verify.scenario.model import CHANNELS, GDN_LAYERS, HEADS, TAPS, K, V
from deltaproof.verify.scenario.requests import Kept, Request
from deltaproof.verify.scenario.spread import spread_rows
from deltaproof.verify.scenario.store import SIZES, Full, Store
from deltaproof.verify.scenario.workload import DRAFTED

STATES = RecurrentField("gdn", HEADS, K, V)
WINDOWS = ConvField("conv", CHANNELS, TAPS, torch.float32)
DRAFTS = DraftField("drafts", DRAFTED + 1, HEADS, HEADS, K, V, torch.float32)
INPUTS = ConvDraftField("inputs", DRAFTED + 1, CHANNELS, torch.float32)


class SpreadMemory(FieldMemory):
    """The rows of a field, so far apart that an offset does not fit into 32 bits."""

    def __init__(self, field: RecurrentField, layers: int, capacity: int) -> None:
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
        fields: list[Field] = [STATES, WINDOWS]
        if speculates:
            fields += [DRAFTS, INPUTS]
        self.pool = StatePool(fields, layers=GDN_LAYERS, capacity=slots, debug=[Debug.POISON])
        if spread:
            memory = SpreadMemory(STATES, GDN_LAYERS, slots)
            memory.poison([*memory.dead_rows(), *(row for slot in range(1, slots + 1) for row in memory.rows_of(slot))])
            self.pool._memories[STATES.name] = memory
        self.speculates = speculates
        self.sizes = StepPlan(self.pool, sizes=SIZES)
        self.live: dict[str, Request] = {}
        self.kept: list[Snapshot] = []
        self.step: list[Request] = []
        self.stand: list[int] = []

    def states(self, layer: int) -> torch.Tensor:
        return self.pool.bind(STATES, layer)

    def windows(self, layer: int) -> torch.Tensor:
        return self.pool.bind(WINDOWS, layer)

    def drafts(self, layer: int) -> tuple[Drafts, torch.Tensor] | None:
        if not self.speculates:
            return None
        return self.pool.bind_drafts(DRAFTS, layer), self.pool.bind(INPUTS, layer)

    def admit(self, request: Request, kept: Kept | None) -> None:
        if not self.pool.available:
            raise Full
        request.handle = self.pool.acquire(request.job.name, start=None if kept is None else kept.handle)
        self.live[request.job.name] = request

    def plan(self, form: str, rows: Sequence[Request], counts: Sequence[int]) -> dict[str, Any]:
        if form == "prefill":
            return self.sizes.extend([row.handle for row in rows], counts)
        if self.speculates:
            self.step, self.stand = list(rows), []
            return self.sizes.speculate([row.handle for row in rows], counts)
        return self.sizes.decode([row.handle for row in rows], counts)

    def settle(self, request: Request, stand: int, count: int, drafts: int) -> int:
        assert request is self.step[len(self.stand)], "rows settle in their order"
        self.stand.append(self.accepted(stand, count, drafts))
        if len(self.stand) == len(self.step):
            self.sizes.commit(self.stand)
        return self.stand[-1]

    def accepted(self, stand: int, count: int, drafts: int) -> int:
        """Return how many tokens of a row are taken in by its next step."""
        return stand

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
