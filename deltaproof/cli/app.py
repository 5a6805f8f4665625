"""The ``deltaproof`` command: its subcommands are imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltaproof.reports.standard_output import escape_what_it_cannot_show

COMMANDS = {
    "check": "deltaproof.cli.check:check",
    "verify": "deltaproof.cli.verify:verify",
    "audit": "deltaproof.cli.audit:audit",
    "bench": "deltaproof.cli.bench:bench",
    "explain": "deltaproof.cli.explain:explain",
}
"""Subcommand -> ``module:function``, in the order of ``--help``.

The function's signature and docstring are the command. Its module imports torch, if at all, inside the function:
``--help`` loads every module named here, and runs where torch is not installed.
"""


class LazyGroup(TyperGroup):
    """A group whose commands are named in ``COMMANDS`` and loaded one by one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module, _, function = COMMANDS[cmd_name].partition(":")
            single = typer.Typer(add_completion=False)
            single.command(name=cmd_name)(getattr(import_module(module), function))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands[cmd_name]


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import deltaproof
    from deltaproof.contracts.clauses import CONTRACT_VERSION

    typer.echo(f"deltaproof {deltaproof.__version__} (contract version {CONTRACT_VERSION})")
    raise typer.Exit()


@app.callback()
def deltaproof_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold delta-rule attention kernels to one written contract."""
    escape_what_it_cannot_show()


def main() -> None:
    """Run the command line."""
    app(prog_name="deltaproof")
