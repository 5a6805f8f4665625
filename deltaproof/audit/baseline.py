"""Findings that are known: a file of fingerprints, so that only new ones fail a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deltaproof.audit.given import read_given
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.audit import Finding

BASELINE_VERSION = 1
MOST_BYTES = 256 << 20
_EXPECTED = f"a baseline of version {BASELINE_VERSION} that --write-baseline wrote"


def render(findings: Iterable[Finding]) -> str:
    """Return the text of a baseline that holds these findings.

    Lines are left out: an entry is a fingerprint, with what it stands for and how often it occurs in which file.
    """
    entries: dict[str, dict[str, Any]] = {}
    for finding in findings:
        entry = entries.setdefault(
            finding.fingerprint,
            {"code": finding.code, "name": finding.name, "function": finding.function, "paths": Counter()},
        )
        entry["paths"][finding.path] += 1
    ordered = sorted(entries.items(), key=lambda item: (item[1]["code"], min(item[1]["paths"]), item[0]))
    found = {fingerprint: {**entry, "paths": dict(sorted(entry["paths"].items()))} for fingerprint, entry in ordered}
    return json.dumps({"deltaproof_baseline": BASELINE_VERSION, "findings": found}, indent=2) + "\n"


def load(path: Path, argument: str = "--baseline") -> dict[str, Counter[str]]:
    """Return how often each fingerprint is known, by file.

    Args:
        path: the baseline.
        argument: where the path comes from, for errors.

    Raises:
        ContractError: there is no such file, or it is no baseline.
    """
    content = read_given(argument, "a file that can be read", path, MOST_BYTES)
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise ContractError(argument, _EXPECTED, f"{path} (not JSON)") from None
    version = data.get("deltaproof_baseline") if isinstance(data, dict) else None
    if type(version) is not int or version != BASELINE_VERSION:
        raise ContractError(argument, _EXPECTED, str(path))
    known: dict[str, Counter[str]] = {}
    entries = data.get("findings")
    for fingerprint, entry in entries.items() if isinstance(entries, dict) else ():
        paths = entry.get("paths") if isinstance(entry, dict) else None
        if not isinstance(paths, dict) or not all(type(count) is int and count > 0 for count in paths.values()):
            raise ContractError(argument, _EXPECTED, f"{path} (entry {fingerprint})")
        known[fingerprint] = Counter(paths)
    if not isinstance(entries, dict):
        raise ContractError(argument, _EXPECTED, f"{path} (no findings)")
    return known


def split(
    findings: Iterable[Finding],
    known: Mapping[str, Mapping[str, int]],
    stands: Callable[[str], bool] = lambda path: False,
) -> tuple[list[Finding], list[Finding]]:
    """Return the new findings and the known ones.

    A known fingerprint may have moved to another file; a further occurrence of it is new.

    Args:
        findings: what a run found.
        known: the baseline.
        stands: whether a file is there that the run did not look at: what is known of it is still there, not moved.
    """
    left = {fingerprint: Counter(paths) for fingerprint, paths in known.items()}
    waiting, old = [], []
    for finding in findings:
        paths = left.get(finding.fingerprint, Counter())
        if paths[finding.path] > 0:
            paths[finding.path] -= 1
            old.append(finding)
        else:
            waiting.append(finding)
    new = []
    for finding in waiting:
        paths = left.get(finding.fingerprint, Counter())
        elsewhere = next((path for path, count in sorted(paths.items()) if count > 0 and not stands(path)), None)
        if elsewhere is None:
            new.append(finding)
        else:
            paths[elsewhere] -= 1
            old.append(finding)
    return new, old
