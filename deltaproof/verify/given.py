"""Fields that a user sets in every case, for a backend of few sizes and dtypes: FIELD=VALUE, such as K=128."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from deltaproof.contracts.errors import ContractError

SETTABLE = (
    "T", "H", "HV", "K", "V", "C", "dtype", "gate_dtype", "state_dtype", "parameter_dtype", "layout", "chunk_size",
    "normalize", "gate_in_kernel", "beta_sigmoid", "neg_eigval", "initial_state",
)  # fmt: skip
"""Fields of a case, of one family or another, that may be set without what the case is about being another thing."""


def with_given(case: Any, words: Sequence[str]) -> Any:
    """Return the case with the fields that ``words`` set.

    Raises:
        ContractError: a word is not FIELD=VALUE, its field is not one of the case's that may be set, or its value is
            none of the field's type.
    """
    known = {item.name: item.default for item in fields(case) if item.name in SETTABLE and item.default is not MISSING}
    changes = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise ContractError("--set", f"FIELD=VALUE with a field of {', '.join(known)}", repr(word))
        changes[name] = _value(word, text, known[name])
    return replace(case, **changes)


def still_legal(case: Any) -> bool:
    """Return whether a case of which fields were set can be called: states are kept at the ends of chunks alone."""
    every = getattr(case, "checkpoint_every", None)
    return not every or every % case.chunk_size == 0


def _value(word: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ContractError("--set", "true or false", repr(word))
        return text.lower() == "true"
    if isinstance(default, int):
        if not text.isdigit():
            raise ContractError("--set", "a whole number", repr(word))
        return int(text)
    kinds = {"k_first": ("k_first", "v_first"), "channels_first": ("channels_first", "time_first")}
    choices = kinds.get(default, ("float32", "bfloat16", "float16"))
    if text not in choices:
        raise ContractError("--set", f"one of {', '.join(choices)}", repr(word))
    return text
