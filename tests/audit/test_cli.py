"""``deltaproof audit``: options, exit codes, and where the result goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltaproof.audit import registry
from deltaproof.cli.app import app
from tests.audit.rule_for_tests import UnmaskedLoad
from tests.audit.trees import HEAD, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """The user's caches, in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def tree(tmp_path):
    return lay_out(tmp_path / "tree", {"bad.py": HEAD + kernel(), "good.py": "x = 1\n"})


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def findings(*arguments):
    return [item["path"] for item in json.loads(run(*arguments, "--format", "json").stdout)["findings"]]


def test_findings_exit_1_and_nothing_new_exits_0(tree):
    assert run(tree).exit_code == 1
    done = run(tree / "good.py")
    assert done.exit_code == 0
    assert "clean: analysed 1 file" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PATH: expected a file or a folder, or --package"),
        (["no-such-file"], "PATH: expected a file or a folder that exists"),
        ([".", "--select", "HZ999"], "--select: expected a rule's code or name"),
        ([".", "--ignore", "ALL"], "--ignore: expected at least one rule that runs"),
        ([".", "--select", ","], "--select: expected codes or names of rules, got ','"),
        ([".", "--fail-on", "grave"], "--fail-on: expected one of critical"),
        ([".", "--baseline", "no-such-file"], "--baseline: expected a file that can be read"),
        ([".", "--output", "no/such/folder"], "--output: expected a file in a folder that exists"),
        ([".", "--root", "no-such-folder"], "--root: expected a folder that exists"),
        ([".", "--package", "a==1"], "--package: expected neither PATH nor --root with it"),
        (["--package", "a"], "--package: expected NAME==VERSION"),
        (
            ["--claims", "r.md", "--root", ".", "--preview"],
            "no option of rules with it, got --preview",
        ),
        (["--claims", "r.md", "--root", ".", "--write-baseline", "b"], "with it, got --write-baseline"),
        (["--fixed-root", "."], "--fixed-root: expected --claims with it"),
        (["--claims", "report.md"], "--claims: expected --root with it"),
        ([".", "--claims", "report.md", "--root", "."], "--claims: expected --root alone with it"),
    ],
)
def test_a_usage_error_exits_2_and_names_the_option(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--jobs", "0"], ["--no-such-option"]])
def test_what_typer_refuses_exits_2_too(tree, arguments):
    assert run(tree, *arguments).exit_code == 2


def test_a_wrong_setting_exits_2(tree):
    lay_out(tree, {"pyproject.toml": "[tool.deltaproof.audit]\nselct = []\n"})
    done = run(tree)
    assert done.exit_code == 2
    assert "nearest: select" in done.stderr


def test_a_fault_of_the_auditor_exits_2_not_1(tree, monkeypatch):
    def broken():
        raise ImportError("a rule that cannot be imported")

    monkeypatch.setattr(registry, "all_rules", broken)
    done = run(tree)
    assert done.exit_code == 2
    assert "a rule that cannot be imported" in done.stderr


def test_a_rule_that_raises_without_findings_beside_it_exits_2(tree):
    lay_out(tree, {"bad.py": HEAD + kernel("breaks")})
    assert run(tree).exit_code == 2


@pytest.mark.parametrize("format", ["text", "json", "sarif", "markdown", "github"])
def test_a_file_gets_the_result_and_the_terminal_nothing(tree, tmp_path, format):
    done = run(tree, "--format", format, "--output", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    written = (tmp_path / "out").read_text(encoding="utf-8")
    assert "unmasked-load" in written
    assert "bad.py" in written


def test_with_a_root_paths_are_relative_to_it_and_only_the_targets_are_reported(tree):
    lay_out(tree, {"pkg/more.py": HEAD + kernel()})
    assert findings(tree / "pkg" / "more.py", "--root", tree) == ["pkg/more.py"]


def test_rules_are_selected_and_ignored(tree):
    assert findings(tree, "--ignore", "unmasked-load", "--select", "HZ010,HZ101") == []
    assert findings(tree, "--select", "HZ1") == ["bad.py"]


def test_a_preview_rule_runs_with_preview_only(tree, monkeypatch):
    class InPreview(UnmaskedLoad):
        stable = False

    monkeypatch.setattr(registry, "all_rules", lambda: (InPreview(),))
    done = run(tree)
    assert done.exit_code == 2
    assert "none (1 more with --preview)" in done.stderr
    done = run(tree, "--preview", "--format", "json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["findings"][0]["preview"] is True


def test_settings_choose_rules_files_and_the_threshold_and_the_command_line_wins(tree):
    lay_out(
        tree,
        {
            "pyproject.toml": '[tool.deltaproof.audit]\nexclude = ["gen"]\nfail-on = "proven"\n',
            "gen/x.py": HEAD + kernel(),
        },
    )
    assert findings(tree) == ["bad.py"]
    assert run(tree).exit_code == 0
    assert run(tree, "--fail-on", "likely").exit_code == 1


def test_a_baseline_is_written_and_then_only_new_findings_fail(tree, tmp_path):
    base = tmp_path / "base.json"
    done = run(tree, "--write-baseline", base)
    assert done.exit_code == 0
    assert "1 known finding" in done.stderr
    assert run(tree, "--baseline", base).exit_code == 0
    lay_out(tree, {"bad.py": "\n\n# moved\n" + HEAD + kernel()})
    assert run(tree, "--baseline", base).exit_code == 0
    lay_out(tree, {"bad.py": HEAD + kernel() + kernel("second")})
    assert run(tree, "--baseline", base).exit_code == 1
    lay_out(tree, {"pyproject.toml": '[tool.deltaproof.audit]\nbaseline = "../base.json"\n'})
    assert run(tree).exit_code == 1
    assert run(tree, "--write-baseline", base).exit_code == 0
    assert run(tree).exit_code == 0


def test_results_are_kept_with_the_users_caches_unless_told_otherwise(tree, tmp_path):
    kept = tmp_path / "xdg" / "deltaproof" / "audit"
    run(tree, "--no-cache")
    assert not kept.exists()
    first = run(tree).output
    assert len(list(kept.glob("audit-*.json"))) == 1
    assert run(tree).output.splitlines()[:5] == first.splitlines()[:5]


@pytest.mark.parametrize("inside", [".deltaproof_cache", ".cache/deltaproof/audit"])
def test_a_tree_cannot_bring_its_own_verdict(tree, tmp_path, monkeypatch, inside):
    lay_out(tree, {"pyproject.toml": ""})
    assert run(tree).exit_code == 1
    [entry] = (tmp_path / "xdg" / "deltaproof" / "audit").glob("audit-*.json")
    clean = json.dumps({**json.loads(entry.read_text()), "findings": []})
    lay_out(tree, {f"{inside}/{entry.name}": clean})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / ".cache"))
    assert run(tree).exit_code == 1
    assert run(tree / "bad.py", "--root", tree).exit_code == 1
    assert (tree / inside / entry.name).read_text() == clean


def test_a_link_in_the_tree_is_not_written_through(tree, tmp_path):
    lay_out(tmp_path, {"victim/audit-mine.json": "", "tree/pyproject.toml": ""})
    (tree / ".deltaproof_cache").symlink_to(tmp_path / "victim")
    assert run(tree).exit_code == 1
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["audit-mine.json"]


def test_dismissed_candidates_are_named_on_demand(tree):
    lay_out(tree, {"good.py": HEAD + kernel("safe")})
    assert "the function is safe" not in run(tree).output
    assert "the function is safe" in run(tree, "--show-dismissed").output


def test_an_archive_on_disk_is_audited_and_its_own_settings_do_not_count(tmp_path):
    made = tmp_path / "p-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("p/ops.py", HEAD + kernel())
        file.writestr("pyproject.toml", '[tool.deltaproof.audit]\nignore = ["HZ101"]\n')
    done = run("--package", made, "--format", "json")
    assert done.exit_code == 1
    assert [item["path"] for item in json.loads(done.stdout)["findings"]] == ["p/ops.py"]
    assert not (tmp_path / "xdg").exists()


def test_an_archive_that_is_not_safe_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as file:
        file.writestr("../evil.py", "x = 1\n")
    done = run("--package", tmp_path / "p.whl")
    assert done.exit_code == 2
    assert "a path that leaves the archive" in done.stderr


def test_an_option_and_a_path_with_escapes_do_not_reach_the_terminal(tree):
    done = run(tree, "--select", "\x1b[31mred")
    assert done.exit_code == 2
    assert "\x1b[31m" not in done.stderr


def test_neither_torch_nor_triton_nor_what_is_audited_is_imported(tree, tmp_path):
    lay_out(tree, {"good.py": "raise SystemExit('imported')\n"})
    code = (
        "import sys\nfrom deltaproof.cli.app import app\n"
        f"sys.path.insert(0, {str(tree)!r})\n"
        f"app(['audit', {str(tree)!r}, '--select', 'ALL', '--preview', '--no-cache'], standalone_mode=False)\n"
        "print(sorted({'torch', 'triton', 'numpy', 'good', 'bad'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def in_encoding(encoding, *arguments):
    """Run the command in a process whose standard output has an encoding; return it and what came out."""
    command = [sys.executable, "-m", "deltaproof", "audit", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, timeout=120)
    return done, done.stdout.decode(encoding)


HARD = "\u6f22 \U0001f600 \xe9"


@pytest.fixture
def hard(tmp_path):
    """A tree whose finding quotes characters that few encodings have."""
    return lay_out(tmp_path / "hard", {"bad.py": f"x = 1  # deltaproof: ignore[unmasked-load] {HARD}\n"})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("format", ["text", "markdown"])
def test_what_the_output_cannot_show_is_escaped(hard, encoding, format):
    done, text = in_encoding(encoding, hard, "--no-cache", "--format", format)
    assert (done.returncode, done.stderr) == (1, b"")
    for char in HARD.split():
        assert (char if char.encode(encoding, "ignore") else json.dumps(char).strip('"')) in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("format", ["json", "sarif"])
def test_data_says_the_same_in_every_encoding(hard, encoding, format):
    done, text = in_encoding(encoding, hard, "--no-cache", "--format", format)
    assert done.returncode == 1
    assert HARD in json.dumps(json.loads(text), ensure_ascii=False)


def test_a_file_is_utf_8_whatever_the_terminal_has(hard, tmp_path):
    done, text = in_encoding("ascii", hard, "--no-cache", "--output", tmp_path / "out")
    assert (done.returncode, text) == (1, "")
    assert HARD in (tmp_path / "out").read_text(encoding="utf-8")
