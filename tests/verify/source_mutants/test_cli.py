"""The command line of source mutants: what it refuses before anything runs, and what a killed run leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from deltaproof.cli.verify import verify
from deltaproof.reports.source_mutants import SourceMutantsReport

APP = typer.Typer()
APP.command()(verify)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample", "3"], "--source-mutants"),
        (["--minutes", "3"], "--source-mutants"),
        (["--mutant", "x"], "--source-mutants"),
        (["--resume", "x.json"], "--source-mutants"),
        (["--source-mutants", "--resume", "none.json"], "resume: expected a JSON result of --source-mutants"),
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


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_what_it_knew_in_place_of_an_older_file(interpreter, tmp_path) -> None:
    path = tmp_path / "result.json"
    path.write_text("older")
    command = [sys.executable, "-m", "deltaproof", "verify", "--source-mutants", "--form", "decode", "--probe", "slots"]
    command += ["--jobs", "1", "--format", "json", "--output", str(path)]
    process = subprocess.Popen(command, env=interpreter, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while path.read_text() == "older" and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    report = SourceMutantsReport.model_validate_json(path.read_text())
    assert not report.complete and not report.held
    assert report.not_begun + report.total == report.generated > 0
