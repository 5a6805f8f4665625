"""The mutants of the kernels' source for a terminal; piped, the same words without colour."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.source_mutants import Score, SourceMutantRow, SourceMutantsReport

SHOWN = 110
"""Characters of a change that are shown; the JSON has all."""


def _line(console: Console, text: str | Text = "") -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _scores(console: Console, title: str, scores: dict[str, Score]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    table.add_column("killed", justify="right")
    table.add_column("of", justify="right")
    table.add_column("", justify="right")
    for name, score in scores.items():
        table.add_row(name, str(score.killed), str(score.total), f"{score.killed / score.total:.0%}")
    console.print(table)
    _line(console)


def _survivor(console: Console, row: SourceMutantRow) -> None:
    _line(console, Text.assemble(("lives  ", "bold red"), f"{row.mutant}  {row.file}:{row.line}"))
    _line(console, f"       {_cut(row.before)}  →  {_cut(row.after)}")
    why = row.reason or row.note or "unexplained"
    checks = f"{row.checks} checks ran" + (f", {len(row.inconclusive)} said nothing" if row.inconclusive else "")
    _line(console, Text.assemble("       ", (why, "dim" if row.reason else "yellow"), f" ({checks})"))


def print_source_mutants(report: SourceMutantsReport, console: Console) -> None:
    """Print the scores by kind and by kernel, every mutant that lives with the reason, and the verdict."""
    if report.rows:
        _scores(console, "mutation", report.by_mutation)
        _scores(console, "function", report.by_function)
    for row in report.rows:
        if row.killed_by is None:
            _survivor(console, row)
    for row in report.rows:
        if row.killed_by in ("crash", "timeout"):
            _line(console, Text.assemble((f"killed by {row.killed_by}  ", "yellow"), f"{row.mutant}: {row.message}"))
    for failure in report.control_failures:
        _line(console, Text.assemble(("control fails  ", "bold red"), failure))
    for entry in report.stale:
        _line(console, Text.assemble(("stale reason  ", "bold red"), entry))
    _line(console)
    errors = report.killed - report.killed_by_check
    drawn = f"{report.total} of {report.generated} mutants tried; " if report.total < report.generated else ""
    if not report.complete:
        text = f"not whole: the run did not reach its end; chosen mutants without a verdict: {report.not_begun}"
        _line(console, Text(text, style="bold red"))
    elif report.not_begun:
        _line(console, f"{report.not_begun} chosen mutants were not begun in time")
    _line(console, f"control: {report.control_passed} checks pass, {report.control_left_out} are left out")
    killed = f"{drawn}{report.killed} of {report.total} killed ({report.score:.1%}; asked for {report.bar:.0%})"
    how = f"{report.killed_by_check} by a check, {errors} by an error"
    rest = f"{report.equivalent} of the others have a reason ({report.score_without_equivalent:.1%} without them)"
    _line(console, Text(f"{killed}: {how}; {rest}; {report.seconds:.0f} s", style="bold"))
