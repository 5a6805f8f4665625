"""The rows of the table: clean adapters, and faults as they were found in public.

A fault of a kernel is an adapter that computes a wrong address. A fault of the bookkeeping is a store with one slip. On
our pool the same slip is tried against leases and snapshots, as far as it can be written down there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltaproof.verify.scenario.adapters import (
    Adapter,
    ClampedToFirst,
    GatherScatter,
    NarrowOffset,
    Operators,
    RawNegative,
    ScatteredToLast,
)
from deltaproof.verify.scenario.plain_store import KeptSlot, Owned, PlainStore
from deltaproof.verify.scenario.pool_store import PoolStore
from deltaproof.verify.scenario.requests import Request


class ClearLostOnAbort(PlainStore):
    """A slot is cleared when a request ends, and not when it is given up."""

    def clear_on_release(self, slot: int, aborted: bool) -> None:
        if not aborted:
            self.clear(slot)


class SharedWithWriter(PlainStore):
    """The prefix cache is given the slot itself, and the request goes on writing it."""

    def keep(self, request: Request) -> Any:
        self.kept.append(request.handle.slot)
        return KeptSlot(request.handle.slot)

    def drop(self, handle: Any) -> None:
        self.kept.remove(handle.slot)
        self._free([handle.slot])

    def release(self, request: Request, *, aborted: bool) -> None:
        del self.live[request.job.name]
        if request.handle.source is not None:
            request.handle.source.pins -= 1
        self._free(request.handle.all)

    def _free(self, slots: Sequence[int]) -> None:
        """Free the slots that neither the cache nor a request has any more."""
        held = {slot for request in self.live.values() for slot in request.handle.all} | set(self.kept)
        for slot in slots:
            if slot not in held:
                self.clear(slot)
                self.free.append(slot)


class ColumnZero(PlainStore):
    """A row without drafts takes the path without speculation, and reads column 0 whatever was accepted before."""

    def column(self, owned: Owned, count: int) -> int:
        return 0 if count == 1 else owned.column


class LeaseInCache(PoolStore):
    """The prefix cache is given the lease, which the request goes on using."""

    def keep(self, request: Request) -> Any:
        return request.handle

    def drop(self, handle: Any) -> None:
        pass


class NoneAccepted(PoolStore):
    """A row without drafts has 0 accepted tokens noted: its next step takes in nothing."""

    def accepted(self, stand: int, count: int, drafts: int) -> int:
        return stand if drafts > 0 or count > 1 else 0


@dataclass(frozen=True)
class Entry:
    """An adapter of the table.

    Attributes:
        name: how it is called.
        what: what it does.
        story: where its fault was seen in public; empty for a clean one.
        adapter: the delta rule.
        plain: the store with the plain pool.
        ours: the store with our pool.
        speculates: steps carry drafted tokens.
        spread: slots lie so far apart that offsets need 64 bits.
        caches: it needs a prefix cache to show.
    """

    name: str
    what: str
    story: str = ""
    adapter: type[Adapter] = Operators
    plain: type[PlainStore] = PlainStore
    ours: type[PoolStore] = PoolStore
    speculates: bool = False
    spread: bool = False
    caches: bool = False

    @property
    def clean(self) -> bool:
        """Whether there is no fault in it."""
        return not self.story


ENTRIES = (
    Entry("operators", "our operators, indices as they are"),
    Entry("gather/scatter", "states gathered, a plain kernel, states scattered", adapter=GatherScatter),
    Entry(
        "speculation", "our operators, drafted tokens: a state a token in the plain pool, drafts in ours",
        speculates=True,
    ),
    Entry(
        "far slots", "gather/scatter, slots 2**29 elements apart", adapter=GatherScatter, spread=True
    ),
    Entry(
        "raw -1", "a padding row's index is an address: another layer's last slot",
        "sglang #20791, mended in flashinfer #2810", adapter=RawNegative,
    ),
    Entry(
        "clamp to slot 0", "a padding row's index becomes 0, and slot 0 is advanced",
        "flashinfer #2810: the first fix", adapter=ClampedToFirst,
    ),
    Entry(
        "scatter through [-1]", "padding rows' states go to Python's last slot",
        "flashinfer #5042", adapter=ScatteredToLast,
    ),
    Entry(
        "clear lost on abort", "a slot given back by a request that was given up is not cleared",
        "sglang #30986: a load that is aborted leaves the state of the slot's last owner",
        adapter=GatherScatter, plain=ClearLostOnAbort,
    ),
    Entry(
        "snapshot shared with a writer", "the prefix cache keeps a slot that its request goes on writing",
        "fla 39172ad1: whoever held an earlier state saw the new one",
        adapter=GatherScatter, plain=SharedWithWriter, ours=LeaseInCache, caches=True,
    ),
    Entry(
        "zero-draft row", "a row without drafts reads the state in column 0, whatever was accepted before",
        "vllm #39273, explained in #52942", plain=ColumnZero, ours=NoneAccepted, speculates=True,
    ),
    Entry(
        "offset in 32 bits", "slot times stride wraps",
        "flashinfer #3230, lost in #3502", adapter=NarrowOffset, spread=True,
    ),
)  # fmt: skip
