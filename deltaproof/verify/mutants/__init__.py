"""Deliberately broken backends, each of which a probe has to catch.

A module of this package, or of one in it, that defines ``MUTANTS`` adds to the catalogue; nothing else names it. What
the kill matrix must know of an operator besides is its suite: see ``deltaproof.verify.mutants.suite``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from deltaproof.contracts.errors import ContractError
from deltaproof.verify.mutants.mutant import Mutant

__all__ = ["Mutant", "mutant", "mutants"]


@cache
def mutants(operator: str = "gated_delta_rule") -> dict[str, Mutant]:
    """Return every mutant of an operator by name."""
    found: dict[str, Mutant] = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        for entry in getattr(importlib.import_module(module.name), "MUTANTS", ()):
            if entry.operator == operator:
                assert entry.name not in found, f"two mutants are named {entry.name}"
                found[entry.name] = entry
    return found


def mutant(name: str, operator: str = "gated_delta_rule") -> Mutant:
    """Return one mutant of an operator; raise ContractError where there is none of that name."""
    found = mutants(operator).get(name)
    if found is None:
        raise ContractError("mutant", f"one of {', '.join(mutants(operator))}", repr(name))
    return found
