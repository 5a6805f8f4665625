"""Files that are made to break a reader: each is named as not analysed, or analysed, and the others with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.audit.trees import HEAD, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")

GOOD = HEAD + kernel()


def both(tmp_path, content):
    """Audit a file beside a good one; return why it was not analysed, and the findings in it."""
    report = audit(lay_out(tmp_path, {"file.py": content, "good.py": GOOD}))
    assert [item.path for item in report.findings if item.path == "good.py"] == ["good.py"]
    reasons = [item.reason for item in report.not_analysed]
    assert [item.path for item in report.not_analysed] == ["file.py"] * len(reasons)
    assert ("file.py" in report.checked) == (not reasons)
    return reasons, [item for item in report.findings if item.path == "file.py"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"# -*- coding: latin-1 -*-\n" + GOOD.replace("b =", "\xe9 =").encode("latin-1"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.rstrip("\n").encode(),
        b"\x0c\n" + GOOD.encode(),
    ],
    ids=["bom", "latin-1", "crlf", "cr", "no-newline", "form-feed"],
)
def test_other_encodings_and_line_ends_are_read(tmp_path, content):
    reasons, findings = both(tmp_path, content)
    assert reasons == []
    assert [item.evidence[0].text.split("= ")[1] for item in findings] == ["tl.load(p)"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"def f(:\n", "syntax error in line 1"),
        (b"x = '\xe9'\n", "cannot be decoded"),
        (b"# coding: no-such-encoding\nx = 1\n", "cannot be decoded"),
        (b"x = 1\n\0", "NUL bytes"),
        (b"x = " + b"(" * 5000 + b")" * 5000, "nested"),
        (b"x = " + b"-" * 200_000 + b"1\n", "nested"),
        (b"x = y" + b".a" * 200_000 + b"\n", "nested"),
        (b"x = 1" + b" + 1" * 200_000 + b"\n", "nested"),
        (b"if a: pass\n" + b"elif a: pass\n" * 50_000, "nested"),
        (b"\n" * (9 << 20), "larger than 8 MiB"),
    ],
    ids=["syntax", "utf-8", "coding", "nul", "paren", "unary", "attribute", "sum", "elif", "large"],
)
def test_what_cannot_be_parsed_is_named_with_the_reason(tmp_path, content, reason):
    [found], findings = both(tmp_path, content)
    assert reason in found
    assert findings == []


def test_a_tree_just_shallow_enough_for_the_parser_harms_no_rule(tmp_path):
    depth = GOOD + "x = 1" + " + 1" * 900 + "\n" + "if a: pass\n" + "elif a: pass\n" * 300
    reasons, findings = both(tmp_path, depth)
    assert reasons == []
    assert len(findings) == 1


def test_a_statement_too_deep_to_be_written_out_still_has_a_fingerprint(tmp_path):
    deep = GOOD.replace("tl.load(p)", "tl.load(p" + " + 1" * 900 + ")")
    reasons, findings = both(tmp_path, deep)
    assert reasons == []
    assert len(findings) == 1
    assert findings[0].fingerprint


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def read_bytes(path):
        if path.name == "file.py":
            raise PermissionError(13, "Permission denied", str(path))
        with path.open("rb") as file:
            return file.read()

    # Whoever runs the tests as root may read every file.
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    reasons, _ = both(tmp_path, GOOD)
    assert reasons == ["cannot be read: Permission denied"]


def test_a_file_that_goes_away_meanwhile_is_named(tmp_path):
    lay_out(tmp_path, {"a.py": GOOD, "b.py": GOOD})
    report = audit(tmp_path, progress=lambda done, total: done == 1 and (tmp_path / "b.py").unlink())
    assert [(item.path, item.reason) for item in report.not_analysed] == [
        ("b.py", "cannot be read: No such file or directory")
    ]


def test_a_file_that_becomes_a_pipe_meanwhile_is_named(tmp_path):
    lay_out(tmp_path, {"a.py": GOOD, "b.py": GOOD})

    def swap(done, total):
        if done == 1:
            (tmp_path / "b.py").unlink()
            os.mkfifo(tmp_path / "b.py")

    report = audit(tmp_path, progress=swap)
    assert [(item.path, item.reason) for item in report.not_analysed] == [("b.py", "not a regular file")]


def test_a_name_that_is_no_text_and_one_with_escapes_are_shown(tmp_path):
    lay_out(tmp_path, {"a.py": "x = 1\n"})
    for name in (b"\xff.py", b"\x1b[31m.py", b"a\nb.py"):
        (tmp_path / os.fsdecode(name)).write_text("def f(:\n")
    report = audit(tmp_path)
    assert sorted(item.path for item in report.not_analysed) == [r"\udcff.py", r"\x1b[31m.py", r"a\x0ab.py"]
    report.model_dump_json()


def test_a_generated_file_of_50_000_lines_is_read_in_seconds(tmp_path):
    source = HEAD + "".join(f"def f{n}(a, b):\n    c = a + {n}\n    return g(c, b)[{n}]\n\n\n" for n in range(10_000))
    begun = time.monotonic()
    report = audit(lay_out(tmp_path, {"big.py": source + kernel()}))
    assert report.analysed.lines > 50_000
    assert len(report.findings) == 1
    assert time.monotonic() - begun < 30


def test_a_table_of_50_000_lines_is_read(tmp_path):
    source = GOOD + "TABLE = {\n" + "".join(f"    {n}: ({n}, 'x'),\n" for n in range(50_000)) + "}\n"
    reasons, findings = both(tmp_path, source)
    assert reasons == []
    assert len(findings) == 1


def test_audited_code_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    tree = lay_out(
        tmp_path / "tree", {"__init__.py": code, "conftest.py": code, "setup.py": code, "ops.py": code + GOOD}
    )
    assert audit(tree).analysed.files == 4
    assert not mark.exists()
