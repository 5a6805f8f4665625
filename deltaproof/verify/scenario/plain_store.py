"""A plain pool, as engines have them: slot 0 is live, nothing guards a layer, and slots are cleared on release.

Layers lie side by side in one buffer a field, the model's last layer first: answers come out of its states, so a write
before the pool of the layer above it shows. A state starts from what its slot holds, so whoever gives a slot back
clears it. ``no_buffer`` copies a state to keep it; with ``extra_buffer`` a request has a second slot and goes on there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deltaproof.verify.scenario.model import CHANNELS, GDN_LAYERS, HEADS, TAPS, K, V
from deltaproof.verify.scenario.requests import Kept, Request
from deltaproof.verify.scenario.spread import spread_rows
from deltaproof.verify.scenario.store import Full, Store, padded

STATE, WINDOW = HEADS * K * V, CHANNELS * (TAPS - 1)


class PlainMemory:
    """The buffers.

    Args:
        slots: slots a layer.
        spread: put the slots of the states far apart, the layers between them.

    Attributes:
        states: a layer's states, a view [slots, H, K, V] each.
        windows: a layer's windows, a view [slots, C, TAPS - 1] each.
    """

    def __init__(self, slots: int, *, spread: bool = False) -> None:
        if spread:
            rows = spread_rows(slots, GDN_LAYERS * STATE)
            self.states = [
                rows[:, at * STATE : (at + 1) * STATE].unflatten(1, (HEADS, K, V)) for at in range(GDN_LAYERS)
            ]
        else:
            # whatever lies before the first layer is somebody else's
            whole = torch.zeros(1 + GDN_LAYERS * slots, HEADS, K, V)
            self.states = list(whole[1:].split(slots))[::-1]
        self.windows = list(torch.zeros(GDN_LAYERS * slots, CHANNELS, TAPS - 1).split(slots))


@dataclass
class KeptSlot:
    """A slot of the prefix cache, and how many requests are about to read it."""

    slot: int
    pins: int = 0


@dataclass
class Owned:
    """A request's slots.

    Attributes:
        slot: the slot it writes.
        source: a kept state that the next step reads instead.
        spare: the slot it goes on in when ``slot`` is kept.
        sets: with speculation, two sets of slots, one a token: a step reads one of a set and writes the other set.
        column: with speculation, which of the set is read.
    """

    slot: int
    source: KeptSlot | None = None
    spare: int | None = None
    sets: list[list[int]] = field(default_factory=list)
    column: int = 0

    @property
    def all(self) -> list[int]:
        """All of its slots."""
        spare = [] if self.spare is None else [self.spare]
        return [self.slot, *spare] if not self.sets else [slot for one in self.sets for slot in one]


class PlainStore(Store):
    """Slots by number, a list of free ones, and kernels that are told what to read and to write.

    Args:
        slots: slots a layer.
        extra: requests have a second slot (``extra_buffer``).
        columns: tokens of a speculative step; 1 without speculation.
        spread: see ``PlainMemory``.
    """

    def __init__(self, slots: int, *, extra: bool, columns: int = 1, spread: bool = False) -> None:
        self.memory = PlainMemory(slots, spread=spread)
        self.extra, self.columns = extra, columns
        self.free = deque(range(slots))
        self.live: dict[str, Request] = {}
        self.kept: list[int] = []

    def states(self, layer: int) -> torch.Tensor:
        return self.memory.states[layer]

    def windows(self, layer: int) -> torch.Tensor:
        return self.memory.windows[layer]

    def take(self) -> int:
        """Take the slot that has been free for longest."""
        if not self.free:
            raise Full
        return self.free.popleft()

    def clear(self, slot: int) -> None:
        """Make a slot's state zero in every layer."""
        for rows in (*self.memory.states, *self.memory.windows):
            rows[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy a slot in every layer."""
        for rows in (*self.memory.states, *self.memory.windows):
            rows[target] = rows[source]

    def admit(self, request: Request, kept: Kept | None) -> None:
        needed = 2 * self.columns if self.columns > 1 else 1 + self.extra
        if len(self.free) < needed:
            raise Full
        taken = [self.take() for _ in range(needed)]
        owned = Owned(taken[0], spare=taken[1] if self.extra and self.columns == 1 else None)
        if self.columns > 1:
            owned.sets = [taken[: self.columns], taken[self.columns :]]
        if kept is not None and self.extra and self.columns == 1:
            owned.source = kept.handle
            kept.handle.pins += 1
        elif kept is not None:
            self.copy(kept.handle.slot, owned.slot)
        request.handle = owned
        self.live[request.job.name] = request

    def plan(self, form: str, rows: Sequence[Request], counts: Sequence[int]) -> dict[str, Any]:
        ends = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        size = len(rows) if form == "prefill" else padded(len(rows))
        filler = [-1] * (size - len(rows))
        read = [self._read(row.handle, count) for row, count in zip(rows, counts, strict=True)] + filler
        write: list[Any] = [row.handle.slot for row in rows] + filler
        if self.columns > 1 and form == "decode":
            T = max(counts)
            write = [row.handle.sets[1][:T] for row in rows] + [[-1] * T] * len(filler)
            for row in rows:
                row.handle.sets.reverse()
        step: dict[str, Any] = {
            "read_index": torch.tensor(read, dtype=torch.int32),
            "write_index": torch.tensor(write, dtype=torch.int32),
        }
        if form == "prefill":
            return step | {"cu_seqlens": ends}
        return step | {"num_tokens": torch.tensor([*counts, *[0] * len(filler)], dtype=torch.int32)}

    def column(self, owned: Owned, count: int) -> int:
        """Return which of its last step's states a row of ``count`` tokens goes on from."""
        return owned.column

    def _read(self, owned: Owned, count: int) -> int:
        """Return the slot that a step reads; a kept state is read once."""
        if owned.sets:
            return owned.sets[0][self.column(owned, count)]
        source, owned.source = owned.source, None
        if source is None:
            return owned.slot
        source.pins -= 1
        return source.slot

    def settle(self, request: Request, stand: int, count: int, drafts: int) -> int:
        request.handle.column = stand - 1
        return stand

    def keep(self, request: Request) -> Any:
        owned = request.handle
        if self.extra and self.columns == 1:
            handle = KeptSlot(self.go_on(owned))
            owned.source = handle
            handle.pins += 1
        else:
            handle = KeptSlot(self.take())
            self.copy(owned.sets[0][owned.column] if owned.sets else owned.slot, handle.slot)
        self.kept.append(handle.slot)
        return handle

    def go_on(self, owned: Owned) -> int:
        """Let a request go on in its second slot; return the one it had."""
        assert owned.spare is not None
        new, slot = self.take(), owned.slot
        owned.slot, owned.spare = owned.spare, new
        return slot

    def idle(self, handle: Any) -> bool:
        return bool(handle.pins == 0)

    def drop(self, handle: Any) -> None:
        self.kept.remove(handle.slot)
        self.clear(handle.slot)
        self.free.append(handle.slot)

    def release(self, request: Request, *, aborted: bool) -> None:
        del self.live[request.job.name]
        if request.handle.source is not None:
            request.handle.source.pins -= 1
        for slot in request.handle.all:
            self.clear_on_release(slot, aborted)
            self.free.append(slot)

    def clear_on_release(self, slot: int, aborted: bool) -> None:
        """Clear a slot that is given back, for whoever gets it next."""
        self.clear(slot)

    def others(self, rows: Sequence[Request]) -> list[int]:
        held = {slot for request in self.live.values() for slot in request.handle.all} | set(self.kept)
        return sorted(held - {slot for row in rows for slot in row.handle.all})

    def content(self, slots: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(slots, dtype=torch.long)
        rows = [*self.memory.states, *self.memory.windows]
        return torch.cat([part[index].flatten(1) for part in rows], 1).view(torch.int32)
