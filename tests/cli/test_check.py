"""``deltaproof check`` holds on this machine, and does not hold where a part of it fails."""

import io
import zipfile

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deltaproof.cli import check as command
from deltaproof.cli import check_source
from deltaproof.cli.app import app


@pytest.fixture
def screen():
    return Console(width=100, record=True, file=io.StringIO())


@pytest.mark.slow
def test_all_four_parts_hold_here():
    done = CliRunner().invoke(app, ["check", "--jobs", "1"], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.stdout
    text = done.stdout
    assert "cached generation" in text
    assert "large_offsets" in text
    assert "0 fail" in text
    for piece in ("P2", "padding-slot-address", "slot -1", "expected", "value", "deltaproof verify", "--case"):
        assert piece in text.split("3. The incident")[1], piece
    assert text.rstrip().endswith("all four parts hold")


def test_the_incident_is_caught_with_its_clause_slot_and_repeat(screen):
    assert command._incident(screen, "cpu", 0, 1) is True
    text = screen.export_text()
    assert "P2 Only slots" in text
    assert "hazard    padding-slot-address" in text
    assert "slot      -1" in text
    assert "deltaproof.verify.mutants.slots:RawNegative" in text


def test_a_backend_without_the_fault_is_not_called_caught(screen, monkeypatch):
    monkeypatch.setattr(command, "PLANTED", "torch")
    assert command._incident(screen, "cpu", 0, 1) is False
    assert "not caught" in screen.export_text()


def test_a_model_that_differs_does_not_hold(screen, monkeypatch):
    from deltaproof.integrations import transformers_demo
    from deltaproof.integrations.transformers_demo import DemoRow

    monkeypatch.setattr(transformers_demo, "run_demo", lambda seed: [DemoRow("prefill", 0.1, 1e-5, None, 0.0, 3)])
    assert command._model(screen, 0) is False
    assert "differs" in screen.export_text()


def test_a_model_that_cannot_run_is_said_and_no_pass(screen, monkeypatch):
    from deltaproof.integrations import transformers_demo

    monkeypatch.setattr(transformers_demo, "why_not", lambda: "transformers is not installed")
    assert command._model(screen, 0) is None
    assert "transformers is not installed" in screen.export_text()


def test_the_public_bug_is_found_before_its_fix_and_not_after(screen):
    assert check_source.story(screen) is True
    text = screen.export_text()
    assert "unmasked-load (HZ101)" in text and "b_g = tl.load(g + token * K + k_at)" in text
    assert "after the fix: nothing found" in text


def test_a_story_that_is_not_told_does_not_hold(screen, monkeypatch):
    monkeypatch.setattr(check_source, "STORY", "narrow-offset")
    assert check_source.story(screen) is False
    assert "not told" in screen.export_text()


def test_a_package_is_audited_and_verified_only_where_this_version_is_installed(tmp_path):
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo/__init__.py", "x = 1\n")
    done = CliRunner().invoke(app, ["check", "--package", str(wheel)])
    assert done.exit_code == 0, done.output
    assert "not verified" in done.stdout and "analysed 1 file" in done.stdout


def test_a_package_that_cannot_be_named_is_refused():
    done = CliRunner().invoke(app, ["check", "--package", "no version"])
    assert done.exit_code == 2 and "package" in done.output
