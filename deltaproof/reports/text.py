"""The report for a terminal; piped, the same words without colour."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.model import Check, Status, VerifyReport
from deltaproof.reports.summary import (
    LEGEND,
    MEANING,
    Cell,
    broken,
    failure,
    heading,
    matrix,
    reasons,
    title,
    verdict,
)

STYLES = {
    Status.PASS: "green",
    Status.FAIL: "bold red",
    Status.ERROR: "bold magenta",
    Status.UNSUPPORTED: "yellow",
    Status.SKIPPED: "yellow",
    Status.WAIVED: "yellow",
    Status.NOT_RUN: "yellow",
}


def _line(console: Console, text: str | Text = "") -> None:
    # A wrapped command could not be copied, and "[0, 3]" is an index, not markup.
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _labelled(console: Console, lines: list[tuple[str, str]], indent: str = "") -> None:
    width = max((len(label) for label, _ in lines), default=0)
    for label, text in lines:
        continued = text.replace("\n", "\n" + " " * (len(indent) + width + 2))
        _line(console, Text.assemble(indent, (label.ljust(width), "dim"), "  ", continued))


def _cell(cell: Cell) -> Text:
    if cell.failed:
        return Text(str(cell), style=STYLES[Status.FAIL])
    return Text(str(cell), style=STYLES[Status.PASS] if cell.count(Status.PASS) else "dim")


def _print_matrix(report: VerifyReport, console: Console) -> None:
    found = matrix(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("probe", no_wrap=True)
    for form in found.forms:
        table.add_column(form)
    for probe, cells in found.rows:
        table.add_row(Text(probe), *(_cell(cell) for cell in cells))
    console.print(table)
    _line(console, Text(LEGEND, style="dim"))


def _print_failure(check: Check, console: Console) -> None:
    style = STYLES[check.status]
    _line(console, Text.assemble((check.status.value.upper(), style), " ", (title(check), "bold")))
    lines = failure(check)
    if check.message:
        lines.insert(0, ("message", check.message.rstrip()))
    if check.repeat:
        lines.append(("repeat", check.repeat))
    _labelled(console, lines, indent="  ")


def print_report(report: VerifyReport, console: Console) -> None:
    """Print the heading, the matrix, every failure and error, the counts and the reasons of what was not analysed."""
    _labelled(console, heading(report))
    _line(console)
    if report.checks:
        _print_matrix(report, console)
        _line(console)
    for check in broken(report):
        _print_failure(check, console)
        _line(console)
    counts = report.counts()
    for status in Status:
        style = STYLES[status] if counts[status.value] else "dim"
        label = f"{status.value:<12}{counts[status.value]:>6}"
        _line(console, Text.assemble((label, style), "  ", (MEANING[status], "dim")))
        for group in reasons(report):
            if group.status is status:
                _line(console, f"  {len(group.checks)} × {group.reason} [{', '.join(group.probes)}]")
    for capability, why in report.backend.unsupported.items():
        _line(console, f"declared unsupported: {capability}: {why}")
    _line(console)
    _line(console, Text(verdict(report), style="bold red" if broken(report) else "bold"))


def render(report: VerifyReport) -> str:
    """Return the report as plain text, 120 columns wide."""
    buffer = StringIO()
    print_report(report, Console(file=buffer, width=120, color_system=None, legacy_windows=False))
    return buffer.getvalue()
