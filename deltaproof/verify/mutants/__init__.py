"""Deliberately broken backends, each of which a probe has to catch.

A module of this package that defines ``MUTANTS`` adds to the catalogue; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from deltaproof.contracts.errors import ContractError
from deltaproof.verify.mutants.mutant import Mutant

__all__ = ["Mutant", "mutant", "mutants"]


@cache
def mutants() -> dict[str, Mutant]:
    """Return every mutant by name."""
    found: dict[str, Mutant] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for entry in getattr(loaded, "MUTANTS", ()):
            assert entry.name not in found, f"two mutants are named {entry.name}"
            found[entry.name] = entry
    return found


def mutant(name: str) -> Mutant:
    """Return one mutant; raise ContractError where there is none of that name."""
    found = mutants().get(name)
    if found is None:
        raise ContractError("mutant", f"one of {', '.join(mutants())}", repr(name))
    return found
