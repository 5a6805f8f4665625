"""``deltaproof explain KEY``: the text behind a name that a report prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from deltaproof.contracts.errors import ContractError
from deltaproof.reports import explain as texts

KeyArgument = Annotated[
    str,
    typer.Argument(
        help="A clause (P1), a hazard or rule (padding-slot-address or HZ302) or a probe (slots).", show_default=False
    ),
]


def explain(key: KeyArgument) -> None:
    """Explain a clause of the contract, a hazard, a rule of the audit or a probe.

    In a terminal the text is formatted; in a pipe it is the Markdown source. Exits 2 if nothing has this name.
    """
    try:
        text = texts.explain(key)
    except ContractError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    if sys.stdout.isatty():
        Console().print(Markdown(text))
    else:
        typer.echo(text, nl=False)
