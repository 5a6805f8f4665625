"""The backend under test, reached the way its users reach it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltaproof.backends.conversion import converted
from deltaproof.backends.protocol import Backend
from deltaproof.backends.registry import declared, load, missing
from deltaproof.contracts.conventions import Padding
from deltaproof.contracts.operator import Operator
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.registry import operator as find_operator
from deltaproof.verify.observation import BackendFault, Unsupported

Call = SequenceCall | DecodeCall | PrefillCall


@dataclass(frozen=True)
class Outputs:
    """What a call returned, as it was returned."""

    o: torch.Tensor
    final_state: torch.Tensor | None = None


class _InOneForm:
    """A backend as one of its forms sees it: what it lacks in that form alone is among what it lacks."""

    def __init__(self, backend: Backend, form: str) -> None:
        self._backend = backend
        self.unsupported = declared(backend, form)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@dataclass
class Target:
    """A backend and how to call it.

    Attributes:
        backend: the backend.
        operator: its operator.
        source: how the user named it.
        face: whether it is one of the project's own, which are only reached through the public functions and
            their checks (clause E1). Others are called directly, as their own users do.
    """

    backend: Backend
    operator: Operator
    source: str
    face: bool

    @classmethod
    def load(cls, spec: str, operator: str) -> Target:
        """Return the target a user names: a backend's name, FILE.py:ATTR or MODULE:ATTR."""
        found = find_operator(operator)
        return cls(load(spec, operator), found, spec, spec in found.backends)

    def in_form(self, form: str) -> Target:
        """Return the target as a probe of one form sees it."""
        if not any("/" in name for name in self.backend.unsupported):
            return self
        backend: Any = _InOneForm(self.backend, form)
        return replace(self, backend=backend)

    def require(self, form: str, call: Call) -> None:
        """Raise Unsupported where the backend declares that it lacks something this call needs."""
        lacks = missing(self.backend, form, call)
        if lacks:
            raise Unsupported("; ".join(f"{name}: {reason}" for name, reason in lacks.items()))
        if not isinstance(call, SequenceCall) and self.backend.conventions.padding is not Padding.SKIP:
            self._require_padding(call)

    def _require_padding(self, call: DecodeCall | PrefillCall) -> None:
        slots = call.pool.shape[0]
        padding = self.backend.conventions.padding
        for name in ("read_index", "write_index"):
            index = getattr(call, name)
            if index is None:
                continue
            low, high = bool((index < 0).any()), bool((index >= slots).any())
            if high or (low and padding is Padding.NONE):
                raise Unsupported(f"{name} outside the pool: its padding convention is {padding.value}")

    def _check(self, call: Call) -> None:
        module, _, name = self.operator.check.partition(":")
        check = getattr(importlib.import_module(module), name)
        check(self.operator, call, call.device.type == "cpu")

    def run(self, form: str, call: Call) -> Outputs:
        """Make one call; raise Unsupported where the backend declares that it cannot."""
        self.require(form, call)
        return self.launch(form, call)

    def launch(self, form: str, call: Call) -> Outputs:
        """Make one call without asking what the backend lacks: on a GPU nothing looks at values on the device."""
        if self.face:
            self._check(call)
        result = getattr(self.backend, form)(converted(self.backend.conventions, call))
        if isinstance(call, SequenceCall):
            if not isinstance(result, tuple) or len(result) != 2:
                raise BackendFault(f"{form} returned {type(result).__name__}, expected (o, final_state)")
            return Outputs(*result)
        if not isinstance(result, torch.Tensor):
            raise BackendFault(f"{form} returned {type(result).__name__}, expected the tensor o")
        return Outputs(result)
