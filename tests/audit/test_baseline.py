"""Fingerprints and the baseline: known findings stay known when lines move, and nothing else is."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

from deltaproof.audit.baseline import load, render, split
from deltaproof.audit.fingerprint import last_line, normalised, statement_at
from deltaproof.contracts.errors import ContractError
from tests.audit.trees import HEAD, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")


def findings(root, source, path="a.py"):
    return audit(lay_out(root, {path: source})).findings


def prints(root, source, path="a.py"):
    return [item.fingerprint for item in findings(root, source, path)]


def test_a_fingerprint_stays_when_lines_formatting_and_comments_change(tmp_path):
    plain = prints(tmp_path, HEAD + kernel(statement="b = tl.load(p + 1, other=0)"))
    moved = (
        "\n\n# a comment\nx = 1\n" + HEAD + kernel(statement="b = tl.load(  # why\n        p+1,\n        other = 0)")
    )
    assert prints(tmp_path, moved) == plain


def test_a_copy_is_new_while_the_file_it_was_copied_from_stands_unaudited(tmp_path):
    source = HEAD + kernel()
    lay_out(tmp_path, {"a.py": source, "b.py": source})
    known = {item.fingerprint: {item.path: 1} for item in audit(tmp_path, [tmp_path / "a.py"]).findings}
    copy = audit(tmp_path, [tmp_path / "b.py"], known=known)
    assert [item.path for item in copy.findings] == ["b.py"] and copy.known == []
    (tmp_path / "a.py").unlink()
    moved = audit(tmp_path, [tmp_path / "b.py"], known=known)
    assert moved.findings == [] and [item.path for item in moved.known] == ["b.py"]
    lay_out(tmp_path, {"a.py": HEAD})
    both = audit(tmp_path, known=known)
    assert both.findings == [] and [item.path for item in both.known] == ["b.py"], "moved between audited files"


@pytest.mark.parametrize("version", [True, 2, "1", None])
def test_a_baseline_of_another_version_is_refused(tmp_path, version):
    place = tmp_path / "known.json"
    place.write_text(json.dumps({"deltaproof_baseline": version, "findings": {}}))
    with pytest.raises(ContractError, match="pyproject baseline: expected a baseline of version 1"):
        load(place, "pyproject baseline")


@pytest.mark.parametrize(
    "other",
    [
        kernel("renamed", "b = tl.load(p + 1)"),
        kernel("kernel", "b = tl.load(p + 2)"),
        "class C:\n    @triton.jit\n    def kernel(p):\n        b = tl.load(p + 1)\n",
    ],
    ids=["function", "statement", "class"],
)
def test_a_fingerprint_changes_with_the_function_and_the_statement(tmp_path, other):
    assert prints(tmp_path, HEAD + kernel(statement="b = tl.load(p + 1)")) != prints(tmp_path, HEAD + other)


def test_the_same_statement_twice_has_two_fingerprints(tmp_path):
    once = prints(tmp_path, HEAD + kernel())
    twice = prints(tmp_path, HEAD + kernel(statement="b = tl.load(p)\n    b = tl.load(p)"))
    assert len(set(twice)) == 2
    assert twice[0] == once[0]


def test_a_long_compound_statement_counts_by_its_header():
    tree = ast.parse("if a:\n    x = 1\nelse:\n    y = 2\n")
    assert normalised(tree.body[0]) == "if a:"
    assert last_line(tree.body[0]) == 1


def test_the_innermost_statement_is_found_in_every_kind_of_block():
    source = (
        "@d(\n    1,\n)\ndef f():\n    try:\n        a()\n    except E:\n        b()\n    finally:\n        c()\n"
        "    match x:\n        case 1:\n            e()\n    with y:\n        g()\n"
    )
    tree = ast.parse(source)
    for line, text in {6: "a()", 8: "b()", 10: "c()", 13: "e()", 15: "g()", 14: "with y:", 11: "match x:"}.items():
        assert normalised(statement_at(tree, line)) == text
    assert statement_at(tree, 2) is tree.body[0]
    assert statement_at(tree, 99) is None


def test_after_lines_have_moved_nothing_is_new(tmp_path):
    source = HEAD + kernel("one") + kernel("two")
    (tmp_path / "base.json").write_text(render(findings(tmp_path, source)))
    known = load(tmp_path / "base.json")
    lay_out(tmp_path, {"a.py": HEAD + "x = 1\n" * 30 + kernel("two") + kernel("one")})
    report = audit(tmp_path, known=known)
    assert report.findings == []
    assert len(report.known) == 2


def test_only_the_finding_that_was_added_is_new(tmp_path):
    known = load_of(tmp_path, findings(tmp_path, HEAD + kernel("one")))
    lay_out(tmp_path, {"a.py": HEAD + kernel("zero") + kernel("one")})
    report = audit(tmp_path, known=known)
    assert [item.function for item in report.findings] == ["zero"]
    assert [item.function for item in report.known] == ["one"]


def test_a_known_finding_may_move_to_another_file_but_a_copy_of_it_is_new(tmp_path):
    known = load_of(tmp_path, findings(tmp_path, HEAD + kernel()))
    (tmp_path / "a.py").rename(tmp_path / "renamed.py")
    assert audit(tmp_path, known=known).findings == []
    lay_out(tmp_path, {"a.py": HEAD + kernel()})
    assert [item.path for item in audit(tmp_path, known=known).findings] == ["renamed.py"]


def test_a_baseline_holds_no_line_numbers(tmp_path):
    found = findings(tmp_path, HEAD + kernel())
    entry = json.loads(render(found))["findings"][found[0].fingerprint]
    assert entry == {"code": "HZ101", "name": "unmasked-load", "function": "kernel", "paths": {"a.py": 1}}


def test_splitting_leaves_the_baseline_as_it_is(tmp_path):
    found = findings(tmp_path, HEAD + kernel())
    known = load_of(tmp_path, found)
    assert split(found, known) == ([], found)
    assert split(found, known) == ([], found)


def load_of(tmp_path, found):
    (tmp_path / "base.json").write_text(render(found))
    return load(tmp_path / "base.json")


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "{}",
        '{"deltaproof_baseline": 2, "findings": {}}',
        '{"deltaproof_baseline": 1}',
        '{"deltaproof_baseline": 1, "findings": {"f": {"paths": {"a.py": -1}}}}',
        '{"deltaproof_baseline": 1, "findings": {"f": {"paths": {"a.py": true}}}}',
        '{"deltaproof_baseline": 1, "findings": {"f": 3}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, text):
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(ContractError, match="--baseline: expected a baseline of version 1"):
        load(tmp_path / "base.json")


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ContractError, match="--baseline: expected a file that can be read"):
        load(tmp_path / "none.json")


def test_a_baseline_that_is_no_regular_file_is_refused_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ContractError, match=r"--baseline: .* that can be read, got .*not a regular"):
            load(Path(place))
