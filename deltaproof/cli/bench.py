"""``deltaproof bench``: time backends beside each other, against the floor of the machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from deltaproof.bench.model import BenchReport, Row
from deltaproof.bench.plots import check_plot, write_plots
from deltaproof.bench.sets import SETS, default_set, find
from deltaproof.bench.summary import summarize
from deltaproof.bench.text import PIPE_WIDTH, WORDS, ms, print_report
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.replace_file import replace_file, replaceable

WITH_FROM = ("kept", "json", "plot")
"""Parameters that may stand beside --from."""


class Verb(str, Enum):
    """What is timed."""

    PREFILL = "prefill"
    BACKWARD = "backward"
    DECODE = "decode"


class Device(str, Enum):
    """Where the backends run."""

    CPU = "cpu"
    CUDA = "cuda"


class Dtype(str, Enum):
    """Dtype of tokens: q, k, v, beta and a raw gate."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def bench(
    context: typer.Context,
    verb: Annotated[Verb | None, typer.Argument(help="What to time.", show_default=False)] = None,
    operator: Annotated[str, typer.Option(help=f"Operator to time: {' or '.join(SETS)}.")] = "gated_delta_rule",
    backends: Annotated[
        str | None,
        typer.Option(
            help="Backends with commas between: a NAME, path/to/file.py:ATTR or package.module:ATTR each. `ours` is "
            "what a call runs that names none."
        ),
    ] = None,
    shapes: Annotated[str | None, typer.Option(help="A named set of workloads, or a JSON file.")] = None,
    device: Annotated[
        Device | None, typer.Option(help="Device to run on. A GPU by default, where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of q, k, v, beta and a raw gate.")] = Dtype.BFLOAT16,
    replays: Annotated[int | None, typer.Option(min=1, help="Timed replays a row; 21 on a GPU, 5 on a CPU.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="File for the result as JSON, beside the table; written after every workload.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Start of the names of two figures: FILE-bars and FILE-roofline, each as .svg and .png."),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option("--from", help="Run nothing: print, and plot, what --json of an earlier run wrote to this file."),
    ] = None,
) -> None:
    """Time backends on the same inputs in one process, each checked before it is timed.

    Exits 0 if all is well, 1 where a backend failed its check or raised, 2 on a usage error, where nothing was timed or
    where a figure could not be drawn.
    """
    if json is not None and not json.resolve().parent.is_dir():
        _usage(f"--json: expected a file in a folder that exists, got {json}")
    if plot is not None:
        try:
            check_plot(plot)
        except ContractError as error:
            _usage(str(error))
    if kept is not None:
        report, code = _read(kept, context), 0
        _keep_in(json)(report)
    elif verb is None:
        _usage(f"VERB: expected {', '.join(Verb)} or --from FILE, got neither")
    else:
        report, code = _run(verb, operator, backends, shapes, device, dtype, replays, json)
    console = Console()
    print_report(report, console if console.is_terminal else Console(width=PIPE_WIDTH))
    if plot is not None:
        drawn = _plot(report, plot)
        code = code or drawn
    raise typer.Exit(code)


def _run(
    verb: Verb,
    operator: str,
    backends: str | None,
    shapes: str | None,
    device: Device | None,
    dtype: Dtype,
    replays: int | None,
    json: Path | None,
) -> tuple[BenchReport, int]:
    """Return the report of a run, and its exit code."""
    try:
        import torch

        from deltaproof.bench.runner import Settings, exit_code, run, split_names
    except ImportError as error:
        _usage(f"bench needs PyTorch: pip install 'deltaproof[torch]' ({error})")
    visible = torch.cuda.is_available()
    if device is Device.CUDA and not visible:
        _usage("--device: expected a device this machine has, got cuda (no GPU is visible)")
    place = (device or (Device.CUDA if visible else Device.CPU)).value
    try:
        workloads = find(operator, verb.value, shapes or default_set(operator, verb.value, place))
        settings = Settings(operator, verb.value, split_names(backends), workloads, place, dtype.value, replays)
        report = run(settings, shlex.join(["deltaproof", *sys.argv[1:]]), _progress, keep=_keep_in(json))
    except ContractError as error:
        _usage(str(error))
    return report, exit_code(report)


def _read(path: Path, context: typer.Context) -> BenchReport:
    """Return a kept report, with the summary of its rows."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in WITH_FROM}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        _usage(f"--from: expected only --json and --plot beside it, got {', '.join(sorted(given))}")
    try:
        report = BenchReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        _usage(
            f"--from: expected a file that `deltaproof bench --json` wrote, got {path} ({str(error).splitlines()[0]})"
        )
    report.summary = summarize(report)
    return report


def _plot(report: BenchReport, path: Path) -> int:
    """Draw the figures, say where they are, and return an exit code."""
    try:
        for file in write_plots(report, path):
            typer.echo(f"wrote {file}", err=True)
    except (ContractError, OSError) as error:
        typer.echo(str(error), err=True)
        return 2
    return 0


def _progress(row: Row) -> None:
    """Say on standard error how a row ended: a long run that is cut off has shown its times."""
    came = WORDS.get(row.status, "") if row.time is None else f"{ms(row.time.median_ms)} ms"
    typer.echo(f"{row.workload:<20} {row.backend:<12} {came}", err=True)


def _keep_in(path: Path | None) -> Callable[[BenchReport], None]:
    """Return what writes the report so far: a run that is cut off has kept what it measured."""

    def keep(report: BenchReport) -> None:
        if path is not None and (report.complete or replaceable(path)):
            replace_file(path, report.model_dump_json(indent=2) + "\n")

    return keep


def _usage(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
