"""The operators there are: every package of ``deltaproof.ops`` with a ``contract`` module. Imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

import deltaproof.ops
from deltaproof.contracts.errors import ContractError
from deltaproof.contracts.operator import Operator

_found: dict[str, Operator] = {}


def operators() -> dict[str, Operator]:
    """Return every registered operator by name."""
    # a plain dict: torch.compile looks through functools.cache and would trace the search
    if not _found:
        _found.update(_search())
    return _found


def _search() -> dict[str, Operator]:
    found = {}
    for module in pkgutil.iter_modules(deltaproof.ops.__path__, "deltaproof.ops."):
        if module.ispkg and importlib.util.find_spec(f"{module.name}.contract"):
            operator: Operator = importlib.import_module(f"{module.name}.contract").OPERATOR
            found[operator.name] = operator
    return found


def operator(name: str) -> Operator:
    """Return one operator; raise ContractError if there is none of that name."""
    try:
        return operators()[name]
    except KeyError:
        raise ContractError("operator", f"one of {', '.join(sorted(operators()))}", repr(name)) from None
