"""``deltaproof audit``: find the catalogue's hazards in source text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltaproof.contracts.errors import ContractError
from deltaproof.reports.replace_file import replace_file
from deltaproof.reports.standard_output import write_out
from deltaproof.reports.visible import visible

if TYPE_CHECKING:
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
        Path | None,
        typer.Option(help="Write the findings to this file as known ones, and exit 0, or 2 where a rule failed."),
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
            unused = {"--select": select, "--ignore": ignore, "--preview": preview, "--baseline": baseline,
                      "--write-baseline": write_baseline, "--show-dismissed": show_dismissed, "--fail-on": fail_on,
                      "--jobs": jobs, "--no-cache": no_cache}  # fmt: skip
            for option, value in unused.items():
                if value:
                    raise ContractError("--claims", "no option of rules with it", option)
            _claims(claims, root, fixed_root, paths, package, format, output)
        report, threshold = _report(
            paths or [], package, root, write_baseline is not None,
            select=select or (), ignore=ignore or (), preview=preview, baseline=baseline, fail_on=fail_on, jobs=jobs,
            cached=not no_cache,
        )  # fmt: skip
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
    from deltaproof.reports.audit_summary import exit_code, plural, rule_failures

    if write_baseline is not None:
        typer.echo(f"wrote {write_baseline}: {plural(len(report.findings), 'known finding')}", err=True)
        raise typer.Exit(2 if rule_failures(report) else 0)
    raise typer.Exit(exit_code(report, threshold))


def _report(
    paths: list[Path], package: str | None, root: Path | None, all_new: bool, **options: Any
) -> tuple[AuditReport, str | None]:
    """Return the report, and the severity or verdict that fails the run."""
    from deltaproof.audit.request import Request, audit_package, carry_out

    command = shlex.join(["deltaproof", *sys.argv[1:]])
    request = Request(paths, root, all_new=all_new, command=command, **options)
    if package is not None:
        if paths or root is not None:
            raise ContractError("--package", "neither PATH nor --root with it", package)
        with _Bar() as progress:
            return audit_package(package, request, progress), request.fail_on
    if not paths:
        raise ContractError("PATH", "a file or a folder, or --package", "nothing")
    request = request.with_settings()
    with _Bar() as progress:
        return carry_out(request, progress), request.fail_on


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
        # typer.echo would write UTF-8 where the output is ASCII.
        write_out(text)
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
