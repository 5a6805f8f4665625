"""The command line of ``verify --mutants``: which operators it knows, and what its exit code says."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from deltaproof.cli.verify import verify
from deltaproof.verify.mutants import matrix, mutants

APP = typer.Typer()
APP.command()(verify)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--operator", "no-such"], "--operator: expected one that has mutants (causal_conv1d, gated_delta_rule, kda)"),
        (["--operator", "causal_conv1d", "--format", "markdown"], "--format: expected text or json with --mutants"),
    ],
)
def test_it_says_what_was_expected_and_ends_with_2(words: list[str], said: str) -> None:
    done = CliRunner().invoke(APP, ["--mutants", *words])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(("form", "code"), [("decode", 0), ("prefill", 1)])
def test_the_operator_is_the_one_asked_for_and_a_living_mutant_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, form: str, code: int
) -> None:
    # num_tokens is of decode alone: in prefill this mutant is a right backend
    known = mutants("causal_conv1d")["token-count-ignored"]
    chosen = known.__class__(**{**vars(known), "form": form})
    monkeypatch.setattr(matrix, "_catalogue", lambda name: (chosen,) if name == "causal_conv1d" else ())
    monkeypatch.setattr(matrix, "try_cheats", _none)
    words = ["--mutants", "--operator", "causal_conv1d", "--jobs", "1", "--format", "json"]
    done = CliRunner().invoke(APP, words)
    report = json.loads(done.output)
    assert (report["operator"], report["total"], report["killed"]) == ("causal_conv1d", 1, 1 - code)
    assert report["naive_suite"]
    assert done.exit_code == code


def _none(name: str, seed: int) -> list[object]:
    return []
