"""The text behind a name that a report prints: a clause, a hazard, a rule or a probe."""

from __future__ import annotations

from difflib import get_close_matches

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import HAZARDS
from deltaproof.reports.pages import Plain, clause_body, hazard_body, probe_texts
from deltaproof.reports.rule_text import RuleText, rule_texts


def explain(key: str) -> str:
    """Return the Markdown text of a clause, a hazard with the rule that looks for it, a rule or a probe.

    Args:
        key: a clause code (``"P1"``), a hazard's or rule's name or code (``"padding-slot-address"``, ``"HZ302"``) or a
            probe's name (``"slots"``). Case does not matter.

    Raises:
        ContractError: nothing has this name; the message names the nearest keys.
    """
    wanted = key.strip()
    clause = CLAUSES.get(wanted.upper())
    if clause is not None:
        return f"# {clause.code} {clause.name}\n\n{clause_body(clause, Plain())}\n"

    hazards = {name: entry for entry in HAZARDS.values() for name in (entry.name, entry.code.lower())}
    hazard = hazards.get(wanted.lower())
    rules = {name: text for text in rule_texts().values() for name in (text.name, text.code.lower())}
    rule = rules.get(wanted.lower())
    if hazard is not None:
        seen = "" if rule is None else f"\n# What the audit sees of it\n\n{_rule_body(rule)}\n"
        return f"# {hazard.name}\n\n{hazard_body(hazard, Plain())}\n{seen}"
    if rule is not None:
        return f"# {rule.name}\n\n**{rule.title}**\n\n{_rule_body(rule)}\n"

    probes = probe_texts()
    probe = wanted.lower().replace("-", "_")
    if probe in probes:
        title, body = probes[probe]
        return f"# {title}\n\n{body}\n"

    codes = [entry.code for entry in HAZARDS.values()]
    own = [name for text in rules.values() for name in (text.name, text.code)]
    keys = {name.lower(): name for name in (*CLAUSES, *HAZARDS, *codes, *own, *probes)}
    near = [keys[name] for name in get_close_matches(wanted.lower(), keys, n=3, cutoff=0.5)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    raise ContractError("key", f"a clause code, a hazard's or rule's name or code, or a probe's name{hint}", repr(key))


def _rule_body(rule: RuleText) -> str:
    state = "stable" if rule.stable else "in preview: it runs with --preview"
    return f"Rule {rule.code}, {state}.\n\n{rule.body}"
