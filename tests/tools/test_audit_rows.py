"""The scorer of labelled bugs, on a repository made for it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BAD = """
import triton
import triton.language as tl

@triton.jit
def scale(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) * 2, mask=at < n)
"""


@pytest.fixture(scope="module")
def tool():
    """Return the scorer, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("audit_rows", ROOT / "tools" / "audit_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repos(tmp_path: Path) -> tuple[Path, str, str]:
    """Return a folder of mirrors, a commit with a bug, and the commit that mends it."""
    work = tmp_path / "work"
    (work / "pack").mkdir(parents=True)

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *who, *words], cwd=work, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    commits = []
    for source in (BAD, BAD.replace("tl.load(x + at)", "tl.load(x + at, mask=at < n, other=0.0)")):
        (work / "pack" / "kernels.py").write_text(source)
        git("add", ".")
        git("commit", "-q", "-m", "kernels")
        commits.append(git("rev-parse", "HEAD"))
    mirrors = tmp_path / "mirrors"
    (mirrors / "some+project").mkdir(parents=True)
    git("clone", "-q", "--bare", ".", str(mirrors / "some+project" / "repo"))
    return mirrors, commits[0], commits[1]


def row(old: str, new: str, **changed: object) -> dict[str, object]:
    """Return a row that labels the unmasked load."""
    made = {
        "id": "r1",
        "repo": "some/project",
        "fix_commit": new,
        "parent_commit": old,
        "file": "pack/kernels.py",
        "lines": [8, 8],
        "function": "scale",
        "hazard": "HZ101",
        "detectability": "local",
    }
    return {**made, **changed}


def test_a_bug_is_hit_and_told_apart_from_its_fix(tool, repos, tmp_path, monkeypatch, capsys):
    mirrors, old, new = repos
    rows = [
        row(old, new),
        row(old, new, id="r2", hazard="HZ103"),
        row(old, "", id="r3"),
        row(new, new, id="r4"),
        row(old, new, id="r5", detectability="dynamic"),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    output = tmp_path / "scores.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["audit_rows.py", str(tmp_path / "rows.jsonl"), "--repos", str(mirrors), "--output", str(output)]
    )
    assert tool.main() == 0
    found = {each["id"]: each for each in map(json.loads, output.read_text().splitlines())}
    assert {name: (each["hit"], each["discriminated"]) for name, each in found.items()} == {
        "r1": (True, True),
        "r2": (False, False),
        "r3": (True, None),
        "r4": (False, False),
    }
    assert "all          4     2     1/3" in capsys.readouterr().out


def test_rows_of_a_missing_repository_are_named(tool, repos, tmp_path, monkeypatch, capsys):
    mirrors, old, new = repos
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(old, new, repo="other/project")) + "\n")
    monkeypatch.setattr(sys, "argv", ["audit_rows.py", str(tmp_path / "rows.jsonl"), "--repos", str(mirrors)])
    assert tool.main() == 1
    assert "skipped 1 rows" in capsys.readouterr().err


def test_a_missing_repository_is_cloned_when_asked_for(tool, repos, tmp_path, monkeypatch):
    mirrors, old, new = repos
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{mirrors / 'some+project' / 'repo'}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/some/project")
    trees = tool.Trees(tmp_path / "cloned", tmp_path, fetch=True)
    found = tool.score(trees, trees.mirror("some/project"), row(old, new))
    assert found["hit"] and found["discriminated"]


SETS = sorted(path for path in (ROOT / "benchmarks" / "audit").glob("*.jsonl") if ".first" not in path.name)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_the_kept_rows_are_whole(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({each["id"] for each in rows}) == len(rows) >= 25
    first = path.with_suffix(".first.jsonl")
    if path.stem.startswith("unseen"):
        assert [json.loads(line)["id"] for line in first.read_text().splitlines()] == [each["id"] for each in rows]
    for each in rows:
        assert set(row("", "")) <= set(each), each["id"]
        assert each["lines"][0] <= each["lines"][1], each["id"]
