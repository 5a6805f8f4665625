"""Mutants of the pool of windows: which slot is read, which is written, at which address."""

from __future__ import annotations

from dataclasses import replace

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall
from deltaproof.verify.mutants.conv.model import ConvModel, Rows
from deltaproof.verify.mutants.indices import AnyIndex, Clamped, Unbounded, Wrapped
from deltaproof.verify.mutants.mutant import Mutant


class RawNegative(AnyIndex, ConvModel):
    """Every index is an address: -1 is the memory just before the pool."""


class ClampedToFirst(Clamped, ConvModel):
    """A negative index is moved to slot 0, whose window is then shifted and stored."""


class WrappedToLast(Wrapped, ConvModel):
    """A negative index counts from the end, as Python's does."""


class Remainder(ConvModel):
    """Every index is reduced modulo the number of slots."""

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return torch.ones_like(index, dtype=torch.bool)

    def slot_of(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return torch.remainder(index.long(), slots)


class NoUpperBound(Unbounded, ConvModel):
    """Only negative indices are padding."""


class NarrowIndex(ConvModel):
    """Indices are cut to 32 bits."""

    def read_index(self, call: ConvCall) -> torch.Tensor:
        return super().read_index(call).int()

    def write_index(self, call: ConvCall) -> torch.Tensor:
        return super().write_index(call).int()


class PaddingKept(ConvModel):
    """The store of a window asks only whether its own index names a slot."""

    def kept(self, call: ConvCall, live: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
        return self.slot_mask(writes, call.pool.shape[0])


class FreshFromSlot(ConvModel):
    """has_initial_state is dropped: a new request goes on from the window of the slot's last owner."""

    def used(self, call: ConvCall, live: torch.Tensor) -> torch.Tensor:
        return live


class FreshTimesZero(ConvModel):
    """A fresh row's window is loaded and multiplied by zero."""

    def old_window(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        return self.load_window(call, rows.read, rows.live) * rows.used[:, None, None].float()


class AnyFresh(ConvModel):
    """One fresh row makes the whole batch start from zeros."""

    def used(self, call: ConvCall, live: torch.Tensor) -> torch.Tensor:
        fresh = call.has_initial_state
        return live if fresh is None else live & fresh.all()


class ReadForWrite(ConvModel):
    """Every window goes back to the slot that it was read from."""

    def write_index(self, call: ConvCall) -> torch.Tensor:
        return call.read_index


class ShortReadForWrite(ConvModel):
    """A row of fewer than W - 1 tokens stores its window to the slot that it was read from."""

    def store_window(self, call: ConvCall, rows: Rows, window: torch.Tensor) -> None:
        short = rows.length < call.dims[3] - 1
        super().store_window(call, replace(rows, write=torch.where(short, rows.read, rows.write)), window)


class WriteForRead(ConvModel):
    """One index serves both: a row starts from the slot that it is going to write."""

    def old_window(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        return self.load_window(call, rows.write, rows.used & rows.kept)


class StoredFirst(ConvModel):
    """The new windows are stored while outputs still read the old ones."""

    def steps(self, call: ConvCall, rows: Rows, out: torch.Tensor) -> None:
        self.store_window(call, rows, self.new_window(call, rows, self.old_window(call, rows)))
        self.outputs(call, rows, self.old_window(call, rows), out)


class PoolCopied(ConvModel):
    """A pool with gaps is made contiguous, and the windows go to the copy."""

    def pool_of(self, call: ConvCall) -> torch.Tensor:
        return call.pool.contiguous()


class DenseSlots(ConvModel):
    """Slots are taken to follow each other without a gap."""

    def window_strides(self, call: ConvCall) -> tuple[int, int, int]:
        _, time, channel = super().window_strides(call)
        return call.pool[0].numel(), time, channel


class NarrowOffset(ConvModel):
    """Slot times stride is formed in 32 bits."""

    def slot_offset(self, slot: torch.Tensor, stride: int) -> torch.Tensor:
        return (slot * stride + 2**31) % 2**32 - 2**31


PADDING, ALIASED, STALE = "padding-slot-address", "aliased-slot", "appended-cache"

MUTANTS = (
    Mutant(
        "raw-negative",
        PADDING,
        "decode",
        "conv_slots",
        "flashinfer #2810: -1 used as an address overwrote the memory before the pool",
        RawNegative,
    ),
    Mutant(
        "clamp-to-slot-0",
        PADDING,
        "decode",
        "conv_slots",
        "flashinfer #2810: its fix sent negative indices to slot 0, which was still read, updated and stored",
        ClampedToFirst,
    ),
    Mutant(
        "wrap-to-last-slot",
        PADDING,
        "prefill",
        "conv_slots",
        "megatron-lm #6711: windows were gathered by Python indexing, so that -1 is the last slot",
        WrappedToLast,
    ),
    Mutant(
        "remainder-of-slots",
        PADDING,
        "decode",
        "conv_slots",
        "vllm-gaudi #1431: a padding index modulo the number of slots was a live request's, and its window was lost",
        Remainder,
    ),
    Mutant(
        "no-upper-bound",
        PADDING,
        "prefill",
        "conv_slots",
        "flashinfer #2810: an index used unguarded; its fix looked at negative ones only",
        NoUpperBound,
    ),
    Mutant(
        "narrow-index",
        "narrow-offset",
        "decode",
        "conv_slots",
        "fla #692: 64 bits came too late; here an index is cut before it is compared",
        NarrowIndex,
    ),
    Mutant(
        "padding-row-kept",
        PADDING,
        "decode",
        "conv_slots",
        "vllm-gaudi #1431: rows that only pad the batch stored their windows",
        PaddingKept,
    ),
    Mutant(
        "fresh-from-slot",
        STALE,
        "prefill",
        "conv_slots",
        "sglang #24717: has_initial_state was not passed, so a new request saw the window its slot held before",
        FreshFromSlot,
    ),
    Mutant(
        "fresh-times-zero",
        "mask-by-multiply",
        "decode",
        "conv_slots",
        "tilelang #2461: NaN left in memory nobody had written, multiplied by zero",
        FreshTimesZero,
    ),
    Mutant(
        "any-row-fresh",
        STALE,
        "prefill",
        "conv_slots",
        "none known: one flag for the batch, where each row has its own",
        AnyFresh,
    ),
    Mutant(
        "read-for-write",
        ALIASED,
        "decode",
        "conv_slots",
        "fla 39172ad1: whoever held an earlier state saw the new one",
        ReadForWrite,
    ),
    Mutant(
        "short-read-for-write",
        ALIASED,
        "prefill",
        "conv_slots",
        "vllm #56196: a chunk shorter than the window stored it to the block it was read from, a shared prefix",
        ShortReadForWrite,
    ),
    Mutant(
        "write-for-read",
        ALIASED,
        "decode",
        "conv_slots",
        "vllm #42792: one index to read and to write, so a window was read from a block nobody had written",
        WriteForRead,
    ),
    Mutant(
        "window-stored-first",
        "racing-store",
        "prefill",
        "conv_values",
        "imp #1976: one launch stored the new windows while others of its blocks still read the old ones",
        StoredFirst,
        why="the store always wins here: the values are wrong, and do not vary",
    ),
    Mutant(
        "pool-copied",
        "assumed-contiguous",
        "decode",
        "conv_slots",
        "flashinfer #3268: a strided pool was flattened by a copy, and the update went to the copy",
        PoolCopied,
    ),
    Mutant(
        "dense-slots",
        "assumed-contiguous",
        "prefill",
        "conv_slots",
        "fla #871: dense strides for a tensor that may be a view",
        DenseSlots,
    ),
    Mutant(
        "narrow-offset",
        "narrow-offset",
        "decode",
        "conv_large_offsets",
        "fla #783: the number of a sequence times the size of its window, in 32 bits",
        NarrowOffset,
    ),
)
