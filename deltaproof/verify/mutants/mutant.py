"""What a mutant is: a backend with one planted fault, and the hazard it is the twin of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deltaproof.backends.protocol import Backend


@dataclass(frozen=True)
class Mutant:
    """One deliberately broken backend.

    Attributes:
        name: what was broken, in words joined by hyphens.
        hazard: name of the hazard it is an instance of.
        form: the form that is broken, and with which it is tried.
        probe: name of the probe that must catch it.
        story: the public bug it is the twin of, "REPO REFERENCE: what went wrong", out of the hazard's entry; or "none
            known: what is wrong".
        make: returns a new broken backend.
        why: why this probe, where the hazard's entry names others.
    """

    name: str
    hazard: str
    form: str
    probe: str
    story: str
    make: Callable[[], Backend]
    why: str = ""

    @property
    def operator(self) -> str:
        """Return the operator that the backend implements."""
        return self.make().operator
