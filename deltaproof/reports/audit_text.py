"""The audit for a terminal; piped, the same words without colour."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.audit import AuditReport, Finding
from deltaproof.reports.audit_summary import SEVERITY_COLUMNS, quoted, rule_failures, table, verdict
from deltaproof.reports.visible import visible

STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan"}


def _line(console: Console, *parts: str | tuple[str, str]) -> None:
    # What is quoted is somebody else's: no markup, no emoji names, no escapes; and a path is not broken.
    shown = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
    console.print(Text.assemble(*shown), markup=False, highlight=False, emoji=False, soft_wrap=True)


def _print_finding(finding: Finding, console: Console) -> None:
    place = f"{finding.path}:{finding.line}:{finding.column + 1}"
    rule = f"{finding.code} {finding.name}"
    _line(
        console, (place, "bold"), ": ", (rule, "bold"), " [", (finding.severity, STYLES[finding.severity]),
        f", {finding.verdict}{', preview' if finding.preview else ''}] {finding.message}",
    )  # fmt: skip
    for quote in quoted(finding.evidence):
        # The finding's own place and sentence stand above.
        where = "" if quote.path == finding.path else f"{quote.path}:"
        why = "" if quote.why == finding.message else f"   <- {quote.why}"
        for offset, text in enumerate(quote.texts):
            label = f"{where}{quote.line}" if offset == 0 else ""
            _line(console, "  ", (f"{label:>6} | ", "dim"), text, (why if offset == 0 else "", "dim"))
    if finding.function:
        _line(console, ("  in     ", "dim"), finding.function)
    _line(console, ("  fix    ", "dim"), finding.fix.text)
    if finding.try_:
        _line(console, ("  try    ", "dim"), finding.try_)


def _print_table(report: AuditReport, console: Console) -> None:
    rows = table(report)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("code", "rule"):
        shown.add_column(name, no_wrap=True)
    for name in (*SEVERITY_COLUMNS, "total"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.name} (preview)" if row.preview else row.name
        cells = [Text(str(count), style=style) if count else Text("-", style="dim")
                 for count, style in zip(row.counts, STYLES.values(), strict=True)]  # fmt: skip
        shown.add_row(Text(visible(row.code)), Text(visible(name)), *cells, Text(str(row.total)))
    console.print(shown)


def _print_reasons(report: AuditReport, console: Console) -> None:
    items = sorted(report.not_analysed, key=lambda item: item.reason)
    if items:
        _line(console, ("not analysed:", "bold"))
    for reason, group in groupby(items, key=lambda item: item.reason):
        paths = [item.path for item in group]
        _line(console, f"  {reason}: {', '.join(paths)}" if len(paths) == 1 else f"  {reason}, {len(paths)} paths:")
        if len(paths) > 1:
            for path in paths:
                _line(console, f"    {path}")


def print_audit(report: AuditReport, console: Console, *, dismissed: bool = False) -> None:
    """Print every new finding with its quotes, counts by rule, what was not analysed, and the verdict.

    Args:
        dismissed: whether to name the candidates that were considered and dropped, one by one.
    """
    for finding in report.findings:
        _print_finding(finding, console)
        console.print()
    if dismissed and report.dismissed:
        _line(console, ("dismissed:", "bold"))
        for item in report.dismissed:
            _line(console, f"  {item.path}:{item.line}: {item.code} {item.name}: {item.reason}")
        console.print()
    if report.suppressed:
        _line(console, ("suppressed by a comment:", "bold"))
        for item in report.suppressed:
            _line(console, f"  {item.path}:{item.line}: {item.code} {item.name}: {item.reason}")
        console.print()
    if report.findings:
        _print_table(report, console)
        console.print()
    if report.not_analysed:
        _print_reasons(report, console)
        console.print()
    considered = f"{len(report.dismissed)} candidates dismissed" if report.dismissed else ""
    if considered and not dismissed:
        considered += " (--show-dismissed)"
    facts = [f"{len(report.rules)} rules", f"{report.seconds:.1f} s", *([considered] if considered else [])]
    _line(console, (", ".join(facts), "dim"))
    failed = bool(report.findings or rule_failures(report))
    _line(console, (verdict(report), "bold red" if failed else "bold"))
