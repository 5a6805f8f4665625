"""A case: one call of one form, as data small enough to name. Inputs are drawn from it and a seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Gates = Literal[
    "ordinary", "zero", "slow", "steady", "extreme", "mixed", "all_extreme", "forties", "alternating", "overflow"
]  # fmt: skip
Keys = Literal["random", "identical", "correlated", "zero_rows"]
Betas = Literal["ordinary", "one", "zero", "two", "early"]


def case_id(case: Any, sizes: list[str], shown: set[str]) -> str:
    """Return the form, the label, the sizes, and every field that is not the default.

    ``shown`` names the fields that ``sizes`` tells.
    """
    if case.seqlens is None:
        size = f"B{case.B}.T{case.T}"
    else:
        size = "S" + "-".join(map(str, case.seqlens)) + (f"+{case.tail}" if case.tail else "")
    parts = [case.form, *([case.label] if case.label else []), size, *sizes]
    named = {"form", "label", "B", "T", "seqlens", "tail", *shown}
    for item in fields(case):
        value = getattr(case, item.name)
        if item.name not in named and value != item.default:
            parts.append(item.name + "=" + str(value).replace(" ", ""))
    return "/".join(parts)


@dataclass(frozen=True)
class Case:
    """What to draw and which form to call with it.

    Attributes:
        form: chunk, recurrent, decode or prefill.
        label: what the case is about, where its fields do not say it; part of its name.
        B, T, H, HV, K, V: sizes; for decode B is the number of rows.
        dtype, v_dtype, gate_dtype, state_dtype: torch dtype names; v_dtype None means ``dtype``.
        parameter_dtype: that of A_log and dt_bias.
        layout: k_first or v_first.
        seqlens: lengths of packed sequences (then B = 1 and T = their sum + tail), or None for a dense batch.
        tail: rows after the last packed sequence.
        initial_state, final_state: sequence forms only.
        normalize, gate_in_kernel, beta_sigmoid, neg_eigval, chunk_size, batch_invariant, scale: options.
        gates, keys, betas: regimes of the drawn values.
        slots: slots of the pool; pool forms only.
        read, write, num_tokens, fresh, checkpoint_every, checkpoints: pool indices; None where not passed.
        read None means distinct slots 1, 2, ...; ``fresh`` holds the negation of has_initial_state.
        slot_padding, head_padding: gap between slots and heads, in elements.
        heads_outermost: the pool lies in memory as [HV, slots, ...], a permuted view.
        index_dtype: dtype of read and write indices and checkpoints; None means int32 reads and int64 writes.
        nan_slots: slots that hold NaN.
        A_log, dt_bias: with gate_in_kernel, whether they are passed; A_log always is where the gate is one a head.
        lower_bound, safe_gate: options of operators with a gate a channel; log gates are drawn to keep the promise.
        dead_tokens: tokens of padding rows, and of a row past its num_tokens, hold what the red zones hold.
        drafts: room for drafts in a slot; decode is then a speculative step.
        halves, accepted: of each row, which half of its slot's drafts is replayed and how many tokens of it.
    """

    form: str
    label: str = ""
    B: int = 2
    T: int = 40
    H: int = 2
    HV: int = 4
    K: int = 24
    V: int = 40
    dtype: str = "float32"
    v_dtype: str | None = None
    gate_dtype: str = "float32"
    state_dtype: str = "float32"
    parameter_dtype: str = "float32"
    layout: str = "k_first"
    seqlens: tuple[int, ...] | None = None
    tail: int = 0
    initial_state: bool = True
    final_state: bool = True
    normalize: bool = True
    gate_in_kernel: bool = False
    beta_sigmoid: bool = False
    neg_eigval: bool = False
    chunk_size: int = 64
    batch_invariant: bool = False
    scale: float | None = None
    gates: Gates = "ordinary"
    keys: Keys = "random"
    betas: Betas = "ordinary"
    slots: int = 7
    read: tuple[int, ...] | None = None
    write: tuple[Any, ...] | None = None
    num_tokens: tuple[int, ...] | None = None
    fresh: tuple[bool, ...] | None = None
    checkpoint_every: int | None = None
    checkpoints: tuple[tuple[int, ...], ...] | None = None
    slot_padding: int = 0
    head_padding: int = 0
    heads_outermost: bool = False
    index_dtype: str | None = None
    nan_slots: tuple[int, ...] = ()
    dt_bias: bool = True
    A_log: bool = True
    lower_bound: float | None = None
    safe_gate: bool = False
    dead_tokens: bool = False
    drafts: int = 0
    halves: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Return T as the tensors have it."""
        return self.T if self.seqlens is None else sum(self.seqlens) + self.tail

    @property
    def batch(self) -> int:
        """Return B as the tensors have it."""
        return self.B if self.seqlens is None else 1

    @property
    def sequences(self) -> int:
        """Return N."""
        return self.B if self.seqlens is None else len(self.seqlens)

    @property
    def is_pool(self) -> bool:
        """Return whether the form works on a pool."""
        return self.form in ("decode", "prefill")

    @property
    def id(self) -> str:
        """Return the case's name: the form, the label, the sizes, and every field that is not the default."""
        sizes = [f"H{self.H}-{self.HV}", f"K{self.K}.V{self.V}"]
        return case_id(self, sizes, {"H", "HV", "K", "V"})

    def seed(self, seed: int) -> int:
        """Return the seed of this case's generator, different for every case."""
        return zlib.crc32(f"{seed}/{self.id}".encode())

    def but(self, **changes: Any) -> Case:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)
