"""Mutants of the pool forms: which slot is read, which is written, and what a row starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall
from deltaproof.verify.mutants.indices import AnyIndex, Clamped, Unbounded, Wrapped
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call
from deltaproof.verify.mutants.mutant import Mutant


class RawNegative(AnyIndex, ModelBackend):
    """Every index is an address: -1 is the memory just before the pool."""


class ClampedToFirst(Clamped, ModelBackend):
    """A negative index is moved to slot 0, which is then read, advanced and stored."""


class WrappedToLast(Wrapped, ModelBackend):
    """A negative index counts from the end, as Python's does."""


class NoUpperBound(Unbounded, ModelBackend):
    """Only negative indices are padding."""


class ReadSlotOverwritten(ModelBackend):
    """The new state goes to the write slot, and to the slot it was read from."""

    def keep_states(
        self, call: DecodeCall, state: torch.Tensor, after: list[torch.Tensor], live: torch.Tensor, grid: Grid
    ) -> None:
        self.keep(call, call.read_index, after[-1] if after else state, live, grid)
        super().keep_states(call, state, after, live, grid)


class LastTokenEverywhere(ModelBackend):
    """All stores of a row's tokens take the state after the last one."""

    def keep_states(
        self, call: DecodeCall, state: torch.Tensor, after: list[torch.Tensor], live: torch.Tensor, grid: Grid
    ) -> None:
        super().keep_states(call, state, after[-1:] * len(after), live, grid)


class FreshFromSlot(ModelBackend):
    """has_initial_state is dropped: a new request goes on from what the slot's last owner left."""

    def pool_state(
        self, call: DecodeCall | PrefillCall, slot: torch.Tensor, live: torch.Tensor, used: torch.Tensor, grid: Grid
    ) -> torch.Tensor:
        return super().pool_state(call, slot, live, live, grid)


class FreshTimesZero(ModelBackend):
    """A fresh row's slot is loaded and multiplied by zero."""

    def pool_state(
        self, call: DecodeCall | PrefillCall, slot: torch.Tensor, live: torch.Tensor, used: torch.Tensor, grid: Grid
    ) -> torch.Tensor:
        return super().pool_state(call, slot, live, live, grid) * used[:, None, None].float()


class TokenCountIgnored(ModelBackend):
    """num_tokens is dropped: every row runs all T tokens."""

    def grid(self, form: str, call: Call) -> Grid:
        if isinstance(call, DecodeCall):
            call = replace(call, num_tokens=None)
        return super().grid(form, call)


class PoolCopied(ModelBackend):
    """A strided pool is made contiguous, and the update goes to the copy."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(replace(call, pool=call.pool.contiguous()))


class DenseSlots(ModelBackend):
    """Slots are taken to follow each other without a gap."""

    def strides(self, name: str, x: torch.Tensor) -> tuple[int, ...]:
        slot, *inner = x.stride()
        return (x.shape[1] * x.stride(1), *inner) if name == "pool" else (slot, *inner)


class NarrowOffset(ModelBackend):
    """Slot times stride is formed in 32 bits."""

    def slot_offset(self, slot: torch.Tensor, slots: int, stride: int) -> torch.Tensor:
        return (slot.long() * stride + 2**31) % 2**32 - 2**31


class LiteralCheckpoint(ModelBackend):
    """Checkpoints are found by chunks of 64, whatever the chunk size."""

    def checkpoint_chunk(self, call: PrefillCall, j: int) -> int:
        assert call.checkpoint_every is not None
        return max((j + 1) * call.checkpoint_every // 64 - 1, 0)


MUTANTS = (
    Mutant(
        "raw-negative",
        "padding-slot-address",
        "decode",
        "slots",
        "flashinfer #2810: bf16 decode used -1 as an address and overwrote the memory before the pool",
        RawNegative,
    ),
    Mutant(
        "clamp-to-slot-0",
        "padding-slot-address",
        "decode",
        "slots",
        "flashinfer #2810: its fix sent negative indices to slot 0, which was still read, updated and stored",
        ClampedToFirst,
    ),
    Mutant(
        "wrap-to-last-slot",
        "padding-slot-address",
        "decode",
        "slots",
        "flashinfer #5042: Python indexing took the padding value -1 for the last slot",
        WrappedToLast,
    ),
    Mutant(
        "no-upper-bound",
        "padding-slot-address",
        "prefill",
        "slots",
        "flashinfer #2810: an index used unguarded; its fix looked at negative ones only",
        NoUpperBound,
    ),
    Mutant(
        "read-slot-overwritten",
        "aliased-slot",
        "decode",
        "slots",
        "fla 39172ad1: whoever held an earlier state saw the new one",
        ReadSlotOverwritten,
    ),
    Mutant(
        "last-token-everywhere",
        "aliased-slot",
        "decode",
        "slots",
        "fla HEAD: the store of a state after each token of a recurrent kernel",
        LastTokenEverywhere,
    ),
    Mutant(
        "fresh-from-slot",
        "appended-cache",
        "decode",
        "slots",
        "fla #910: a reset that did nothing, so a reused cache kept the state of the former prompt",
        FreshFromSlot,
    ),
    Mutant(
        "fresh-times-zero",
        "mask-by-multiply",
        "decode",
        "slots",
        "tilelang #2461: NaN left in memory nobody had written, multiplied by zero",
        FreshTimesZero,
        why="the memory that nobody has written here is a slot of the pool",
    ),
    Mutant(
        "token-count-ignored",
        "unthreaded-option",
        "decode",
        "slots",
        "fla #1088: lengths dropped in one branch, so packed input ran as one long sequence",
        TokenCountIgnored,
        why="num_tokens is part of clause P1",
    ),
    Mutant(
        "pool-copied",
        "assumed-contiguous",
        "decode",
        "slots",
        "flashinfer #3268: a strided pool was flattened by a copy, and the update went to the copy",
        PoolCopied,
    ),
    Mutant(
        "dense-slots",
        "assumed-contiguous",
        "prefill",
        "slots",
        "fla #871: dense strides for a tensor that may be a view",
        DenseSlots,
    ),
    Mutant(
        "narrow-offset",
        "narrow-offset",
        "decode",
        "large_offsets",
        "fla #692: the offset was formed in 32 bits and widened when it had wrapped",
        NarrowOffset,
    ),
    Mutant(
        "literal-checkpoint",
        "ignored-tile-parameter",
        "prefill",
        "ragged",
        "fla #935: a literal 64 where the caller's chunk size is meant",
        LiteralCheckpoint,
    ),
)
