"""``[tool.deltaproof.audit]`` of a pyproject.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import SEVERITIES
from deltaproof.reports.audit import VERDICTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = "tool.deltaproof.audit"
THRESHOLDS = (*SEVERITIES, *VERDICTS)
"""What --fail-on may name."""


@dataclass(frozen=True)
class Settings:
    """What a project asks of its audits; the command line adds to it or wins.

    Attributes:
        select: codes or names of the rules that run; empty for all.
        ignore: codes or names of rules that do not run.
        preview: whether rules whose precision is not measured run too.
        exclude: patterns of paths that are not audited.
        fail_on: the least severity or verdict that fails a run; None for any finding.
        baseline: file of known findings, absolute.
        source: the file that these come from.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    preview: bool = False
    exclude: tuple[str, ...] = ()
    fail_on: str | None = None
    baseline: Path | None = None
    source: Path | None = None


KEYS: dict[str, type] = {
    "select": list,
    "ignore": list,
    "preview": bool,
    "exclude": list,
    "fail-on": str,
    "baseline": str,
}
_WORDS: dict[type, str] = {list: "a list of strings", bool: "true or false", str: "a string"}


def nearest(root: Path) -> Path | None:
    """Return the pyproject.toml in ``root`` or the nearest folder around it."""
    return next((place for folder in (root, *root.parents) if (place := folder / "pyproject.toml").is_file()), None)


def load(root: Path) -> Settings:
    """Return the settings of the nearest pyproject.toml; the defaults where it has none.

    Raises:
        ContractError: the file is no TOML, or a key of the table is unknown or has the wrong type or value.
    """
    place = nearest(root)
    if place is None:
        return Settings()
    try:
        table: Any = tomllib.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ContractError(str(place), "a readable TOML file", str(error)) from None
    for part in TABLE.split("."):
        table = table.get(part, {})
        if not isinstance(table, dict):
            raise ContractError(f"{place}: [{TABLE}]", "a table", type(table).__name__)
    return _settings(table, place)


def _settings(table: dict[str, Any], place: Path) -> Settings:
    where = f"{place}: [{TABLE}]"
    for key, value in table.items():
        kind = KEYS.get(key)
        if kind is None:
            near = get_close_matches(key.replace("_", "-"), KEYS, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ContractError(where, f"keys out of {', '.join(KEYS)}{hint}", repr(key))
        if type(value) is not kind or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            raise ContractError(f"{where} {key}", _WORDS[kind], repr(value))
    fail_on = table.get("fail-on")
    if fail_on is not None and fail_on not in THRESHOLDS:
        raise ContractError(f"{where} fail-on", f"one of {', '.join(THRESHOLDS)}", repr(fail_on))
    baseline = table.get("baseline")
    return Settings(
        select=tuple(table.get("select", ())),
        ignore=tuple(table.get("ignore", ())),
        preview=table.get("preview", False),
        exclude=tuple(table.get("exclude", ())),
        fail_on=fail_on,
        baseline=None if baseline is None else place.parent / baseline,
        source=place,
    )
