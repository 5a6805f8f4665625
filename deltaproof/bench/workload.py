"""What is timed, as data: heads, lengths or rows, head sizes and the state's dtype and layout. Imports no torch."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError

Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=0)]
HeadSize = Annotated[int, Field(ge=1, le=256)]
StateDtype = Literal["float32", "bfloat16", "float16"]
FORBID = ConfigDict(extra="forbid")
MOST_RUNS = 4
"""Runs of equal lengths that a name spells out."""


def _check_heads(heads: tuple[int, int]) -> None:
    if heads[1] % heads[0]:
        raise ValueError(f"heads: expected value heads that are a multiple of q,k heads, got {heads[0]}/{heads[1]}")


def _label(heads: tuple[int, int], size: str, K: int, V: int, state: str, layout: str) -> str:
    parts = [f"{heads[0]}/{heads[1]}", size, "" if K == V == 128 else f"K={K} V={V}", state, layout]
    return " ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True, config=FORBID)
class SequenceWorkload:
    """Whole sequences, for prefill and backward; several lengths are one pack.

    Attributes:
        heads: q,k heads and value heads.
        lengths: tokens of each sequence.
        K, V: sizes of a key and of a value.
        state_dtype: dtype of the initial and the final state.
        layout: layout of both.
    """

    heads: tuple[Count, Count]
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)]
    K: HeadSize = 128
    V: HeadSize = 128
    state_dtype: StateDtype = "float32"
    layout: StateLayout = StateLayout.K_FIRST

    @model_validator(mode="after")
    def _whole_groups(self) -> SequenceWorkload:
        _check_heads(self.heads)
        return self

    @property
    def tokens(self) -> int:
        """Return the number of tokens over all sequences."""
        return sum(self.lengths)

    @property
    def name(self) -> str:
        """Return "heads lengths", such as "16/32 1024x8": eight sequences of 1024 tokens.

        More than four different lengths one after another are "8 of 64 to 4096 (8192)": how many, from the shortest to
        the longest, and their sum.
        """
        runs = [(length, len(list(group))) for length, group in groupby(self.lengths)]
        size = "+".join(str(length) if count == 1 else f"{length}x{count}" for length, count in runs)
        if len(runs) > MOST_RUNS:
            size = f"{len(self.lengths)} of {min(self.lengths)} to {max(self.lengths)} ({self.tokens})"
        state = "" if self.state_dtype == "float32" else f"{self.state_dtype} state"
        layout = "" if self.layout is StateLayout.K_FIRST else self.layout.value
        return _label(self.heads, size, self.K, self.V, state, layout)


@dataclass(frozen=True, kw_only=True, config=FORBID)
class DecodeWorkload:
    """One token a row against a pool whose slots lie apart, or a speculative step.

    Attributes:
        heads: q,k heads and value heads.
        rows: rows of the call, each with a slot of its own.
        K, V: sizes of a key and of a value.
        state_dtype: dtype of the pool.
        layout: layout of the pool.
        slot_padding: elements between two slots, which belong to no state.
        drafts: tokens of a speculative step, which takes in as many of the step before it; 0 for one token.
    """

    heads: tuple[Count, Count]
    rows: Count
    K: HeadSize = 128
    V: HeadSize = 128
    state_dtype: StateDtype = "float32"
    layout: StateLayout = StateLayout.V_FIRST
    slot_padding: Annotated[int, Field(ge=0, multiple_of=8)] = 1024
    drafts: Annotated[int, Field(ge=0, le=16)] = 0

    @model_validator(mode="after")
    def _whole_groups(self) -> DecodeWorkload:
        _check_heads(self.heads)
        return self

    @property
    def name(self) -> str:
        """Return "heads rows", such as "16/32 128 rows"."""
        state = "" if self.state_dtype == "float32" else f"{self.state_dtype} state"
        layout = "" if self.layout is StateLayout.V_FIRST else self.layout.value
        size = "1 row" if self.rows == 1 else f"{self.rows} rows"
        size += f" {self.drafts} drafted" if self.drafts else ""
        return _label(self.heads, size, self.K, self.V, state, layout)


Workload = SequenceWorkload | DecodeWorkload


def read(path: Path, verb: str) -> tuple[Workload, ...]:
    """Return the workloads of a verb in a JSON file ``{"workloads": [{...}, ...]}``.

    Raises:
        ContractError: the file holds something else.
    """
    kind: Any = DecodeWorkload if verb == "decode" else SequenceWorkload
    try:
        found = TypeAdapter(dict[Literal["workloads"], list[kind]]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ContractError("--shapes", f"workloads of {verb} in {path}", "; ".join(_problems(error))) from None
    workloads: tuple[Workload, ...] = tuple(found.get("workloads", ()))
    names = [workload.name for workload in workloads]
    if not names:
        raise ContractError("--shapes", f'{{"workloads": [...]}} with at least one workload in {path}', "none")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ContractError("--shapes", f"workloads of different names in {path}", f"{', '.join(twice)} again")
    return workloads


def _problems(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in error.errors()]
