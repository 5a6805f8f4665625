"""``deltaproof explain`` and the command it belongs to."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deltaproof.cli import app as application
from deltaproof.contracts.clauses import CLAUSES
from deltaproof.contracts.errors import ContractError
from deltaproof.hazards import HAZARDS
from deltaproof.reports import explain as texts


def run(*arguments: str):
    return CliRunner().invoke(application.app, list(arguments))


@pytest.mark.parametrize("key", ["P1", "p1"])
def test_a_clause_is_explained_with_its_text_and_hazards(key):
    done = run("explain", key)
    assert done.exit_code == 0
    assert done.output.startswith("# P1 padding-rows\n")
    assert CLAUSES["P1"].text in done.output
    assert "`padding-slot-address` (HZ302)" in done.output


@pytest.mark.parametrize("key", ["padding-slot-address", "HZ302", "hz302"])
def test_a_hazard_is_explained_by_name_or_code(key):
    done = run("explain", key)
    assert done.exit_code == 0
    assert done.output.startswith("# padding-slot-address\n")
    for text in (HAZARDS["padding-slot-address"].avoid, "P2 named-slots-only", "`slots`", "pull/2810"):
        assert text in done.output


def test_a_probe_is_explained_by_its_docstring(monkeypatch):
    monkeypatch.setattr(
        texts, "probe_texts", lambda: {"large_offsets": ("Offsets are 64-bit", "## What it does\n\nWaits.")}
    )
    for key in ("large_offsets", "large-offsets"):
        assert texts.explain(key) == "# Offsets are 64-bit\n\n## What it does\n\nWaits.\n"


@pytest.mark.parametrize("key", [*CLAUSES, *HAZARDS])
def test_every_clause_and_hazard_can_be_explained(key):
    assert key in texts.explain(key).splitlines()[0]


def test_an_unknown_key_exits_2_and_suggests_the_nearest():
    done = run("explain", "padding-slot-adress")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "key: expected a clause code, a hazard's or rule's name or code, or a probe's name" in done.stderr
    assert "padding-slot-address" in done.stderr and "got 'padding-slot-adress'" in done.stderr


def test_a_probe_without_a_module_is_an_unknown_key():
    with pytest.raises(ContractError) as raised:
        texts.explain("no_such_probe")
    assert raised.value.argument == "key" and raised.value.got == "'no_such_probe'"


def test_a_missing_key_is_a_usage_error():
    assert run("explain").exit_code == 2


def test_in_a_terminal_the_text_is_formatted(monkeypatch):
    monkeypatch.setattr("deltaproof.cli.explain.sys.stdout.isatty", lambda: True, raising=False)
    from deltaproof.cli.explain import explain

    shown = []
    monkeypatch.setattr("deltaproof.cli.explain.Console.print", lambda self, content: shown.append(content))
    explain("P1")
    assert shown[0].markup.startswith("# P1 padding-rows")


def test_help_names_the_commands():
    done = run("--help")
    assert done.exit_code == 0
    assert all(name in done.output for name in application.COMMANDS)


def test_version_names_the_package_and_the_contract():
    done = run("--version")
    assert done.exit_code == 0
    assert done.output.startswith("deltaproof ") and "(contract version 1)" in done.output


def test_an_unknown_command_exits_2():
    assert run("no-such-command").exit_code == 2


def test_a_command_is_added_by_one_line_and_loaded_only_when_it_is_used(monkeypatch, tmp_path):
    (tmp_path / "shouting.py").write_text(
        "def shout(word: str, times: int = 1) -> None:\n    '''Say it loudly.'''\n    print(word.upper() * times)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(application.COMMANDS, "shout", "shouting:shout")
    monkeypatch.delitem(sys.modules, "shouting", raising=False)
    assert run("explain", "P1").exit_code == 0
    assert "shouting" not in sys.modules
    assert run("shout", "ab", "--times", "2").output == "ABAB\n"
    assert "Say it loudly." in run("--help").output


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "P1"]])
def test_it_runs_as_a_module_where_torch_cannot_be_imported(arguments):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        f"sys.argv = ['deltaproof', *{arguments!r}]\n"
        "import runpy; runpy.run_module('deltaproof', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
