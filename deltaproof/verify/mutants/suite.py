"""What the kill matrix must know of an operator beside its mutants: one ``SUITE`` in ``suites/<operator>.py``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import deltaproof.verify.mutants.suites
from deltaproof.backends.protocol import Backend
from deltaproof.contracts.errors import ContractError
from deltaproof.verify.expected import Reference
from deltaproof.verify.mutants.cheats import Cheat


@dataclass(frozen=True)
class Suite:
    """How the mutants of one operator are tried.

    Attributes:
        control: returns the unbroken backend that the mutants are made from.
        survives: returns whether a backend passes the naive suite of a form, drawn from a seed.
        naive: what the naive suite is made of, in a few words.
        cheats: backends that try to fool the harness.
        reference: returns what keeps the expectations of a task between its backends; None where the operator's probes
            work out their own.
    """

    control: Callable[[], Backend]
    survives: Callable[[Backend, str, int], bool]
    naive: str
    cheats: tuple[Cheat, ...] = ()
    reference: Callable[[], Reference] | None = None


def suite(operator: str) -> Suite:
    """Return the suite of an operator; raise ContractError where it has none."""
    package = deltaproof.verify.mutants.suites
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    if operator not in names:
        raise ContractError("operator", f"one that has mutants ({', '.join(names)})", repr(operator))
    found: Suite = importlib.import_module(f"{package.__name__}.{operator}").SUITE
    return found
