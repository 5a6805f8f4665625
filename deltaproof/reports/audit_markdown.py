"""The audit as a GitHub-flavoured Markdown report, file by file."""

from __future__ import annotations

import html
import re
from itertools import groupby

from deltaproof.reports.audit import AuditReport, Finding
from deltaproof.reports.audit_summary import SEVERITY_COLUMNS, quoted, rule_failures, table, verdict
from deltaproof.reports.visible import visible

_SPAN = re.compile(r"((?<!`)`[^`]+`(?!`))")
_MARKS = re.compile(r"([\\`*_\[\]|~#@!])")


def _prose(text: str) -> str:
    """Return text in one line in which nothing is a tag, a link, a mention, a cell border or emphasis."""
    parts = _SPAN.split(visible(" ".join(text.split())))
    # Code between backticks stays code: nothing in it is read as anything else.
    parts[::2] = [_MARKS.sub(r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "".join(part.replace("|", "\\|") if number % 2 else part for number, part in enumerate(parts))


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _code(text: str) -> str:
    shown = visible(text)
    fence = _fence(shown, 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}" if shown else ""


def _cell(text: str) -> str:
    # A border ends a cell inside code too.
    return _code(text).replace("|", "\\|")


def _block(text: str) -> list[str]:
    fence = _fence(text, 3)
    return [f"{fence}python", text, fence, ""]


def _evidence(finding: Finding) -> list[str]:
    lines: list[str] = []
    for item in quoted(finding.evidence):
        why = "" if item.why == finding.message else f": {_prose(item.why)}"
        lines += [f"{_code(f'{item.path}:{item.line}')}{why}", ""]
        lines += _block("\n".join(map(visible, item.texts)))
    return lines


def _finding(finding: Finding) -> list[str]:
    preview = ", preview" if finding.preview else ""
    lines = [
        f"### Line {finding.line}: {_prose(finding.name)} ({_prose(finding.code)})",
        "",
        f"**{finding.severity}, {finding.verdict}{preview}**: {_prose(finding.message)}",
        "",
        *_evidence(finding),
    ]
    if finding.function:
        lines.append(f"- in: {_code(finding.function)}")
    lines.append(f"- fix: {_prose(finding.fix.text)}")
    if finding.try_:
        lines.append(f"- try: {_code(finding.try_)}")
    return [*lines, f"- fingerprint: {_code(finding.fingerprint)}", ""]


def _counts(report: AuditReport) -> list[str]:
    head = ["code", "rule", *SEVERITY_COLUMNS, "total"]
    rows = [
        [
            _prose(row.code),
            _prose(row.name) + (" (preview)" if row.preview else ""),
            *map(str, row.counts),
            str(row.total),
        ]
        for row in table(report)
    ]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def render(report: AuditReport, *, dismissed: bool = False) -> str:
    """Return the report: verdict, counts by rule, files with findings, clean files, what was not analysed.

    Args:
        dismissed: whether to name the candidates that were considered and dropped, one by one.
    """
    lines = ["# deltaproof audit", "", f"**{_prose(verdict(report))}**", ""]
    lines += [f"- root: {_code(report.root)}", f"- command: {_code(report.command)}"]
    lines += [f"- {name}: {_prose(version)}" for name, version in report.versions.items()]
    lines += [f"- rules: {', '.join(map(_code, report.rules)) or 'none'}", ""]
    if report.findings:
        lines += ["## Findings by rule", "", *_counts(report)]
    by_path = sorted(report.findings, key=lambda finding: (finding.path, finding.line, finding.column))
    for path, group in groupby(by_path, key=lambda finding: finding.path):
        lines += [f"## {_code(path)}", ""]
        for finding in group:
            lines += _finding(finding)
    with_findings = {finding.path for finding in by_path}
    known = {finding.path for finding in report.known}
    raised = {item.path for item in rule_failures(report)}
    cut = {item.path for item in report.not_analysed} - raised
    lines += ["## Files checked", "", "| file | result |", "| --- | --- |"]
    for path in report.checked:
        count = sum(finding.path == path for finding in by_path)
        result = f"{count} new" if path in with_findings else "in the baseline" if path in known else "clean"
        # A rule that raised or stopped has not seen the whole file.
        result += ", but a rule failed" if path in raised else ", but a rule stopped" if path in cut else ""
        lines.append(f"| {_cell(path)} | {result} |")
    lines += ["", "## Not analysed", ""]
    lines += [f"- {_code(item.path)}: {_prose(item.reason)}" for item in report.not_analysed] or [
        "Nothing was left out."
    ]
    lines.append("")
    for title, items in (("Suppressed by a comment", report.suppressed), ("Dismissed", report.dismissed)):
        if items and (dismissed or items is report.suppressed):
            lines += [f"## {title}", ""]
            lines += [
                f"- {_code(f'{item.path}:{item.line}')}, {_prose(item.name)}: {_prose(item.reason)}" for item in items
            ]
            lines.append("")
    if report.dismissed and not dismissed:
        lines += [
            f"{len(report.dismissed)} candidates were considered and dismissed; `--show-dismissed` names them.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"
