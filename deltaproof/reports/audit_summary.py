"""What every format says of an audit: the verdict, what was analysed, what was not, counts by rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deltaproof.hazards import Severity
from deltaproof.reports.audit import VERDICTS, AuditReport, Evidence, Finding, NotAnalysed

_SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low")
_FAILED = re.compile(r"rule \S+ failed: ")


def reaches(finding: Finding, threshold: str | None) -> bool:
    """Return whether a finding is at least as grave or as sure as a severity or a verdict; None lets any pass."""
    if threshold is None:
        return True
    if threshold in _SEVERITIES:
        return _SEVERITIES.index(finding.severity) <= _SEVERITIES.index(threshold)
    order = list(VERDICTS)
    return order.index(finding.verdict) <= [str(name) for name in order].index(threshold)


def rule_failures(report: AuditReport) -> list[NotAnalysed]:
    """Return the files on which a rule raised."""
    return [item for item in report.not_analysed if _FAILED.match(item.reason)]


def exit_code(report: AuditReport, fail_on: str | None = None) -> int:
    """Return 1 if a new finding reaches the threshold, 2 if none does and a rule raised, else 0."""
    if any(reaches(finding, fail_on) for finding in report.findings):
        return 1
    return 2 if rule_failures(report) else 0


def plural(count: int, one: str, several: str = "") -> str:
    """Return ``"1 file"``, ``"2 files"``, ``"2 launches"``."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def advice(finding: Finding) -> str:
    """Return what is wrong and what to do, in one line of text."""
    return f"{finding.message.rstrip('.')}. Fix: {finding.fix.text}"


def analysed(report: AuditReport) -> str:
    """Return what was looked at and what was not, in one sentence."""
    seen = report.analysed
    text = (
        f"analysed {plural(seen.files, 'file')} ({plural(seen.lines, 'line')}, {plural(seen.functions, 'function')}) "
        f"with {plural(seen.kernels, 'kernel')} and " + plural(seen.launches, "launch", "launches")
    )
    return f"{text}; {left_out(report)}"


def left_out(report: AuditReport) -> str:
    """Return how many paths were not analysed, and how many rules raised."""
    failures = len(rule_failures(report))
    missing = len(report.not_analysed) - failures
    parts = [f"{plural(missing, 'path')} not analysed"] if missing else []
    if failures:
        parts.append(f"{plural(failures, 'rule run')} failed")
    return ", ".join(parts) or "nothing was left out"


def verdict(report: AuditReport) -> str:
    """Return the result in one line; "clean" never stands without what was analysed and what was not."""
    new = plural(len(report.findings), "finding")
    if report.findings:
        word = f"{new}, {len(report.known)} more in the baseline" if report.known else new
    elif not report.analysed.files:
        word = "nothing was analysed"
    elif report.known:
        word = f"nothing new, {plural(len(report.known), 'finding')} in the baseline"
    elif rule_failures(report):
        word = "no finding, but a rule failed"
    else:
        word = "clean"
    return f"{word}: {analysed(report)}"


@dataclass(frozen=True)
class Row:
    """The findings of one rule."""

    code: str
    name: str
    preview: bool
    counts: tuple[int, int, int, int]

    @property
    def total(self) -> int:
        return sum(self.counts)


def table(report: AuditReport) -> list[Row]:
    """Return the findings by rule and severity, the gravest first."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    preview: dict[tuple[str, str], bool] = {}
    for finding in report.findings:
        key = (finding.code, finding.name)
        rows.setdefault(key, Counter())[finding.severity] += 1
        preview[key] = finding.preview
    found = [
        Row(key[0], key[1], preview[key], (count["critical"], count["high"], count["medium"], count["low"]))
        for key, count in rows.items()
    ]
    return sorted(found, key=lambda row: (tuple(-count for count in row.counts), row.code))


SEVERITY_COLUMNS = _SEVERITIES


@dataclass(frozen=True)
class Quoted:
    """Neighbouring lines that are quoted for one reason."""

    path: str
    line: int
    texts: tuple[str, ...]
    why: str


def quoted(evidence: Sequence[Evidence]) -> list[Quoted]:
    """Return the evidence with the lines of one statement together."""
    found: list[Quoted] = []
    for item in evidence:
        last = found[-1] if found else None
        if item.why == "continued" and last is not None and last.path == item.path:
            found[-1] = Quoted(last.path, last.line, (*last.texts, item.text), last.why)
        else:
            found.append(Quoted(item.path, item.line, (item.text,), item.why))
    return found
