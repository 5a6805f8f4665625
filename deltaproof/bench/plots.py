"""A run as two figures: bars of time ÷ floor by workload, and the workloads under the roofline. Imports no torch.

matplotlib is imported by the functions that draw: it is the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaproof.bench.model import BenchReport, Row, RowStatus, WorkloadInfo
from deltaproof.bench.summary import CLASSES, classes, fastest_peer, first_own, rows_of, summarize
from deltaproof.bench.text import WORDS, ms
from deltaproof.bench.workload import DecodeWorkload
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.replace_file import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = tuple[str, dict[str, Any]]
"""A legend's text, and how its mark looks."""
FORMATS = (".svg", ".png")
WIDTH = 8.6
# Okabe and Ito's colours, which the colour-blind can tell apart
OWN = ("#0072B2", "#56B4E9", "#000000")
PEERS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442")
SLOWER = "#B34700"
FAINT = "#666666"
GRID = "#DDDDDD"
OTHER = "other"
MARKERS = {"few_heads": "o", "one_sequence": "^", OTHER: "D", "saturated": "s"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deltaproof",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
GAP, HEADING = 0.55, 1.9
"""Between two workloads, and above a class, in bars."""
MOST_UNITS = 120
"""Height of a figure, in bars, beyond which the classes stand beside each other."""
LOG_FROM = 40
"""Ratio of the longest bar to the shortest from which on bars are set against a logarithm."""


def check_plot(path: Path) -> None:
    """Refuse a place or a machine that no figure can be written with.

    Raises:
        ContractError: the folder does not exist, or matplotlib is not installed.
    """
    if not path.resolve().parent.is_dir():
        raise ContractError("--plot", "a file in a folder that exists", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ContractError(
            "--plot", "matplotlib (pip install 'deltaproof[plot]')", "an environment without it"
        ) from None


def plot_files(path: Path) -> dict[str, list[Path]]:
    """Return figure -> its files: PATH-bars.svg and so on, or of one format alone where the path names it."""
    formats = (path.suffix,) if path.suffix in FORMATS else FORMATS
    stem = path.name.removesuffix(path.suffix) if path.suffix in FORMATS else path.name
    return {figure: [path.with_name(f"{stem}-{figure}{suffix}") for suffix in formats] for figure in FIGURES}


def write_plots(report: BenchReport, path: Path, source: str | None = None) -> list[Path]:
    """Write the figures of a run and return their files.

    Args:
        report: the run.
        path: see ``plot_files``.
        source: what an SVG says it was made from.

    Raises:
        ContractError: see ``check_plot``; or no row of the run has a time.
    """
    check_plot(path)
    if not report.of(RowStatus.TIMED):
        raise ContractError("--plot", "a run with at least one time", f"{len(report.rows)} rows without one")
    from matplotlib import rc_context

    files = plot_files(path)
    with rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(report)
            for file in files[name]:
                metadata: dict[str, Any] = {"Date": None, "Source": source} if file.suffix == ".svg" else {}
                buffer = BytesIO()
                figure.savefig(
                    buffer, format=file.suffix[1:], dpi=150, bbox_inches="tight", pad_inches=0.15, metadata=metadata
                )
                replace_file(file, buffer.getvalue())
    return [file for those in files.values() for file in those]


def colours(report: BenchReport) -> dict[str, str]:
    """Return a colour for every backend that was run, in the order of the run: blues for ours, others for peers."""
    ran = {row.backend for row in report.of(RowStatus.TIMED, RowStatus.FAIL, RowStatus.ERROR)}
    found = {}
    for peer, palette in ((False, OWN), (True, PEERS)):
        names = [one.name for one in report.backends if one.peer is peer and one.name in ran]
        found.update({name: palette[place % len(palette)] for place, name in enumerate(names)})
    return {one.name: found[one.name] for one in report.backends if one.name in found}


def group(workload: WorkloadInfo) -> str:
    """Return the one class that a workload is drawn in: the first that fits."""
    return next(iter(classes(workload.shape)), OTHER)


def groups(report: BenchReport) -> dict[str, list[WorkloadInfo]]:
    """Return the workloads by class, those of a class by heads and then by size."""
    order = [*(name for name in CLASSES if name != "saturated"), OTHER, "saturated"]

    def size(workload: WorkloadInfo) -> tuple[Any, ...]:
        shape = workload.shape
        count = shape.rows if isinstance(shape, DecodeWorkload) else len(shape.lengths)
        return shape.heads[1], shape.heads[0], count, workload.bytes

    found = {name: sorted((w for w in report.workloads if group(w) == name), key=size) for name in order}
    return {name: workloads for name, workloads in found.items() if workloads}


def _headline(report: BenchReport, title: str) -> tuple[str, str]:
    """Return a figure's title and the line below it."""
    ceilings, summary = report.ceilings, summarize(report)
    place = report.machine.get("gpu") or report.machine.get("processor") or report.device
    first = f"{report.operator.replace('_', ' ')}, {report.verb}: {title}"
    second = (
        f"{place}, {report.dtype}; copy {ceilings.copy_bytes_per_s / 1e12:.3g} TB/s, "
        f"{ceilings.matmul_dtype} matmul {ceilings.matmul_flops_per_s / 1e12:.3g} TFLOP/s"
    )
    if summary is not None and summary.workloads:
        second += (
            f"\nfastest peer ÷ {summary.backend}: geometric mean {summary.geomean_vs_fastest_peer:.2f}, "
            f"worst {summary.worst_vs_fastest_peer:.2f} ({summary.worst_workload})"
        )
    return first, second


def _header(axes: Axes, inches: float, report: BenchReport, title: str, entries: Sequence[Entry]) -> None:
    """Write the title, the line below it and the legend above axes of so many inches in height."""
    from matplotlib.lines import Line2D

    first, second = _headline(report, title)
    lines = second.count("\n") + 1
    texts: list[tuple[str, int, dict[str, Any]]] = [
        (second, 46, {"color": FAINT, "linespacing": 1.35}),
        (first, 54 + 13 * lines, {"fontsize": 12, "fontweight": "bold"}),
    ]
    for text, height, style in texts:
        axes.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(0, height), textcoords="offset points", va="bottom",
            annotation_clip=False, **style,
        )  # fmt: skip
    handles = [Line2D([], [], linestyle="", markersize=7, **{"label": name, **how}) for name, how in entries]
    legend = axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False, borderpad=0,
        borderaxespad=0, handletextpad=0.1, columnspacing=1.4,
    )  # fmt: skip
    legend.set_bbox_to_anchor((-0.01, 1 + 24 / (72 * inches)), transform=axes.transAxes)


