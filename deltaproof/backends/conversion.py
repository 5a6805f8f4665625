"""A call in the conventions that a backend declares: what a caller computes before the backend is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from deltaproof.contracts.conventions import Conventions, GateSpace

AnyCall = TypeVar("AnyCall")


def converted(conventions: Conventions, call: AnyCall) -> AnyCall:
    """Return the call with gates and strengths as a backend takes them; what its kernel computes is left to it."""
    changes, _ = _changes(conventions, call)
    return replace(call, **changes) if changes else call  # type: ignore[type-var]


def beforehand(conventions: Conventions, call: Any) -> tuple[str, ...]:
    """Return in words what ``converted`` computes for a call."""
    return _changes(conventions, call)[1]


def _changes(conventions: Conventions, call: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    changes: dict[str, Any] = {}
    words: list[str] = []
    if conventions.gate is GateSpace.LOG and not conventions.float32_gates:
        # operators without a gate come here too
        return changes, ()
    for name, in_kernel in (("g", call.options.gate_in_kernel), ("beta", call.options.beta_sigmoid)):
        before = getattr(call, name)
        after = before.float() if conventions.float32_gates and not in_kernel else before
        if after is not before:
            words.append(f"{name} in float32")
        if name == "g" and conventions.gate is GateSpace.LINEAR and not in_kernel:
            after = after.exp()
            words.append("exp(g)")
        if after is not before:
            changes[name] = after
    return changes, tuple(words)
