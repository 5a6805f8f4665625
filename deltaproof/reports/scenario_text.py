"""The table of the serving scenario for a terminal, and as Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.reports.scenario import Group, Interval, ScenarioReport, Verdict

STYLES = {
    Verdict.SAME: "green",
    Verdict.STOPPED: "green",
    Verdict.NAMED: "green",
    Verdict.CHANGED: "bold red",
    Verdict.UNSEEN: "yellow",
    Verdict.SKIPPED: "yellow",
}
COLUMNS = ("adapter", "strategy", "pool", "", "changed", "95 %", "accuracy", "95 %", "touched", "first divergence")


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:.3f}-{interval.high:.3f}"


def _cells(group: Group) -> list[str]:
    """Return a group's cells, as ``COLUMNS`` names them."""
    first = "-"
    if group.first is not None:
        first = f"seed {group.first_seed}: {group.first.request}, answer {group.first.token}, step {group.first.step}"
    accuracy = "-" if group.accuracy is None else f"{group.accuracy.share:.3f}"
    return [
        group.adapter, group.strategy, group.pool, group.verdict.value, f"{group.changed}/{group.requests}",
        _range(group.changed_share), accuracy, _range(group.accuracy), str(group.touched), first,
    ]  # fmt: skip


def _named(report: ScenarioReport) -> list[tuple[str, str]]:
    """Return what our pool reported, once for each adapter, and why rows were skipped."""
    found: dict[str, str] = {}
    for group in report.groups:
        if group.named is not None:
            unserved = f"; ended there, {group.unserved} requests not served" if group.unserved else ""
            found.setdefault(f"{group.adapter}, {group.pool}", f"{group.named}{unserved}")
    return list(found.items())


def _summary(report: ScenarioReport) -> str:
    alone = report.alone_accuracy
    requests = f"{report.requests_a_seed} requests, seeds {', '.join(map(str, report.seeds))}"
    spent = sum(row.seconds for row in report.rows)
    parts = [
        f"{report.faults_seen} of {report.faults_total} faults change tokens on the plain pool",
        f"{report.ours_rows_changed} rows of ours changed",
        f"{report.clean_rows_changed} clean rows changed",
        f"alone {alone.share:.3f} right ({_range(alone)})",
        f"{requests}; {report.seconds:.0f} s, processor time of the rows {spent:.0f} s",
    ]
    return "; ".join(parts)


def print_scenario(report: ScenarioReport, console: Console) -> None:
    """Print one line a strategy, adapter and pool, over all seeds; what was named; and the sums."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, no_wrap=True, justify="right" if name in ("changed", "accuracy", "touched") else "left")
    for group in report.groups:
        cells: list[str | Text] = list(_cells(group))
        cells[3] = Text(group.verdict.value, style=STYLES[group.verdict])
        table.add_row(*cells)
    console.print(table)
    console.print()
    for place, text in _named(report):
        line = Text.assemble((f"{place}  ", "dim"), text)
        console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(Text(_summary(report), style="bold"), highlight=False, soft_wrap=True)


def render_markdown(report: ScenarioReport) -> str:
    """Return the same as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(group)) + " |" for group in report.groups]
    named = [f"- {place}: {text}" for place, text in _named(report)]
    return "\n".join([*lines, "", *named, "", _summary(report)]) + "\n"
