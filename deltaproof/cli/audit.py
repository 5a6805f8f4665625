"""``deltaproof audit``: find the catalogue's hazards in source text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltaproof.contracts.errors import ContractError
from deltaproof.reports.replace_file import replace_file
from deltaproof.reports.visible import visible

if TYPE_CHECKING:
    from deltaproof.audit.settings import Settings
    from deltaproof.reports.audit import AuditReport

PIPE_WIDTH = 160


class Format(str, Enum):
    """How the result is written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    MARKDOWN = "markdown"
    GITHUB = "github"


def audit(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Files and folders to audit.", show_default=False)
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="NAME==VERSION",
            help="Audit a published package's wheel, or an archive on disk. Nothing of it is built or run.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Tree that rules may look at while only PATH is reported; paths are relative to it."),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="CODES", help="Rules to run: codes, names or beginnings of codes, with commas."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODES", help="Rules not to run, named as in --select.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Run the rules too whose precision is not yet measured.")
    ] = False,
    format: Annotated[Format, typer.Option(help="Format of the result.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option(help="File for the result instead of standard output.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="File of known findings: only others fail the run.", show_default=False)
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option(help="Write the findings to this file as known ones, and exit 0.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores, up to 8.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep results.")] = False,
    show_dismissed: Annotated[
        bool, typer.Option("--show-dismissed", help="Name the candidates that rules considered and dropped.")
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="VERDICT|SEVERITY", help="Fail only on findings at least so sure or so grave."),
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(metavar="REPORT.md", help="Check the claims of a report against the tree in --root.")
    ] = None,
    fixed_root: Annotated[
        Path | None, typer.Option(help="With --claims: a later tree, to see what has changed there.")
    ] = None,
) -> None:
    """Find hazards in Python and Triton source, with the lines that show them. Nothing audited is imported or run.

    Exits 0 if there is nothing new, 1 on findings, 2 on a usage error or where a rule failed.
    """
    try:
        _writable("--output", output)
        _writable("--write-baseline", write_baseline)
        if claims is not None or fixed_root is not None:
            _claims(claims, root, fixed_root, paths, package, format, output)
        with ExitStack() as stack:
            targets, base, cached = _targets(stack, paths or [], package, root)
            settings = _settings(base if base is not None else None, targets, package)
            _check_threshold(fail_on)
            report = _run(targets, base, settings, select, ignore, preview, baseline, write_baseline, jobs,
                          cached and not no_cache)  # fmt: skip
        if write_baseline is not None:
            from deltaproof.audit.baseline import render as render_baseline

            replace_file(write_baseline, render_baseline(report.findings))
        _show(report, format, output, show_dismissed)
    except ContractError as error:
        _usage(str(error))
    except OSError as error:
        _usage(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        # Python's own exit code for a crash is that of findings.
        Console(stderr=True).print_exception()
        _usage("the auditor failed; this is a fault of its own")
    if write_baseline is not None:
        typer.echo(f"wrote {write_baseline}: {len(report.findings)} findings are known from now on", err=True)
        raise typer.Exit(0)
    from deltaproof.reports.audit_summary import exit_code

    raise typer.Exit(exit_code(report, fail_on if fail_on is not None else settings.fail_on))


def _targets(
    stack: ExitStack, paths: list[Path], package: str | None, root: Path | None
) -> tuple[list[Path], Path | None, bool]:
    """Return the targets, the root if one is named, and whether results may be kept."""
    if package is None:
        if not paths:
            raise ContractError("PATH", "a file or a folder, or --package", "nothing")
        return paths, root, True
    if paths or root is not None:
        raise ContractError("--package", "neither PATH nor --root with it", package)
    from deltaproof.audit.package import PackageError

    try:
        folder = stack.enter_context(_unpacked(package))
    except PackageError as error:
        raise ContractError("--package", "a wheel that can be fetched and unpacked", str(error)) from None
    return [folder], folder, False


def _unpacked(spec: str) -> AbstractContextManager[Path]:
    from contextlib import contextmanager

    from deltaproof.audit import package as packages

    @contextmanager
    def folder():  # type: ignore[no-untyped-def]
        on_disk = Path(spec)
        opened = packages.archive(on_disk) if on_disk.is_file() else packages.package(spec)
        with opened as found:
            yield found.root

    return folder()


def _settings(root: Path | None, targets: list[Path], package: str | None) -> Settings:
    from deltaproof.audit import settings
    from deltaproof.audit.discover import default_root

    # A package's own settings would choose what is found in it.
    return settings.Settings() if package is not None else settings.load((root or default_root(targets)).resolve())


def _check_threshold(name: str | None) -> None:
    from deltaproof.audit.settings import THRESHOLDS

    if name is not None and name not in THRESHOLDS:
        raise ContractError("--fail-on", f"one of {', '.join(THRESHOLDS)}", repr(name))


def _run(
    targets: list[Path], root: Path | None, settings: Settings, select: list[str] | None, ignore: list[str] | None,
    preview: bool, baseline: Path | None, write_baseline: Path | None, jobs: int | None, cached: bool,
) -> AuditReport:  # fmt: skip
    from deltaproof.audit import baseline as baselines
    from deltaproof.audit.cache import Cache, folder_for
    from deltaproof.audit.discover import default_root
    from deltaproof.audit.engine import run
    from deltaproof.audit.own_rules import OWN_RULES
    from deltaproof.audit.registry import all_rules, chosen

    known_rules = (*all_rules(), *OWN_RULES)
    rules = chosen(
        known_rules,
        select=select or settings.select,
        ignore=(*(ignore or ()), *settings.ignore),
        preview=preview or settings.preview,
    )
    if not any(rule not in OWN_RULES for rule in rules) and not any(_names(select, rule.name) for rule in OWN_RULES):
        waiting = len(known_rules) - len(OWN_RULES)
        raise ContractError("--select", "at least one rule that runs", f"none ({waiting} with --preview)")
    place = baseline if baseline is not None else settings.baseline
    # Whoever writes a baseline anew wants all findings in it.
    known = baselines.load(place) if place is not None and write_baseline is None else None
    cache = Cache(folder_for((root or default_root(targets)).resolve())) if cached else None
    with _Bar() as progress:
        return run(
            targets, rules, root=root, exclude=settings.exclude, jobs=jobs, cache=cache, known=known,
            command=shlex.join(["deltaproof", *sys.argv[1:]]), progress=progress,
        )  # fmt: skip


def _names(select: list[str] | None, name: str) -> bool:
    return any(name == part.strip() for key in select or () for part in key.split(","))


def _claims(
    claims: Path | None, root: Path | None, fixed_root: Path | None, paths: list[Path] | None, package: str | None,
    format: Format, output: Path | None,
) -> NoReturn:  # fmt: skip
    if claims is None:
        raise ContractError("--fixed-root", "--claims with it", "none")
    if paths or package is not None:
        raise ContractError("--claims", "--root alone with it", "PATH or --package")
    if root is None:
        raise ContractError("--claims", "--root with it", "none")
    from deltaproof.audit.claims import run_claims

    raise typer.Exit(run_claims(claims, root, fixed_root, format=format.value, output=output))


def _show(report: AuditReport, format: Format, output: Path | None, dismissed: bool) -> None:
    if format is Format.TEXT:
        from deltaproof.reports.audit_text import print_audit

        _write_text(lambda console: print_audit(report, console, dismissed=dismissed), output)
        return
    if format is Format.JSON:
        from deltaproof.reports.audit_json import render

        text = render(report)
    elif format is Format.MARKDOWN:
        from deltaproof.reports.audit_markdown import render as render_markdown

        text = render_markdown(report, dismissed=dismissed)
    elif format is Format.GITHUB:
        from deltaproof.reports.audit_github import render as render_github

        text = render_github(report)
    else:
        from deltaproof.reports.audit_sarif import render as render_sarif
        from deltaproof.reports.rule_text import rule_texts

        text = render_sarif(report, rule_texts())
    if output is None:
        typer.echo(text, nl=False)
    else:
        replace_file(output, text)


class _Bar:
    """A progress bar on standard error; nothing where that is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        # Drawn when a file is done, by no thread of its own: processes are started beside it.
        self.progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
        )
        self.task = self.progress.add_task("files", total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return self.advance

    def advance(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)
        if done % 16 == 0 or done == total:
            self.progress.refresh()

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def _writable(option: str, path: Path | None) -> None:
    if path is not None and not path.resolve().parent.is_dir():
        raise ContractError(option, "a file in a folder that exists", str(path))


def _usage(message: str) -> NoReturn:
    typer.echo(visible(message), err=True)
    raise typer.Exit(2)


def _write_text(render: Callable[[Console], None], output: Path | None) -> None:
    if output is None:
        console = Console()
        render(console if console.is_terminal else Console(width=PIPE_WIDTH))
    else:
        buffer = StringIO()
        render(Console(file=buffer, width=PIPE_WIDTH))
        replace_file(output, buffer.getvalue())
