"""What a backend is: one small class. Users write theirs against this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from deltaproof.contracts.conventions import Conventions


@runtime_checkable
class Backend(Protocol):
    """One implementation of some forms of one operator; a form it lacks is a method it lacks.

    A sequence form is ``form(call: SequenceCall) -> (o, final_state | None)``, a pool form
    ``form(call: DecodeCall | PrefillCall) -> o``.
    """

    name: str
    version: str
    operator: str
    conventions: Conventions
    unsupported: Mapping[str, str]  # capability or clause, or FORM/ and one -> the reason
