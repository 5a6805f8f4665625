"""Which file a claimed path means, and that none outside of the root is ever read."""

from __future__ import annotations

import os

import pytest

from deltaproof.audit.claims.tree import Tree
from tests.audit.claims.conftest import issue

QUOTE = "`self.data[self.head] = row`"


@pytest.mark.parametrize(
    "path",
    [
        "pool/ring.py",
        "./pool/ring.py",
        "python/pool/ring.py",
        "a/src/python/pool/ring.py",
        "@pool/ring.py",
        "pool\\ring.py",
        "ring.py",
    ],
)
def test_a_path_may_have_folders_too_many_or_too_few(tree, path):
    assert Tree(tree).find(path) == (["pool/ring.py"], "")


def test_a_tree_may_have_folders_that_the_path_lacks(tree):
    assert Tree(tree.parent).find("pool/ring.py") == (["tree/pool/ring.py"], "")


def test_the_path_as_it_is_comes_first(tree):
    (tree / "python/pool").mkdir(parents=True)
    (tree / "python/pool/ring.py").write_text("")
    assert Tree(tree).find("python/pool/ring.py")[0] == ["python/pool/ring.py"]
    assert Tree(tree).find("pool/ring.py")[0] == ["pool/ring.py"]


@pytest.mark.parametrize(
    "path", ["pool/other.py", "other/ring.py/x.py", "pool", "deep/in/another/ring.py", "", "ing.py"]
)
def test_other_paths_mean_no_file(tree, path):
    found, why = Tree(tree).find(path)
    assert found == []
    assert why


def test_of_several_files_the_one_that_holds_the_quote_counts(check, tree):
    for folder in ("a", "b"):
        (tree / folder).mkdir()
        (tree / folder / "same.py").write_text(f"{folder} = x + y\n")
    (claim,) = check(issue("same.py", 1, "`b = x + y`")).claims
    assert (claim.verdict, claim.found.path) == ("grounded", "b/same.py")


def outside(tree):
    secret = tree.parent / "secret.py"
    secret.write_text("self.data[self.head] = row\n")
    return secret


@pytest.mark.parametrize("path", ["../secret.py", "pool/../../secret.py", "python/../../../secret.py", "..\\secret.py"])
def test_a_path_out_of_the_root_is_not_read(check, tree, path):
    outside(tree)
    (claim,) = check(f"## R in `{path}` : 1\n```python\nself.data[self.head] = row\n```\n").claims
    assert (claim.verdict, claim.found) == ("no_such_file", None)
    assert "out of the root" in claim.why


def test_an_absolute_path_is_not_read(check, tree):
    (claim,) = check(f"## R in `{outside(tree)}` : 1\n```python\nself.data[self.head] = row\n```\n").claims
    assert claim.verdict == "no_such_file"


def test_a_link_out_of_the_root_is_not_followed(check, tree):
    secret = outside(tree)
    os.symlink(secret, tree / "pool/link.py")
    os.symlink(tree.parent, tree / "up")
    for path in ("pool/link.py", "link.py", "up/secret.py", "secret.py"):
        assert check(issue(path, 1, QUOTE)).claims[0].verdict == "no_such_file"


def test_a_link_inside_of_the_root_is_followed(check, tree):
    os.symlink(tree / "pool/ring.py", tree / "pool/link.py")
    assert check(issue("pool/link.py", 10, QUOTE)).claims[0].verdict == "grounded"


def test_a_loop_of_links_ends(tree):
    os.symlink(tree / "pool", tree / "pool/again")
    os.symlink("self.py", tree / "pool/self.py")
    assert Tree(tree).find("ring.py")[0] == ["pool/ring.py"]
    assert Tree(tree).find("pool/self.py")[0] == []


@pytest.mark.parametrize("path", ["pool/ring\x00.py", "a/" * 5_000 + "b.py", "pool/\x1b[2J.py"])
def test_a_path_that_is_none_is_refused(tree, path):
    assert Tree(tree).find(path) == ([], "the claimed path is no path")


def test_a_claim_without_a_path_names_no_file(check):
    (claim,) = check("| Severity | Line | Issue |\n|---|---|---|\n| HIGH | 3 | `a = b + c` |\n").claims
    assert (claim.verdict, claim.why) == ("no_such_file", "the claim names no file")


def test_a_pipe_in_the_tree_grounds_nothing_and_is_not_opened(check, tree):
    os.mkfifo(tree / "pool" / "pipe.py")
    (claim,) = check(issue("pipe.py", 1, "`a = b + c`")).claims
    assert (claim.verdict, claim.why) == ("absent", "the file was not read: not a regular file")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "C:\\Windows\\hosts", "/etc/x.py"]
)
def test_a_heading_is_a_path_also_without_an_ending(check, path):
    (claim,) = check(issue(path, 1, "`a = b + c`")).claims
    assert (claim.path, claim.verdict) == (path, "no_such_file")
    assert "leads out of the root, or is absolute" in claim.why


def test_a_page_with_addresses_as_headings_claims_nothing(check):
    assert check("# Service\n\n## /api/v1/users\nLists all.\n\n## /api/v1/rows\nLists rows.\n").claims == []
