"""``deltaproof check``: a real model, the smoke tier, a planted fault and a public bug, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deltaproof.cli.check_source import package as check_package
from deltaproof.cli.check_source import story
from deltaproof.contracts.errors import ContractError

if TYPE_CHECKING:
    from deltaproof.reports.model import Check, VerifyReport

OPERATOR = "gated_delta_rule"
PLANTED = "deltaproof.verify.mutants.slots:RawNegative"
INCIDENT = "decode"


def check(
    seed: Annotated[int, typer.Option(help="Seed of every input.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes; up to 4 on the CPU, 1 on a GPU.")] = None,
    package: Annotated[
        str | None, typer.Option(help="NAME==VERSION: audit this package instead, and verify it if it is installed.")
    ] = None,
) -> None:
    """Run a real model through our operators, verify the default backend, and catch two bugs.

    Exits 0 if the model agrees, the smoke tier passes and both bugs are caught, 1 if one of them does not hold, 2 if
    the check itself could not run. With --package: 1 on findings or failures.
    """
    console = Console()
    if package is not None:
        raise typer.Exit(_package(console, package, seed, jobs))
    console.print("[bold]deltaproof check[/bold]: a real model, the contract, a planted bug and a public one caught")
    try:
        from deltaproof.verify.runner import default_jobs
    except ImportError as error:
        typer.echo(f"check needs PyTorch: pip install 'deltaproof[torch,transformers]' ({error})", err=True)
        raise typer.Exit(2) from error
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = jobs or default_jobs(device)
    held = [
        _model(console, seed),
        _smoke(console, device, seed, workers),
        _incident(console, device, seed, workers),
        story(console),
    ]
    console.print()
    if None in held:
        console.print("deltaproof check: a part could not run; see above")
        raise typer.Exit(2)
    verdict = "all four parts hold" if all(held) else "a part does not hold; see above"
    console.print(f"[bold]deltaproof check: {verdict}[/bold]")
    raise typer.Exit(0 if all(held) else 1)


def _package(console: Console, spec: str, seed: int, jobs: int | None) -> int:
    """Audit a package, and verify it where its backend is installed in that very version."""
    try:
        code, backend = check_package(console, spec)
    except ContractError as error:
        typer.echo(str(error), err=True)
        return 2
    if backend is None:
        return code
    import torch

    from deltaproof.reports.text import print_report
    from deltaproof.verify.runner import default_jobs, exit_code

    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = _run(backend, device, seed, jobs or default_jobs(device))
    print_report(report, console)
    return max(code, exit_code(report))


def _model(console: Console, seed: int) -> bool | None:
    from deltaproof.integrations.transformers_demo import run_demo, why_not

    console.print("\n[bold]1. A real client[/bold]: transformers' Qwen3-Next, small, random weights, float32")
    reason = why_not()
    if reason is not None:
        console.print(f"cannot run: {reason}")
        return None
    rows = run_demo(seed)
    table = Table(box=None, pad_edge=False)
    for name in ("comparison", "difference", "allowed", "same tokens", "our calls", "seconds"):
        table.add_column(name, justify="left" if name == "comparison" else "right")
    for row in rows:
        tokens = {None: "-", True: "yes", False: "NO"}[row.tokens_equal]
        verdict = "" if row.passed else "[bold red] differs[/bold red]"
        table.add_row(
            row.name + verdict,
            f"{row.difference:.2g}",
            f"{row.tolerance:.2g}",
            tokens,
            str(row.calls),
            f"{row.seconds:.2f}",
        )
    console.print(table)
    console.print("Against transformers' own path; a difference is a share of the largest value of its result.")
    return all(row.passed for row in rows)


def _run(backend: str, device: str, seed: int, jobs: int, **selection: tuple[str, ...]) -> VerifyReport:
    from deltaproof.ops.registry import operator
    from deltaproof.verify.runner import Runner, Selection
    from deltaproof.verify.worker import Setup

    setup = Setup(backend, OPERATOR, device, seed, threads=1)
    chosen = Selection(operator(OPERATOR), device=device, **selection)  # type: ignore[arg-type]
    return Runner(setup, chosen, jobs).run(["deltaproof", "check"])


def _smoke(console: Console, device: str, seed: int, jobs: int) -> bool | None:
    from deltaproof.backends.registry import preferred
    from deltaproof.reports.text import print_report
    from deltaproof.verify.runner import exit_code

    held: list[bool | None] = []
    for name in preferred(OPERATOR, device):
        console.print(f"\n[bold]2. The contract[/bold]: backend {name} on {device}, smoke tier")
        report = _run(name, device, seed, jobs)
        print_report(report, console)
        held.append({0: True, 1: False}.get(exit_code(report)))
    return False if False in held else None if None in held else True


def _incident(console: Console, device: str, seed: int, jobs: int) -> bool | None:
    """Plant the fault behind a public accuracy drop: a padding index of -1 used as an address."""
    from deltaproof.reports.model import Status

    console.print("\n[bold]3. The incident[/bold]: a padding index of -1 used as an address, planted")
    report = _run(PLANTED, device, seed, jobs, probes=("slots",), forms=(INCIDENT,))
    failed = list(report.of(Status.FAIL))
    caught = [item for item in failed if item.hazard == "padding-slot-address" and item.location is not None]
    if list(report.of(Status.ERROR)):
        console.print("the harness failed; repeat with: deltaproof verify --probe slots --backend " + PLANTED)
        return None
    if not caught:
        console.print("[bold red]not caught[/bold red]: the probe passed a backend that uses -1 as an address")
        return False
    counts = report.counts()
    console.print(f"caught: {len(failed)} of {counts['pass'] + counts['fail']} slot checks fail; the first:")
    console.print(_finding(caught[0]))
    console.print("repeat it alone:")
    console.print(caught[0].repeat, soft_wrap=True, highlight=False, markup=False)
    return True


def _finding(item: Check) -> Table:
    from deltaproof.contracts.clauses import CLAUSES

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    slot = None if item.location is None else item.location.slot
    rows = {
        "clause": f"{item.clause} {CLAUSES[item.clause].title}",
        "hazard": item.hazard,
        "where": str(item.location),
        "slot": slot,
        "expected": item.expected,
        "value": item.value,
        "seen": item.message,
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, str(value))
    return table
