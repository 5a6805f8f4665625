"""What the command line does with a report: check it, write the result, say how to exit."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from deltaproof.audit.claims.check import check_claims
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.claims import exit_code
from deltaproof.reports.claims_text import print_claims, render, render_json, render_markdown
from deltaproof.reports.replace_file import replace_file
from deltaproof.reports.standard_output import write_out

_RENDERERS = {"text": render, "json": render_json, "markdown": render_markdown}


def run_claims(
    report: Path, root: Path, fixed_root: Path | None = None, *, format: str = "text", output: Path | None = None
) -> int:
    """Check a report and write the result to a file or to standard output.

    Args:
        report: the report, a Markdown file.
        root: the tree that it is about.
        fixed_root: a newer tree, or None.
        format: "text", "json" or "markdown".
        output: file for the result; standard output if None.

    Returns:
        The exit status: 1 if a claim is absent or names a missing file, else 0.

    Raises:
        ContractError: an argument is of no use; nothing was written.
    """
    if format not in _RENDERERS:
        raise ContractError("--format", "text, json or markdown with --claims", format)
    if output is not None and not output.resolve().parent.is_dir():
        raise ContractError("--output", "a file in a folder that exists", output)
    checked = check_claims(report, root, fixed_root)
    if output is not None:
        replace_file(output, _RENDERERS[format](checked))
    elif format == "text" and sys.stdout.isatty():
        print_claims(checked, Console())
    else:
        write_out(_RENDERERS[format](checked))
    return exit_code(checked)
