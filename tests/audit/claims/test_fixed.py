"""What a newer tree did to the quoted code."""

from __future__ import annotations

import shutil

import pytest

from tests.audit.claims.conftest import RING, issue

QUOTE = "`self.head = (self.head + 1) % self.rows`"
LINE = "        self.head = (self.head + 1) % self.rows\n"
NEXT = "        self.data[self.head] = row\n"


@pytest.fixture
def newer(tree, tmp_path):
    root = tmp_path / "newer"
    shutil.copytree(tree, root)
    return root


def fate(check, newer, text, quote=QUOTE, line=9):
    (newer / "pool/ring.py").write_text(text)
    (claim,) = check(issue("pool/ring.py", line, quote), newer).claims
    return claim.fixed


def test_the_same_code_stands(check, newer):
    assert fate(check, newer, RING) == "stands"


def test_code_that_only_moved_or_was_formatted_stands(check, newer):
    assert fate(check, newer, "# new\n" * 500 + RING) == "stands"
    wrapped = "        self.head = (\n            self.head + 1  # next\n        ) % self.rows\n"
    assert fate(check, newer, RING.replace(LINE, wrapped)) == "stands"


@pytest.mark.parametrize(
    "line",
    [
        "        self.head = min(self.head + 1, self.rows - 1)\n",
        "        self.head = (self.head + 1) % max(self.rows, 1)\n",
        "        if self.count < self.rows:\n            self.head = (self.head + 2) % self.rows\n",
    ],
)
def test_other_code_in_its_place_is_changed(check, newer, line):
    assert fate(check, newer, RING.replace(LINE, line)) == "code changed"


def test_code_without_a_successor_is_gone(check, newer):
    assert fate(check, newer, RING.replace(LINE, "")) == "code gone"
    assert fate(check, newer, "x = 1\n") == "code gone"


def test_a_file_that_is_no_longer_there_is_gone(check, newer):
    (newer / "pool/ring.py").unlink()
    (claim,) = check(issue("pool/ring.py", 9, QUOTE), newer).claims
    assert claim.fixed == "code gone"


def test_one_of_two_copies_that_goes_is_noticed(check, tree, newer):
    twice = RING.replace(LINE, LINE + NEXT + LINE)
    (tree / "pool/ring.py").write_text(twice)
    once = RING.replace(LINE, LINE + NEXT + "        self.head = self.advance(self.head, self.rows)\n")
    assert fate(check, newer, once, line=11) == "code changed"


def test_an_excerpt_of_several_lines_is_followed_too(check, newer):
    report = f"## R in `pool/ring.py` : 9\n```python\n{LINE}{NEXT}```\n"
    assert [check(report, newer).claims[0].fixed] == ["stands"]
    (newer / "pool/ring.py").write_text(RING.replace("= row", "= row.copy()"))
    assert [check(report, newer).claims[0].fixed] == ["code changed"]
    (newer / "pool/ring.py").write_text(RING.replace(LINE + NEXT, ""))
    assert [check(report, newer).claims[0].fixed] == ["code gone"]


def test_what_was_not_found_has_no_fate(check, newer):
    report = check(issue("pool/ring.py", 9, "`a = b + c`") + "## pool/no.py\n[Line 3] `a = b + c`\n", newer)
    assert [(claim.verdict, claim.fixed) for claim in report.claims] == [("absent", None), ("no_such_file", None)]


def test_without_a_newer_tree_nothing_has_a_fate(check):
    assert check(issue("pool/ring.py", 9, QUOTE)).claims[0].fixed is None
