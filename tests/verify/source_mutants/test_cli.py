"""The command line of source mutants refuses what it cannot do, before anything runs."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from deltaproof.cli.verify import verify

APP = typer.Typer()
APP.command()(verify)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample", "3"], "--source-mutants"),
        (["--minutes", "3"], "--source-mutants"),
        (["--mutant", "x"], "--source-mutants"),
        (["--source-mutants", "--format", "markdown"], "expected text or json"),
        (["--source-mutants", "--mutant", "no-such"], "mutant: expected the id of a mutant"),
        (["--source-mutants", "--probe", "no-such"], "probe: expected one of"),
        (["--source-mutants", "--operator", "no-such"], "operator: expected one of"),
    ],
)
def test_it_says_what_was_expected_and_ends_with_2(words: list[str], said: str) -> None:
    done = CliRunner().invoke(APP, words)
    assert done.exit_code == 2
    assert said in done.output
