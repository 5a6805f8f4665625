"""Kept results: used only while nothing they depend on has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deltaproof.audit import engine
from deltaproof.audit.cache import KEPT, Cache, cache_for
from deltaproof.audit.model import project, source
from deltaproof.audit.model.source import Unreadable
from deltaproof.audit.own_rules import OWN_RULES
from tests.audit.rule_for_tests import RULE, UnmaskedLoad
from tests.audit.trees import HEAD, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")


@pytest.fixture
def tree(tmp_path):
    return lay_out(tmp_path / "tree", {"a.py": HEAD + kernel("one"), "b.py": HEAD + kernel("two")})


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def looked_at(monkeypatch):
    """The files that were given to rules, in order."""
    seen = []
    original = engine.inspect_file

    def inspect_file(path, project, rules):
        seen.append(path.name)
        return original(path, project, rules)

    monkeypatch.setattr(engine, "inspect_file", inspect_file)
    return seen


def report(tree, cache, **options):
    return audit(tree, cache=cache, **options).model_dump(exclude={"seconds"})


def test_a_second_run_looks_at_no_file_and_says_the_same(tree, cache, looked_at):
    first = report(tree, cache)
    assert looked_at == ["a.py", "b.py"]
    assert report(tree, cache) == first
    assert looked_at == ["a.py", "b.py"]
    assert len(first["findings"]) == 2


def test_touching_a_file_changes_nothing_and_content_does(tree, cache, looked_at):
    report(tree, cache)
    os.utime(tree / "a.py", (1, 1))
    report(tree, cache)
    assert len(looked_at) == 2
    size = (tree / "a.py").stat()
    (tree / "a.py").write_text(HEAD + kernel("uno"))
    os.utime(tree / "a.py", (size.st_atime, size.st_mtime))
    assert [item["function"] for item in report(tree, cache)["findings"]] == ["uno", "two"]


def test_a_file_that_rules_may_look_at_counts_though_it_is_no_target(tree, cache, looked_at):
    report(tree, cache, targets=[tree / "a.py"])
    (tree / "b.py").write_text("x = 1\n")
    report(tree, cache, targets=[tree / "a.py"])
    assert looked_at == ["a.py", "a.py"]


def test_other_rules_targets_or_a_new_file_are_another_run(tree, cache, looked_at):
    class Other(UnmaskedLoad):
        name = "other"

    report(tree, cache)
    report(tree, cache, rules=OWN_RULES)
    report(tree, cache, rules=(RULE, Other()))
    report(tree, cache, targets=[tree / "a.py"])
    (tree / "c.py").write_text("")
    report(tree, cache)
    assert len(looked_at) == 2 + 2 + 2 + 1 + 3


def test_the_baseline_is_no_part_of_what_is_kept(tree, cache):
    found = audit(tree, cache=cache).findings
    known = {item.fingerprint: {item.path: 1} for item in found[:1]}
    again = audit(tree, cache=cache, known=known)
    assert (again.findings, again.known) == (found[1:], found[:1])


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"findings": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_entry_is_ignored_and_replaced(tree, cache, looked_at, content):
    first = report(tree, cache)
    [entry] = cache.folder.glob("audit-*.json")
    entry.write_bytes(content)
    assert report(tree, cache) == first
    assert len(looked_at) == 4
    assert len(json.loads(entry.read_text())["findings"]) == 2


def test_a_run_in_which_a_rule_failed_is_not_kept(tree, cache):
    (tree / "c.py").write_text(HEAD + kernel("breaks"))
    report(tree, cache)
    assert list(cache.folder.glob("*")) == []


@pytest.mark.parametrize(
    "error", [Unreadable("cannot be read: no such device", passing=True), MemoryError(), OSError("no such device")]
)
def test_what_another_run_may_read_is_not_kept(tree, cache, monkeypatch, error):
    def read(path):
        if path.name == "b.py":
            raise error
        return original(path)

    original = project.read
    with monkeypatch.context() as patch:
        patch.setattr(project, "read", read)
        assert [item.path for item in audit(tree, cache=cache).not_analysed] == ["b.py"]
    assert len(audit(tree, cache=cache).findings) == 2


def test_what_no_run_will_read_is_kept(tree, cache, looked_at):
    (tree / "c.py").write_text("def f(:\n")
    first = report(tree, cache)
    assert report(tree, cache) == first and len(looked_at) == 3


def test_a_tree_that_needs_too_much_memory_is_no_result_for_later(tree, cache, monkeypatch):
    def parse(text):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(source.ast, "parse", parse)
        reasons = {item.reason for item in audit(tree, cache=cache).not_analysed}
    assert reasons == {"nested too deeply to be parsed, or too little memory"}
    assert len(audit(tree, cache=cache).findings) == 2


def test_a_folder_that_cannot_be_written_to_does_not_stop_a_run(tree, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(audit(tree, cache=Cache(tmp_path / "file" / "cache")).findings) == 2


def test_the_folder_does_not_grow_for_ever(tree, cache):
    for number in range(KEPT + 3):
        (tree / "a.py").write_text(f"x = {number}\n")
        report(tree, cache)
    assert len(list(cache.folder.glob("audit-*.json"))) == KEPT
    assert list(cache.folder.glob("*.part")) == []


def test_results_lie_with_the_users_caches(tmp_path, monkeypatch):
    lay_out(tmp_path, {"project/pyproject.toml": ""})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_for(tmp_path / "project").folder == tmp_path / "xdg" / "deltaproof" / "audit"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_for(tmp_path / "project").folder == tmp_path / "home" / ".cache" / "deltaproof" / "audit"


@pytest.mark.parametrize("base", ["project/.cache", "project", "link"])
def test_no_result_is_taken_from_the_project_itself(tmp_path, monkeypatch, base):
    lay_out(tmp_path, {"project/pyproject.toml": "", "project/src/a.py": ""})
    (tmp_path / "link").symlink_to(tmp_path / "project")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base))
    assert cache_for(tmp_path / "project") is None
    assert cache_for(tmp_path / "project" / "src") is None


def test_a_user_without_a_home_has_no_cache(tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", home)
    assert cache_for(tmp_path) is None
