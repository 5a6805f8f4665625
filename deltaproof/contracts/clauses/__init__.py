"""The contract of the delta-rule operators, as data.

Pages, reports, probes and errors all name clauses from here, so what is documented is what is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from deltaproof.contracts.clauses.behaviour import (
    ERROR_CLAUSES,
    GRADIENT_CLAUSES,
    INVARIANCE_CLAUSES,
    MEMORY_CLAUSES,
    NUMBER_CLAUSES,
    RANK_CLAUSES,
)
from deltaproof.contracts.clauses.function import FUNCTION_CLAUSES, STATE_CLAUSES
from deltaproof.contracts.clauses.model import FORMS, POOL_FORMS, SEQUENCE_FORMS, Clause
from deltaproof.contracts.clauses.pool import POOL_CLAUSES
from deltaproof.contracts.errors import ContractError

__all__ = ["CHAPTERS", "CLAUSES", "CONTRACT_VERSION", "FORMS", "POOL_FORMS", "SEQUENCE_FORMS", "Clause", "clause"]

CONTRACT_VERSION = 1

CHAPTERS: Mapping[str, tuple[Clause, ...]] = MappingProxyType(
    {
        "Function": FUNCTION_CLAUSES,
        "State": STATE_CLAUSES,
        "Slots": POOL_CLAUSES,
        "Memory": MEMORY_CLAUSES,
        "Gradients": GRADIENT_CLAUSES,
        "Invariance": INVARIANCE_CLAUSES,
        "Numbers": NUMBER_CLAUSES,
        "Ranks": RANK_CLAUSES,
        "Errors": ERROR_CLAUSES,
    }
)
"""The clauses by subject, in the order of the page."""

CLAUSES: Mapping[str, Clause] = MappingProxyType(
    {entry.code: entry for chapter in CHAPTERS.values() for entry in chapter}
)
"""Every clause of contract version 1 by its code."""


def clause(code: str) -> Clause:
    """Return the clause with this code; case does not matter.

    Raises:
        ContractError: no clause has this code; the message names the nearest ones.
    """
    found = CLAUSES.get(code.strip().upper())
    if found is None:
        near = get_close_matches(code.strip().upper(), CLAUSES, n=3, cutoff=0.4)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise ContractError("clause", f"a clause code of contract version {CONTRACT_VERSION}{hint}", repr(code))
    return found
