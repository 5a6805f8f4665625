"""Which rules there are, and which of them run."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module

from deltaproof.audit import rules as rules_folder
from deltaproof.audit.rule import Rule
from deltaproof.contracts.errors import ContractError

_PREFIX = re.compile(r"HZ\d{0,2}", re.IGNORECASE)


@lru_cache(maxsize=1)
def all_rules() -> tuple[Rule, ...]:
    """Return every rule, by code and name; each module in ``rules/`` has one as ``RULE``, helpers begin with "_"."""
    found: list[Rule] = []
    for entry in pkgutil.iter_modules(rules_folder.__path__):
        if not entry.name.startswith("_"):
            found.append(import_module(f"{rules_folder.__name__}.{entry.name}").RULE)
    return tuple(sorted(found, key=lambda rule: (rule.code, rule.name)))


def find(key: str, rules: Iterable[Rule]) -> Rule | None:
    """Return the rule with this code or name; case does not matter."""
    wanted = key.strip().lower()
    return next((rule for rule in rules if wanted in (rule.code.lower(), rule.name.lower())), None)


def _keys(keys: Sequence[str]) -> list[str]:
    return [part.strip() for key in keys for part in key.split(",") if part.strip()]


def _matching(key: str, rules: Sequence[Rule], argument: str) -> list[Rule]:
    if key.upper() == "ALL" or (_PREFIX.fullmatch(key) and find(key, rules) is None):
        found = [rule for rule in rules if key.upper() == "ALL" or rule.code.startswith(key.upper())]
        if found:
            return found
    one = find(key, rules)
    if one is None:
        names = [name for rule in rules for name in (rule.name, rule.code)]
        near = get_close_matches(key.lower(), [name for name in names if name.islower()], n=3, cutoff=0.5)
        near = near or get_close_matches(key.upper(), names, n=3, cutoff=0.6)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise ContractError(argument, f"a rule's code or name, the beginning of codes (HZ1) or ALL{hint}", repr(key))
    return [one]


def chosen(
    rules: Sequence[Rule],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    preview: bool = False,
    select_argument: str = "--select",
    ignore_argument: str = "--ignore",
) -> list[Rule]:
    """Return the rules that run.

    Args:
        rules: what to choose from.
        select: codes, names, beginnings of codes (``"HZ1"``) or ``"ALL"``, also several with commas; empty for all.
        ignore: the same, and it wins.
        preview: whether rules whose precision is not measured run too.
        select_argument, ignore_argument: where they come from, for errors.

    Raises:
        ContractError: a key is no rule's, none is given where one is asked for, or it names a preview rule alone and
            ``preview`` is off.
    """
    wanted: dict[Rule, None] = {}
    selected = _keys(select)
    if select and not selected:
        raise ContractError(select_argument, "codes or names of rules", repr(",".join(select)))
    for key in selected or ["ALL"]:
        found = _matching(key, rules, select_argument)
        ready = [rule for rule in found if preview or rule.stable]
        if selected and not ready:
            raise ContractError(select_argument, "a stable rule, or --preview with it", f"{key} (in preview)")
        wanted.update(dict.fromkeys(ready))
    for key in _keys(ignore):
        for rule in _matching(key, rules, ignore_argument):
            wanted.pop(rule, None)
    return [rule for rule in rules if rule in wanted]
