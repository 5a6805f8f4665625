"""Ignore comments: what they silence, what they must say, and what is reported of them."""

from __future__ import annotations

import pytest

from deltaproof.audit.registry import chosen
from deltaproof.audit.suppress import suppressions
from tests.audit.trees import HEAD, RULES, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")


def of(tmp_path, statement, **options):
    """Return (findings, suppressed) of a kernel with one statement."""
    report = audit(lay_out(tmp_path, {"a.py": HEAD + kernel(statement=statement)}), **options)
    return [(item.name, item.line) for item in report.findings], [
        (item.name, item.reason) for item in report.suppressed
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "tl.load(p)  # deltaproof: ignore[unmasked-load] rows are padded",
        "tl.load(p)  # deltaproof: ignore[HZ101] rows are padded",
        "tl.load(p)  # deltaproof: ignore[hz101]: rows are padded",
        "tl.load(p)  # noqa: E501  # deltaproof: ignore[HZ101] rows are padded  # type: ignore",
        "# deltaproof: ignore[unmasked-load] rows are padded\n    tl.load(p)",
        "# deltaproof: ignore[unmasked-load] rows are padded\n    # and more\n\n    tl.load(p)",
        "tl.load(\n        p,  # deltaproof: ignore[unmasked-load] rows are padded\n    )",
        "b = (\n        tl.load(p)\n    )  # deltaproof: ignore[unmasked-load] rows are padded",
        "b = (  # deltaproof: ignore[unmasked-load] rows are padded\n        1\n        + tl.load(p)\n    )",
        "# deltaproof: ignore[unmasked-load] rows are padded\n    b = (\n        tl.load(p)\n    )",
        "if (  # deltaproof: ignore[unmasked-load] rows are padded\n        tl.load(p)\n    ):\n        pass",
    ],
)
def test_a_comment_with_a_reason_silences_the_finding_and_keeps_the_reason(tmp_path, statement):
    findings, suppressed = of(tmp_path, statement)
    assert findings == []
    [(name, reason)] = suppressed
    assert name == "unmasked-load"
    assert reason.endswith(": rows are padded")


def test_a_comment_names_several_rules_with_commas(tmp_path):
    report = audit(
        lay_out(tmp_path, {"a.py": HEAD + kernel(statement="tl.load(p)  # deltaproof: ignore[HZ101, HZ010] padded")})
    )
    assert [item.name for item in report.suppressed] == ["unmasked-load"]
    assert [item.message for item in report.findings] == [
        "unused-suppression finds nothing here that this comment could silence"
    ]


def test_a_comment_on_a_compound_statement_speaks_of_its_header_alone(tmp_path):
    findings, _ = of(tmp_path, "if p:  # deltaproof: ignore[unmasked-load] rows are padded\n        b = tl.load(p)")
    assert sorted(findings) == [("unmasked-load", 8), ("unused-suppression", 7)]


@pytest.mark.parametrize("reason", ["", " ", " :", " --", "   # noqa"])
def test_without_a_reason_a_comment_silences_nothing_and_is_a_finding(tmp_path, reason):
    findings, suppressed = of(tmp_path, f"tl.load(p)  # deltaproof: ignore[unmasked-load]{reason}")
    assert findings == [("unmasked-load", 7), ("invalid-suppression", 7)]
    assert suppressed == []


@pytest.mark.parametrize("comment", ["ignore because", "ignore[] because", "ignore", "ignore[no-such-rule] because"])
def test_a_comment_that_names_no_rule_is_a_finding(tmp_path, comment):
    assert of(tmp_path, f"x = 1  # deltaproof: {comment}") == ([("invalid-suppression", 7)], [])


def test_a_comment_that_silences_nothing_is_a_finding(tmp_path):
    assert of(tmp_path, "x = 1  # deltaproof: ignore[unmasked-load] padded") == ([("unused-suppression", 7)], [])


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("x = 'é'  # deltaproof: ignore[unmasked-load] padded", "x = 'é'  "),
        ("x = 1  # deltaproof: ignore[unmasked-load] padded  # noqa", None),
        ("x = 1  # noqa # deltaproof: ignore[unmasked-load] padded", None),
        ("x = 1  # deltaproof: ignore[unmasked-load, HZ103] padded", None),
    ],
)
def test_a_comment_that_silences_nothing_is_taken_out_where_nothing_else_stands_in_it(tmp_path, line, left):
    root = lay_out(tmp_path, {"a.py": HEAD + kernel(statement=line)})
    edits = [item.fix.edit for item in audit(root).findings if item.name == "unused-suppression"]
    assert len(edits) == 1
    if left is None:
        assert edits == [None]
    else:
        [edit] = edits
        text = (HEAD + kernel(statement=line)).split("\n")[edit.line - 1]
        assert (text[: edit.column] + edit.text + text[edit.end_column :]).strip() == left.strip()


def test_a_comment_for_another_rule_silences_nothing(tmp_path):
    findings, _ = of(tmp_path, "tl.load(p)  # deltaproof: ignore[unused-suppression] padded")
    assert ("unmasked-load", 7) in findings


def test_a_comment_at_the_end_of_the_line_before_speaks_of_its_own_line(tmp_path):
    findings, _ = of(tmp_path, "x = 1  # deltaproof: ignore[unmasked-load] padded\n    tl.load(p)")
    assert findings == [("unmasked-load", 8), ("unused-suppression", 7)]


def test_nothing_is_said_of_a_comment_for_a_rule_that_did_not_run(tmp_path):
    rules = chosen(RULES, ignore=["HZ101"])
    assert of(tmp_path, "x = 1  # deltaproof: ignore[unmasked-load] padded", rules=rules) == ([], [])


def test_nothing_is_said_of_a_comment_for_a_rule_that_failed(tmp_path):
    source = HEAD + kernel("breaks") + "x = 1  # deltaproof: ignore[unmasked-load] padded\n"
    report = audit(lay_out(tmp_path, {"a.py": source}))
    assert report.findings == []
    assert len(report.not_analysed) == 1


def test_what_stands_in_a_string_is_no_comment():
    text = '"""\n# deltaproof: ignore[a] in a docstring\n"""\ns = "# deltaproof: ignore[b] in a string"\n'
    assert suppressions(text) == []
    assert [found.keys for found in suppressions(text + "x = 1  # deltaproof: ignore[c] why\n")] == [("c",)]


def test_a_string_over_several_lines_does_not_shift_what_a_comment_speaks_of():
    text = 's = """\n\n"""  # deltaproof: ignore[a] why\n# deltaproof: ignore[b] why\nf("""\n""")\n'
    assert [(found.line, found.target) for found in suppressions(text)] == [(3, 3), (4, 5)]
