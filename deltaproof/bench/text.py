"""The report for people: a table of times, one of errors and memory, and what was not timed. Imports no torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltaproof.bench.model import Ahead, BenchReport, Row, RowStatus, Times, WorkloadInfo
from deltaproof.bench.statistics import geometric_mean, speedups

PIPE_WIDTH = 200
"""Columns of a table that no terminal shows: wide enough that no cell is cut."""
WORDS = {RowStatus.FAIL: "FAIL", RowStatus.ERROR: "ERROR", RowStatus.UNSUPPORTED: "unsupported"}
STYLES = {RowStatus.FAIL: "bold red", RowStatus.ERROR: "bold magenta", RowStatus.UNSUPPORTED: "yellow"}


def _line(console: Console, text: str | Text = "") -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def ms(value: float) -> str:
    """Return milliseconds with four significant digits at least."""
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


def heading(report: BenchReport) -> list[tuple[str, str]]:
    """Return what a run was, as (label, text); a text may be empty."""
    ceilings = report.ceilings
    return [
        ("operator", f"{report.operator}, {report.verb} on {report.device}, {report.dtype}"),
        ("machine", ", ".join(f"{name} {value}" for name, value in report.machine.items())),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
        ("backends", "; ".join(f"{one.name} {one.version}" for one in report.backends if one.not_loaded is None)),
        ("commit", report.commit or ""),
        ("command", report.command),
        (
            "ceilings",
            f"copy {ceilings.copy_bytes_per_s / 1e12:.3g} TB/s (read + written), {ceilings.matmul_dtype} "
            f"{ceilings.matmul_size}³ matrix product {ceilings.matmul_flops_per_s / 1e12:.3g} TFLOP/s",
        ),
    ]


def _columns(report: BenchReport) -> list[tuple[str, str]]:
    """Return (backend, form) of every column, in the order of the backends; one that could make no call has no form."""
    found: list[tuple[str, str]] = []
    for one in report.backends:
        forms = [row.form for row in report.rows if row.backend == one.name]
        found += [(one.name, form) for form in dict.fromkeys(forms) if form or not any(forms)]
    return found


def titles(report: BenchReport) -> dict[tuple[str, str], str]:
    """Return the name of every column; a form is named where it is not that of most."""
    columns = _columns(report)
    usual = {"prefill": "chunk", "backward": "chunk", "decode": "decode"}[report.verb]
    return {(name, form): name if form in (usual, "") else f"{name} ({form})" for name, form in columns}


def _extras(report: BenchReport) -> list[tuple[str, str, str]]:
    """Return (attribute, title, format) of every further column a backend has, as far as some row fills it."""
    known = [("to_copy", "of copy", ".1%"), ("to_one_token", "÷ 1 token", ".2f")]
    return [entry for entry in known if any(getattr(row, entry[0]) is not None for row in report.rows)]


def _cells(row: Row | None, both: bool, extras: list[tuple[str, str, str]]) -> list[Text]:
    width = (3 if both else 2) + len(extras)
    if row is None:
        return [Text("-")] + [Text("")] * (width - 1)
    if row.time is None:
        return [Text(WORDS[row.status], style=STYLES[row.status])] + [Text("")] * (width - 1)
    mark = "" if row.time.method != "cuda-events" else "*"
    cells = [Text(ms(row.time.median_ms) + mark), Text("" if row.to_floor is None else f"{row.to_floor:.2f}")]
    if both:
        cells.append(Text("" if row.forward_backward is None else ms(row.forward_backward.median_ms)))
    for attribute, _, form in extras:
        value = getattr(row, attribute)
        cells.append(Text("" if value is None else format(value, form)))
    return cells


def _of(report: BenchReport, workload: WorkloadInfo, column: tuple[str, str]) -> Row | None:
    """Return the row of a column; a row without a form stands in the backend's first column."""
    first = next(key for key in _columns(report) if key[0] == column[0])
    for row in report.rows:
        if (row.workload, row.backend) == (workload.name, column[0]):
            return row if row.form == column[1] or (not row.form and column == first) else None
    return None


