"""``deltaproof verify``: hold a backend to the contract."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltaproof.contracts.errors import ContractError
from deltaproof.reports.replace_file import replace_file, replaceable

if TYPE_CHECKING:
    from deltaproof.reports.model import VerifyReport
    from deltaproof.reports.source_mutants import SourceMutantsReport

PIPE_WIDTH = 160
"""Columns of a text result that no terminal shows: wide enough that no cell is cut."""


class Device(str, Enum):
    """Where the backend runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Tier(str, Enum):
    """How much is run."""

    SMOKE = "smoke"
    FULL = "full"


class Scenario(str, Enum):
    """What is served."""

    SERVING = "serving"


class Format(str, Enum):
    """How the result is written."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


def verify(
    operator: Annotated[str, typer.Option(help="Operator to verify.")] = "gated_delta_rule",
    form: Annotated[list[str] | None, typer.Option(help="Form to cover; may be repeated. All by default.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="A backend's NAME, path/to/file.py:ATTR or package.module:ATTR.",
            show_default="torch; triton with --source-mutants",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Device to run on.")] = Device.CPU,
    tier: Annotated[Tier, typer.Option(help="Smoke or full tier.")] = Tier.SMOKE,
    probe: Annotated[list[str] | None, typer.Option(help="Probe to run; may be repeated. All by default.")] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Case to run, as a failure prints it; may be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field of every case, such as K=128 or dtype=bfloat16, for a backend that takes little else; may be"
            " repeated. Cases that are then the same run once.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every input.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes; up to 4 on the CPU, 1 on a GPU.")] = None,
    format: Annotated[Format, typer.Option(help="Format of the result.")] = Format.TEXT,
    output: Annotated[
        Path | None,
        typer.Option(help="File for the result instead of standard output; written as it runs (not with --mutants)."),
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Verify verify itself: run it on backends broken on purpose.")
    ] = False,
    source_mutants: Annotated[
        bool,
        typer.Option(
            "--source-mutants",
            help="Verify verify itself: run it on slips in the source of the Triton kernels, one at a time. With "
            "--device cpu they run in Triton's interpreter (TRITON_INTERPRET=1 is set). --tier full also makes the "
            "checks of the full tier on what the smoke tier lets live.",
        ),
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Source mutants to draw, by --seed. All by default.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which no further source mutant is begun.")
    ] = None,
    mutant: Annotated[
        list[str] | None, typer.Option(help="Source mutant to try: its id or a pattern with *; may be repeated.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="JSON result of an earlier run of --source-mutants: its verdicts are taken over."),
    ] = None,
    scenario: Annotated[
        Scenario | None,
        typer.Option(help="Serve a small model with faults as found in public, on a plain pool and on ours (CPU)."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of --scenario: --seed and those after it.")] = None,
) -> None:
    """Hold a backend to the written contract, with faults injected.

    Exits 0 if all that ran passed, 1 on a failure, 2 on a usage or harness error or where no values check ran.
    With --source-mutants: 0 if the unchanged kernels pass and 85 % of the mutants are killed, else 1.
    With --scenario: 0 if clean adapters change no token, every fault does on the plain pool, and none on ours, else 1.
    """
    if output is not None and not output.resolve().parent.is_dir():
        _usage(f"--output: expected a file in a folder that exists, got {output}")
    try:
        from deltaproof.verify.runner import default_jobs
    except ImportError as error:
        _usage(f"verify needs PyTorch: pip install 'deltaproof[torch]' ({error})")
    workers = jobs or default_jobs(device.value)
    if set_ and (mutants or source_mutants or scenario is not None):
        _usage("--set: expected without --mutants, --source-mutants and --scenario")
    if scenario is not None:
        if mutants or source_mutants or form or probe or case or backend is not None:
            _usage("--scenario: expected without --mutants, --source-mutants, --form, --probe, --case and --backend")
        _scenario(device.value, workers, seed, seeds, format, output)
        return
    if seeds is not None:
        _usage("--seeds: expected together with --scenario, got it without")
    if mutants:
        _mutants(operator, workers, seed, format, output)
        return
    chosen = (tuple(form or ()), tuple(probe or ()), tuple(case or ()))
    if source_mutants:
        _source_mutants(operator, *chosen, backend or "triton", device.value, tier.value, seed, jobs, sample,
                        minutes, tuple(mutant or ()), resume, format, output)  # fmt: skip
        return
    if sample is not None or minutes is not None or mutant or resume is not None:
        _usage("--sample, --minutes, --mutant and --resume: expected together with --source-mutants, got one without")
    _verify(operator, chosen[0], backend or "torch", device.value, tier.value, *chosen[1:], tuple(set_ or ()), seed,
            workers, format, output)  # fmt: skip


def _verify(
    operator: str, forms: tuple[str, ...], backend: str, device: str, tier: str, probes: tuple[str, ...],
    cases: tuple[str, ...], given: tuple[str, ...], seed: int, jobs: int, format: Format, output: Path | None,
) -> None:  # fmt: skip
    import torch

    from deltaproof.ops.registry import operator as find_operator
    from deltaproof.verify.runner import Runner, Selection, StartError, exit_code
    from deltaproof.verify.worker import Setup

    if device == "cuda" and not torch.cuda.is_available():
        _usage("--device: expected a device this machine has, got cuda (no GPU is visible)")
    try:
        setup = Setup(backend, operator, device, seed, threads=1, given=given)
        selection = Selection(find_operator(operator), forms, probes, cases, tier, device, setup.interpreted, given)
        total = len(selection.tasks()[0])
        with _Bar(total) as bar:
            runner = Runner(
                setup, selection, jobs, lambda check: bar(check.probe),
                lambda report: _keep(output, lambda: _write_report(report, format, output)),
            )  # fmt: skip
            report = runner.run(["deltaproof", *sys.argv[1:]])
    except (ContractError, StartError) as error:
        _usage(str(error))
    _write_report(report, format, output)
    raise typer.Exit(exit_code(report))


def _write_report(report: VerifyReport, format: Format, output: Path | None) -> None:
    if format is Format.TEXT:
        from deltaproof.reports.text import print_report

        _write_text(lambda console: print_report(report, console), output)
    else:
        from deltaproof.reports import json_report, markdown

        _write((json_report if format is Format.JSON else markdown).render(report), output)


def _mutants(operator: str, jobs: int, seed: int, format: Format, output: Path | None) -> None:
    from deltaproof.verify.mutants.matrix import run_matrix

    if format is Format.MARKDOWN:
        _usage("--format: expected text or json with --mutants, got markdown")
    try:
        report = run_matrix(jobs=jobs, seed=seed, name=operator)
    except ContractError as error:
        _usage(f"--{error}")
    if format is Format.JSON:
        _write(report.model_dump_json(indent=2) + "\n", output)
    else:
        from deltaproof.reports.mutants_text import print_matrix

        _write_text(lambda console: print_matrix(report, console), output)
    held = report.killed == report.total and not any(cheat.fooled for cheat in report.cheats)
    raise typer.Exit(0 if held else 1)


def _scenario(device: str, jobs: int, seed: int, seeds: int | None, format: Format, output: Path | None) -> None:
    from deltaproof.verify.scenario.table import SEEDS, run_table, tasks_of

    if device != "cpu":
        _usage(f"--device: expected cpu with --scenario, got {device}")
    chosen = range(seed, seed + (seeds or len(SEEDS)))
    with _Bar(tasks_of(chosen)) as bar:
        report = run_table(jobs, chosen, advance=bar)
    if format is Format.JSON:
        _write(report.model_dump_json(indent=2) + "\n", output)
    elif format is Format.MARKDOWN:
        from deltaproof.reports.scenario_text import render_markdown

        _write(render_markdown(report), output)
    else:
        from deltaproof.reports.scenario_text import print_scenario

        _write_text(lambda console: print_scenario(report, console), output)
    raise typer.Exit(0 if report.held else 1)


def _source_mutants(
    operator: str, forms: tuple[str, ...], probes: tuple[str, ...], cases: tuple[str, ...], backend: str, device: str,
    tier: str, seed: int, jobs: int | None, sample: int | None, minutes: float | None, mutants: tuple[str, ...],
    resume: Path | None, format: Format, output: Path | None,
) -> None:  # fmt: skip
    import torch

    from deltaproof.verify.source_mutants.campaign import campaign_for, default_jobs, run
    from deltaproof.verify.source_mutants.resume import read

    if format is Format.MARKDOWN:
        _usage("--format: expected text or json with --source-mutants, got markdown")
    if device == "cuda" and not torch.cuda.is_available():
        _usage("--device: expected a device this machine has, got cuda (no GPU is visible)")
    try:
        campaign = campaign_for(
            operator, device, tier, forms, probes, cases,
            backend=backend, seed=seed, jobs=jobs or default_jobs(), sample=sample, minutes=minutes,
            mutants=mutants,
        )  # fmt: skip
        earlier = None if resume is None else read(resume)
        with _Bar(campaign.size()) as bar:
            report = run(
                campaign, ["deltaproof", *sys.argv[1:]], bar,
                keep=lambda report: _keep(output, lambda: _write_source_mutants(report, format, output)),
                earlier=earlier,
            )  # fmt: skip
    except ContractError as error:
        _usage(str(error))
    _write_source_mutants(report, format, output)
    raise typer.Exit(0 if report.held else 1)


def _keep(output: Path | None, write: Callable[[], None]) -> None:
    """Write a report that is not whole where the whole one will be: a run that is killed has kept its verdicts."""
    if output is not None and replaceable(output):
        write()


def _write_source_mutants(report: SourceMutantsReport, format: Format, output: Path | None) -> None:
    if format is Format.JSON:
        _write(report.model_dump_json(indent=2) + "\n", output)
    else:
        from deltaproof.reports.source_mutants_text import print_source_mutants

        _write_text(lambda console: print_source_mutants(report, console), output)


class _Bar:
    """A progress bar on standard error; nothing where that is no terminal."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("starting", total=total)

    def __enter__(self) -> Callable[[str], None]:
        self.progress.start()
        return self.advance

    def advance(self, name: str) -> None:
        self.progress.update(self.task, advance=1, description=name)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def _usage(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        replace_file(output, text)


def _write_text(render: Callable[[Console], None], output: Path | None) -> None:
    if output is None:
        console = Console()
        render(console if console.is_terminal else Console(width=PIPE_WIDTH))
    else:
        file = StringIO()
        render(Console(file=file, width=PIPE_WIDTH))
        replace_file(output, file.getvalue())
