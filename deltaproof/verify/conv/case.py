"""A case of the causal convolution: one call of one form, as data small enough to name."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

from deltaproof.verify.case import case_id


@dataclass(frozen=True)
class ConvCase:
    """What to draw and which form to call with it.

    Attributes:
        form: decode or prefill.
        label: what the case is about, where its fields do not say it; part of its name.
        B, T: rows and tokens of each; with ``seqlens`` neither is used.
        C, W: channels and width.
        dtype, state_dtype, parameter_dtype: torch dtype names of x, of the pool, and of weight and bias.
        layout: channels_first or time_first.
        seqlens: lengths of packed sequences, or None for a dense batch; prefill only.
        tail: rows after the last packed sequence.
        bias, silu: options.
        slots: slots of the pool.
        read, write, num_tokens, fresh: pool indices; None where not passed. read None means distinct slots 1, 2, ...;
            ``fresh`` holds the negation of has_initial_state.
        slot_padding: gap between slots, in elements.
        index_dtype: dtype of the indices.
        nan_slots: slots that hold NaN.
        stray_tokens: tokens of nobody hold what any token may, and not what the red zones hold.
        drafts: room for drafts in a slot; decode is then a speculative step.
        halves, accepted: of each row, which half of its slot's drafts is replayed and how many tokens of it.
    """

    form: str
    label: str = ""
    B: int = 3
    T: int = 3
    C: int = 24
    W: int = 4
    dtype: str = "float32"
    state_dtype: str = "float32"
    parameter_dtype: str = "float32"
    layout: str = "channels_first"
    seqlens: tuple[int, ...] | None = None
    tail: int = 0
    bias: bool = True
    silu: bool = True
    slots: int = 7
    read: tuple[int, ...] | None = None
    write: tuple[int, ...] | None = None
    num_tokens: tuple[int, ...] | None = None
    fresh: tuple[bool, ...] | None = None
    slot_padding: int = 0
    index_dtype: str = "int32"
    nan_slots: tuple[int, ...] = ()
    stray_tokens: bool = False
    drafts: int = 0
    halves: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Return N."""
        return self.B if self.seqlens is None else len(self.seqlens)

    @property
    def id(self) -> str:
        """Return the case's name."""
        return case_id(self, [f"C{self.C}.W{self.W}"], {"C", "W"})

    def seed(self, seed: int) -> int:
        """Return the seed of this case's generator, different for every case."""
        return zlib.crc32(f"{seed}/{self.id}".encode())

    def but(self, **changes: Any) -> ConvCase:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)