def _times(report: BenchReport) -> Table:
    columns, ratios, both = titles(report), speedups(report), report.verb == "backward"
    extras = _extras(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("workload", no_wrap=True)
    table.add_column("floor ms", justify="right")
    for title in columns.values():
        table.add_column(f"{title} ms", justify="right")
        table.add_column("÷ floor", justify="right")
        if both:
            table.add_column("with fwd ms", justify="right")
        for _, extra, _ in extras:
            table.add_column(extra, justify="right")
    for peer, own in ratios:
        table.add_column(f"{peer} ÷ {own}", justify="right")
    for workload in report.workloads:
        cells = [Text(workload.name), Text(ms(workload.floor_ms) + (" m" if workload.bound_by == "matmul" else ""))]
        for column in columns:
            cells += _cells(_of(report, workload, column), both, extras)
        for values in ratios.values():
            cells.append(Text(f"{values[workload.name]:.2f}" if workload.name in values else "-"))
        table.add_row(*cells)
    return table


def _spread(times: Times) -> str:
    return f"{ms(times.min_ms)} / {ms(times.p10_ms)} / {ms(times.p90_ms)}"


def _details(report: BenchReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("workload", "backend", "form"):
        table.add_column(name, no_wrap=True)
    for name in (
        "relative RMS",
        "its bound",
        "largest error",
        "its bound",
        "min / p10 / p90 ms",
        "replays × calls",
        "peak MiB",
    ):
        table.add_column(name, justify="right")
    for row in report.of(RowStatus.TIMED):
        assert row.time is not None
        worst = max(row.errors, key=lambda error: (error.relative_rms or 0.0) / error.rms_bound)
        largest = max(row.errors, key=lambda error: (error.largest or 0.0) / (error.largest_bound or 1.0))
        calls = f"{row.time.replays} × {row.time.calls}"
        peak = "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.1f}"
        table.add_row(
            row.workload, row.backend, row.form, f"{worst.output} {worst.relative_rms:.2g}", f"{worst.rms_bound:.2g}",
            f"{largest.output} {largest.largest:.2g}", f"{largest.largest_bound:.2g}", _spread(row.time), calls, peak,
        )  # fmt: skip
    return table


def _without_time(report: BenchReport, console: Console) -> None:
    for status in (RowStatus.FAIL, RowStatus.ERROR, RowStatus.UNSUPPORTED):
        for row in report.of(status):
            where = f"{row.workload} {row.backend} {row.form}".rstrip()
            _line(console, Text.assemble((WORDS[status], STYLES[status]), f"  {where}: {row.reason}"))
    for one in report.backends:
        if one.not_loaded is not None:
            _line(console, Text.assemble(("not loaded", "yellow"), f"  {one.name}: {one.not_loaded}"))


def notes(report: BenchReport) -> list[str]:
    """Return what the tables' marks mean, as far as they are used, and notes on backends, each once."""
    found = []
    if any(workload.bound_by == "matmul" for workload in report.workloads):
        found.append("m: the floor is that of the matrix products, elsewhere that of memory")
    slow = [row for row in report.of(RowStatus.TIMED) if row.time and row.time.method == "cuda-events"]
    found += sorted({f"*: {row.backend}: {row.time.note}" for row in slow if row.time})
    for name in dict.fromkeys(row.chosen for row in report.rows if row.chosen):
        count = sum(row.chosen == name for row in report.rows)
        found.append(f"ours: {name} in {count} of {len(report.workloads)} workloads")
    found += dict.fromkeys(f"{row.backend} ({row.form}): {note}" for row in report.rows for note in row.notes)
    return found


def _ahead(ahead: Ahead) -> str:
    return (
        f"geometric mean {ahead.geomean_vs_fastest_peer:.2f} of {ahead.workloads}, "
        f"worst {ahead.worst_vs_fastest_peer:.2f} ({ahead.worst_workload})"
    )


def summary_lines(report: BenchReport) -> list[str]:
    """Return the first own backend beside the fastest peer, in all and by class."""
    summary = report.summary
    if summary is None or not summary.workloads:
        return []
    lines = [f"fastest peer ÷ {summary.backend} (above 1: {summary.backend} is faster): {_ahead(summary)}"]
    lines += [f"  {name.replace('_', ' ')}: {_ahead(ahead)}" for name, ahead in summary.by_class.items()]
    if summary.not_timed:
        lines.append(f"  {summary.backend} has no time of: {', '.join(summary.not_timed)}")
    if summary.no_peer:
        lines.append(f"  no peer has a time of: {', '.join(summary.no_peer)}")
    return lines


def print_report(report: BenchReport, console: Console) -> None:
    """Print the heading, both tables, the ratios in sum, and every row without a time with its reason."""
    for label, text in heading(report):
        if text:
            _line(console, Text.assemble((label.ljust(8), "dim"), "  ", text))
    _line(console)
    if report.rows:
        console.print(_times(report))
        _line(console)
    if report.of(RowStatus.TIMED):
        console.print(_details(report))
        _line(console)
    for note in notes(report):
        _line(console, Text(note, style="dim"))
    for (peer, own), values in speedups(report).items():
        worst = min(values, key=lambda name: values[name])
        mean = geometric_mean(list(values.values()))
        _line(console, f"{peer} ÷ {own}: geometric mean {mean:.2f}, worst {values[worst]:.2f} ({worst})")
    for line in summary_lines(report):
        _line(console, line)
    _without_time(report, console)
    if not report.complete:
        text = f"not whole: the run did not reach its end; workloads done: {len(report.workloads)}"
        _line(console, Text(text, style="bold red"))
    counts = ", ".join(f"{len(report.of(status))} {status.value}" for status in RowStatus)
    _line(console, Text(f"{len(report.rows)} rows: {counts}; {report.seconds:.1f} s", style="bold"))
