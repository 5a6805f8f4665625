"""The text behind a name that a report prints: a clause, a hazard or a probe."""

from __future__ import annotations

from difflib import get_close_matches

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import HAZARDS
from deltaproof.reports.pages import Plain, clause_body, hazard_body, probe_texts


def explain(key: str) -> str:
    """Return the Markdown text of a clause, a hazard or a probe.

    Args:
        key: a clause code (``"P1"``), a hazard's name or code (``"padding-slot-address"``, ``"HZ302"``) or a probe's
            name (``"slots"``). Case does not matter.

    Raises:
        ContractError: nothing has this name; the message names the nearest keys.
    """
    wanted = key.strip()
    clause = CLAUSES.get(wanted.upper())
    if clause is not None:
        return f"# {clause.code} {clause.name}\n\n{clause_body(clause, Plain())}\n"

    hazards = {name: entry for entry in HAZARDS.values() for name in (entry.name, entry.code.lower())}
    hazard = hazards.get(wanted.lower())
    if hazard is not None:
        return f"# {hazard.name}\n\n{hazard_body(hazard, Plain())}\n"

    probes = probe_texts()
    probe = wanted.lower().replace("-", "_")
    if probe in probes:
        title, body = probes[probe]
        return f"# {title}\n\n{body}\n"

    keys = {name.lower(): name for name in (*CLAUSES, *HAZARDS, *(entry.code for entry in HAZARDS.values()), *probes)}
    near = [keys[name] for name in get_close_matches(wanted.lower(), keys, n=3, cutoff=0.5)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    raise ContractError("key", f"a clause code, a hazard's name or code, or a probe's name{hint}", repr(key))