@dataclass
class _Bars:
    """Where the bars of a figure stand: a unit a bar, a gap between workloads, a heading a class."""

    axes: Axes
    report: BenchReport
    colours: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Row]]
    place: float = 0.0

    def heading(self, name: str) -> None:
        self.place += HEADING - 1.0
        self.axes.annotate(
            name.replace("_", " "), (0, self.place), xycoords=("axes fraction", "data"), xytext=(-6, 0),
            textcoords="offset points", ha="right", va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        self.axes.axhline(self.place, color=GRID, linewidth=0.8, zorder=0)
        self.place += 1.0

    def workload(self, workload: WorkloadInfo, own: str | None) -> float:
        """Draw one workload's bars and return the height of its middle."""
        start = self.place
        for name, colour in self.colours.items():
            row = self.rows[name].get(workload.name)
            if row is None or row.to_floor is None or row.time is None:
                self._missing(workload, name)
            else:
                self.axes.barh(self.place, row.to_floor, height=0.86, color=colour, align="center", zorder=2)
                self._beside(row.to_floor, f"{ms(row.time.median_ms)}", "#333333")
            self.place += 1.0
        middle = (start + self.place - 1.0) / 2
        self._ratio(workload, own, middle)
        self.place += GAP
        return middle

    def _beside(self, x: float, text: str, colour: str, box: dict[str, Any] | None = None) -> None:
        self.axes.annotate(
            text, (x, self.place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7, color=colour,
            bbox=box, zorder=4,
        )  # fmt: skip

    def _missing(self, workload: WorkloadInfo, backend: str) -> None:
        found = [r for r in self.report.rows if (r.workload, r.backend) == (workload.name, backend)]
        text = f"{backend}: {WORDS.get(found[0].status, '-') if found else '-'}"
        over_the_floor = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        self._beside(self.axes.get_xlim()[0], text, SLOWER, over_the_floor)

    def _ratio(self, workload: WorkloadInfo, own: str | None, middle: float) -> None:
        row = None if own is None else self.rows[own].get(workload.name)
        peer = fastest_peer(self.report, workload.name)
        if row is None or peer is None or row.time is None or peer.time is None:
            return
        ratio = peer.time.median_ms / row.time.median_ms
        self.axes.annotate(
            f"{ratio:.2f}", (1, middle), xycoords=("axes fraction", "data"), xytext=(34, 0),
            textcoords="offset points", ha="right", va="center", fontweight="bold",
            color=OWN[0] if ratio >= 1 else SLOWER, annotation_clip=False,
        )  # fmt: skip


def draw_bars(report: BenchReport) -> Figure:
    """Draw time ÷ floor: a group of bars a workload, its times beside them and the ratio to the fastest peer.

    The classes of a few workloads stand below each other, those of many beside each other.
    """
    from matplotlib.figure import Figure

    own, palette, classed = first_own(report), colours(report), groups(report)
    rows = {name: rows_of(report, name) for name in palette}
    ratios = [row.to_floor for those in rows.values() for row in those.values() if row.to_floor]
    beside = _units(classed, len(palette)) > MOST_UNITS
    columns = [{name: those} for name, those in classed.items()] if beside else [classed]
    unit, wide, left, right = (0.12, 4.6, 1.35, 0.7) if beside else (0.165, WIDTH, 1.72, 1.03)
    height = unit * max(_units(column, len(palette)) for column in columns)
    width, tall = wide * len(columns), height + 1.6
    figure = Figure(figsize=(width, tall))
    for place, column in enumerate(columns):
        start, span = (place * wide + left) / width, (wide - left - right) / width
        axes = figure.add_axes((start, 0.5 / tall, span, height / tall))
        if max(ratios) > LOG_FROM * min(ratios):
            axes.set_xscale("log")
            axes.set_xlim(0.7 * min(1.0, *ratios), 2 * max(ratios))
        else:
            axes.set_xlim(0, 1.15 * max(*ratios, 1.2))
        bars = _Bars(axes, report, palette, rows)
        ticks = []
        for name, workloads in column.items():
            bars.heading(name)
            ticks += [(bars.workload(workload, own), workload.name) for workload in workloads]
        axes.set_ylim(height / unit, -0.2)
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        _finish_bars(axes, own if any(one.peer and one.name in palette for one in report.backends) else None)
        if place == 0:
            _header(axes, height, report, "time ÷ floor", _backend_entries(palette))
    return figure


def _units(classed: Mapping[str, Sequence[WorkloadInfo]], backends: int) -> float:
    """Return the height of a column of bars, in bars."""
    return sum(len(workloads) for workloads in classed.values()) * (backends + GAP) + HEADING * len(classed)


def _finish_bars(axes: Axes, own: str | None) -> None:
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color="black", linewidth=1, zorder=3)
    axes.annotate("floor", (1, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                  ha="center", fontsize=8)  # fmt: skip
    if own is not None:
        axes.annotate(f"fastest\npeer ÷ {own}", (1, 1), xycoords="axes fraction", xytext=(34, 3),
                      textcoords="offset points", ha="right", fontsize=8, annotation_clip=False)  # fmt: skip
    axes.xaxis.grid(True, color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("time ÷ floor (shorter is faster);\nthe median in ms stands beside each bar")


def _backend_entries(palette: Mapping[str, str]) -> list[Entry]:
    return [(name, {"color": colour, "marker": "s"}) for name, colour in palette.items()]


def draw_roofline(report: BenchReport) -> Figure:
    """Draw operations a second over operations a byte, under the roof of the run's own ceilings."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
    from matplotlib.transforms import ScaledTranslation

    copy, matmul = report.ceilings.copy_bytes_per_s, report.ceilings.matmul_flops_per_s
    palette, infos = colours(report), {workload.name: workload for workload in report.workloads}
    points = [
        (infos[name].flops / infos[name].bytes, infos[name].flops / (row.time.median_ms * 1e9), backend, infos[name])
        for backend in palette
        for name, row in rows_of(report, backend).items()
        if row.time is not None and infos[name].flops
    ]
    low, high = min(x for x, *_ in points) / 2.5, max(x for x, *_ in points) * 2.5
    ridge = matmul / copy
    height = 5.4
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.1, 0.11, 0.86, 0.7))
    axes.set_xscale("log")
    axes.set_yscale("log")
    bends = [low, *([ridge] if low < ridge < high else []), high]
    roof = [min(copy * x, matmul) / 1e12 for x in bends]
    for share in (1.0, 0.5, 0.25, 0.1):
        style, width, colour = ("-", 1.8, "black") if share == 1 else ("--", 0.9, "#999999")
        heights = [share * height for height in roof]
        axes.plot(bends, heights, linestyle=style, linewidth=width, color=colour, zorder=1)
        axes.annotate(f"{share:.0%}", (high, heights[-1]), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=8, color=colour, annotation_clip=False)  # fmt: skip
    names = list(palette)
    for x, y, backend, info in points:
        # workloads of the same operations a byte stand in a column: a few points to the side, so that all are seen
        aside = 5 * (names.index(backend) - (len(names) - 1) / 2) / 72
        place = axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        axes.plot(x, y, MARKERS[group(info)], color=palette[backend], markersize=7, alpha=0.85, markeredgecolor="white",
                  markeredgewidth=0.6, zorder=3, transform=place)  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(min(min(y for _, y, *_ in points) / 1.6, 0.08 * roof[-1]), 1.5 * roof[-1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(True, which="major", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("operations a byte, both the least that the workload needs")
    axes.set_ylabel("TFLOP/s (higher is faster)")
    kinds = [kind for kind in MARKERS if any(group(info) == kind for *_, info in points)]
    marks = [(kind.replace("_", " "), {"color": FAINT, "marker": MARKERS[kind]}) for kind in kinds]
    _header(axes, 0.7 * height, report, "the roofline", [*_backend_entries(palette), *marks])
    return figure


FIGURES: Mapping[str, Callable[[BenchReport], Any]] = {"bars": draw_bars, "roofline": draw_roofline}
"""Name -> what draws it."""
