"""What the interpreter of Gluon makes of descriptors, of copies by TMA and of the barriers that they complete.

Stricter than a GPU: a copy's tile is NaN until its barrier is waited for; waiting for a phase that nobody will
complete, or that more or fewer bytes come to than were expected, is an error and no hang; so is saying twice what a
phase expects, and a second copy to a tile whose first was not waited for. What is stored leaves when it is waited for,
as the tile is then.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, field
from typing import Any

import torch


class Block:
    """A descriptor: of a tensor, in memory that others have too, blocks that are copied."""

    def __init__(self, descriptor: Any, element: Any) -> None:
        base = descriptor.base.detach()
        # reads what is inside the tensor's memory or is refused
        self.rows = torch.as_strided(base, descriptor.shape, descriptor.strides)
        self.dtype, self.block_shape = element, list(descriptor.block_shape)

    def _inside(self, place: list[int]) -> tuple[Any, Any]:
        """Return where the block that begins at a place lies in the tensor, and what part of the block that is."""
        spans = list(zip(place, self.block_shape, self.rows.shape, strict=True))
        inside = [(min(max(at, 0), end), max(min(at + size, end), 0)) for at, size, end in spans]
        there = tuple(slice(begin, max(begin, end)) for begin, end in inside)
        return there, tuple(
            slice(x.start - at, x.stop - at) if x.stop > x.start else slice(0, 0)
            for x, at in zip(there, place, strict=True)
        )

    def read(self, place: list[int]) -> torch.Tensor:
        """Return the block that begins at a place: zeros for what lies outside the tensor."""
        found = torch.zeros(self.block_shape, dtype=self.rows.dtype)
        there, part = self._inside(place)
        found[part] = self.rows[there]
        return found

    def write(self, place: list[int], tile: torch.Tensor) -> None:
        """Store the block that begins at a place, but for what lies outside the tensor."""
        there, part = self._inside(place)
        self.rows[there] = tile[part]


@dataclass
class Barrier:
    """A barrier in shared memory: the phase that it is in, and what that one has and waits for.

    Attributes:
        count: arrivals that a phase takes.
        phases: how many are complete.
        arrived: arrivals in this one.
        expected: bytes that were announced for it.
        copies: what was asked for: a tile, the descriptor and the place.
    """

    count: int
    phases: int = 0
    arrived: int = 0
    expected: int = 0
    copies: list[tuple[torch.Tensor, Block, list[int]]] = field(default_factory=list)

    def complete(self) -> None:
        """Let everything come that this phase was asked for."""
        asked = sum(tile.numel() * tile.element_size() for tile, _, _ in self.copies)
        assert self.arrived == self.count, f"a phase waits for {self.count - self.arrived} arrivals that nobody makes"
        assert self.expected == asked, f"a phase expects {self.expected} bytes, and {asked} were asked for"
        for tile, block, place in self.copies:
            tile.copy_(block.read(place).view(tile.shape))
        self.phases, self.arrived, self.expected, self.copies = self.phases + 1, 0, 0, []


def _number(x: Any) -> int:
    """Return a coordinate; on the GPU it has 32 bits, and nothing else is taken."""
    assert not isinstance(x, torch.Tensor) or x.dtype == torch.int32, f"a coordinate in {x.dtype}"
    return int(x)


class Barriers:
    """The barriers of one program, by where they lie in shared memory."""

    def __init__(self) -> None:
        self.at: dict[int, Barrier] = {}
        self.stores: list[tuple[torch.Tensor, Block, list[int]]] = []

    def _of(self, place: Any) -> Barrier:
        assert place.dtype == torch.int64 and place.tile.numel() == 1, "a barrier is one number of 64 bits"
        assert place.tile.data_ptr() in self.at, "a barrier was used before it was made"
        return self.at[place.tile.data_ptr()]

    def init(self, place: Any, count: int) -> None:
        """Make a barrier whose phases take ``count`` arrivals."""
        assert place.dtype == torch.int64 and place.tile.numel() == 1, "a barrier is one number of 64 bits"
        assert place.tile.data_ptr() not in self.at, "a barrier was made twice"
        self.at[place.tile.data_ptr()] = Barrier(count)

    def expect(self, place: Any, size: int, pred: Any = True) -> None:
        """Arrive, and say that so many bytes will come beside those that were announced."""
        if pred:
            barrier = self._of(place)
            assert barrier.arrived < barrier.count, "a phase has all its arrivals, and was not waited for"
            barrier.arrived += 1
            barrier.expected += size

    def wait(self, place: Any, phase: Any, pred: Any = True) -> None:
        """Wait until the phase of this parity is complete; the one before it counts as complete at first."""
        assert int(phase) in (0, 1), f"phase {int(phase)} is no parity"
        barrier = self._of(place)
        if pred and barrier.phases % 2 == int(phase):
            barrier.complete()

    def copy(self, block: Block, place: list[Any], barrier: Any, tile: Any, pred: Any = True) -> None:
        """Ask for a block, whose bytes a barrier counts."""
        if not pred:
            return
        found = self._of(barrier)
        assert list(tile.shape) == block.block_shape, (tile.shape, block.block_shape)
        assert tile.dtype == block.rows.dtype, (tile.dtype, block.rows.dtype)
        pending = [x.data_ptr() for other in self.at.values() for x, _, _ in other.copies]
        assert tile.tile.data_ptr() not in pending, "a tile was asked for twice, and not waited for"
        tile.tile.fill_(math.nan)
        found.copies.append((tile.tile, block, [_number(x) for x in place]))

    def store(self, block: Block, place: list[Any], tile: Any) -> None:
        """Ask for a tile to be stored."""
        assert list(tile.shape) == block.block_shape, (tile.shape, block.block_shape)
        assert tile.dtype == block.rows.dtype, (tile.dtype, block.rows.dtype)
        self.stores.append((tile.tile, block, [_number(x) for x in place]))

    def wait_stores(self, left: int) -> None:
        """Wait until all stores but the last few have been read."""
        while len(self.stores) > left:
            tile, block, place = self.stores.pop(0)
            block.write(place, tile)

    def left(self) -> bool:
        """Return whether a copy or a store was not waited for."""
        return bool(self.stores) or any(barrier.copies for barrier in self.at.values())


def language(current: Any) -> tuple[Any, Any]:
    """Return what a kernel finds under ``mbarrier`` and ``tma``; ``current()`` is the running program's barriers."""
    mbarrier = types.SimpleNamespace(
        MBarrierLayout=lambda *_, **__: None,
        init=lambda place, count: current().init(place, count),
        expect=lambda place, bytes, pred=True: current().expect(place, bytes, pred),
        wait=lambda place, phase, pred=True, deps=(): current().wait(place, phase, pred),
    )
    tma = types.SimpleNamespace(
        async_copy_global_to_shared=lambda block, coord, barrier, result, pred=True: current().copy(
            block, coord, barrier, result, pred
        ),
        async_copy_shared_to_global=lambda block, coord, src: current().store(block, coord, src),
        store_wait=lambda pendings: current().wait_stores(pendings),
    )
    return mbarrier, tma
