"""The kill matrix for a terminal; piped, the same words without colour."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.mutants import MatrixReport, MutantRow


def _verdict(row: MutantRow) -> Text:
    if row.killed:
        return Text("killed", style="green")
    return Text("ALIVE" if row.control_passes else "no control", style="bold red")


def _line(console: Console, text: str | Text = "") -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _print_rows(report: MatrixReport, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("mutant", "form", "hazard", "own probe", "", "clause", "naive suite"):
        table.add_column(name, no_wrap=True)
    table.add_column("also killed by", overflow="fold")
    for row in report.rows:
        others = ", ".join(name for name in row.killed_by if name != row.own_probe)
        naive = Text("lets live" if row.naive_survives else "kills", style="yellow" if row.naive_survives else "dim")
        table.add_row(
            row.mutant, row.form, row.hazard, row.own_probe, _verdict(row), row.clause or "", naive, Text(others or "-")
        )
    console.print(table)


def print_matrix(report: MatrixReport, console: Console) -> None:
    """Print one line a mutant, the score of every probe, the naive suite, the cheats and the verdict."""
    _print_rows(report, console)
    _line(console)
    scores = "  ".join(f"{name} {score.killed}/{score.total}" for name, score in report.by_probe.items())
    _line(console, Text.assemble(("by own probe  ", "dim"), scores))
    for cheat in report.cheats:
        state = Text("FOOLED", style="bold red") if cheat.fooled else Text("caught", style="green")
        verdicts = ", ".join(f"{form} {status}" for form, status in cheat.verdicts.items())
        _line(console, Text.assemble(("cheat  ", "dim"), f"{cheat.cheat} {cheat.what}: ", state, f" ({verdicts})"))
    for failure in report.control_failures:
        _line(console, Text.assemble(("control fails  ", "bold red"), failure))
    for row in report.rows:
        if not row.killed:
            _line(console, Text.assemble((f"{row.mutant} lives  ", "bold red"), row.story))
    made = f" ({report.naive_suite})" if report.naive_suite else ""
    naive = f"a naive suite{made} lets {report.naive_survivors} of them live"
    _line(console)
    score = f"{report.killed} of {report.total} mutants killed ({report.score:.0%}); {naive}; {report.seconds:.0f} s"
    _line(console, Text(score, style="bold"))
