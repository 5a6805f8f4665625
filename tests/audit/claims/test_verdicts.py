"""The verdict of a claim: the first that applies."""

from __future__ import annotations

import pytest

from deltaproof.audit.claims import exit_code
from tests.audit.claims.conftest import SAMPLES, issue


def outcome(report):
    return [(claim.verdict, claim.found and claim.found.line) for claim in report.claims]


def test_the_scan(check):
    report = check((SAMPLES / "scan.md").read_bytes())
    assert outcome(report) == [
        ("grounded", 6),
        ("grounded", 10),
        ("no_such_file", None),
        ("no_claim", None),
    ]
    assert exit_code(report) == 1


def test_the_audit(check):
    report = check((SAMPLES / "files.md").read_bytes())
    assert outcome(report) == [
        ("grounded", 9),
        ("moved", 10),
        ("absent", None),
        ("no_claim", None),
        ("grounded", 3),
        ("absent", None),
    ]


def test_the_review(check):
    report = check((SAMPLES / "review.md").read_bytes())
    assert outcome(report) == [
        ("grounded", 10),
        ("grounded", 3),
        ("moved", 3),
        ("grounded", 10),
        ("not_executable", 3),
    ]
    assert [claim.repeats for claim in report.claims] == [None, None, None, 1, None]


@pytest.mark.parametrize("line", [7, 8, 9, 10, 11, 12])
def test_three_lines_off_is_still_the_place(check, line):
    (claim,) = check(issue("pool/ring.py", line, "`self.head = (self.head + 1) % self.rows`")).claims
    assert (claim.verdict, claim.found.line) == ("grounded", 9)


@pytest.mark.parametrize("line", [1, 5, 13, 400])
def test_farther_off_has_moved(check, line):
    (claim,) = check(issue("pool/ring.py", line, "`self.head = (self.head + 1) % self.rows`")).claims
    assert (claim.verdict, claim.found.line) == ("moved", 9)
    assert f"{abs(line - 9)} lines off" in claim.why


def test_any_line_of_a_range_is_the_line_said(check):
    (claim,) = check(issue("pool/ring.py", "2-40", "`self.head = (self.head + 1) % self.rows`")).claims
    assert claim.verdict == "grounded"


def test_an_excerpt_of_several_lines_says_its_place_by_itself(check):
    text = "## X in `pool/ring.py` : 90\n```python\nself.head = (self.head + 1) % self.rows\n"
    (claim,) = check(text + "self.data[self.head] = row\n```\n").claims
    assert (claim.verdict, claim.found.line) == ("grounded", 9)
    assert "lines match" in claim.why


def test_code_that_is_formatted_otherwise_is_the_same_code(check, tree):
    (tree / "pool/call.py").write_text('x = f(\n    a,  # first\n    mode="sum",\n)\n')
    (claim,) = check(issue("pool/call.py", 1, "it calls `x = f(a, mode='sum')`")).claims
    assert claim.verdict == "grounded"


@pytest.mark.parametrize(
    ("source", "quote"),
    [
        ("y = x / scale + eps\n", "y = x / scale"),
        ("y = x / scale.clamp(1)\n", "x / scale"),
        ("y = x / scale[0]\n", "x / scale"),
        ("y = other.x / scale\n", "x / scale"),
        ("f(y=x)\n", "y = x"),
        ("y = x / (scale + eps)\n", "x / scale"),
    ],
)
def test_code_that_only_holds_the_quoted_tokens_is_other_code(check, tree, source, quote):
    (tree / "pool/near.py").write_text(source)
    (claim,) = check(issue("pool/near.py", 1, f"it is `{quote}`")).claims
    assert claim.verdict == "absent"


@pytest.mark.parametrize("source", ["y = 2 * (x / scale)\n", "if x / scale > 1: y = 1\n", "y = self.x / scale\n"])
def test_an_expression_may_stand_inside_another_one(check, tree, source):
    (tree / "pool/near.py").write_text(source)
    (claim,) = check(issue("pool/near.py", 1, "it is `x / scale`")).claims
    assert claim.verdict == "grounded"


@pytest.mark.parametrize(
    ("line", "quote", "why"),
    [
        (4, "ring.head = (ring.head + 1) % ring.rows", "a docstring"),
        (8, "self.data[self.head] = before", "a comment"),
        (15, "ring.push(row=None)", "the self-test below"),
    ],
)
def test_what_does_not_run_is_not_executable(check, line, quote, why):
    (claim,) = check(issue("pool/ring.py", line, f"it is `{quote}`")).claims
    assert (claim.verdict, claim.found.line) == ("not_executable", line)
    assert why in claim.why


def test_a_string_is_no_code(check, tree):
    (tree / "pool/text.py").write_text('HELP = "then x = y + z runs"\n')
    (claim,) = check(issue("pool/text.py", 1, "it is `x = y + z`")).claims
    assert (claim.verdict, claim.why) == ("not_executable", "the quoted text is a string")


def test_code_behind_a_self_test_runs_again(check, tree):
    (tree / "pool/main.py").write_text('if "__main__" == __name__:\n    a = b + c\n\nd = e + f\n')
    first, second = (check(issue("pool/main.py", 1, f"`{quote}`")).claims[0] for quote in ("a = b + c", "d = e + f"))
    assert (first.verdict, second.verdict) == ("not_executable", "grounded")


def test_of_a_docstring_and_code_the_line_said_decides(check, tree):
    (tree / "pool/both.py").write_text('"""\n>>> x = y + z\n"""\n' + "\n" * 9 + "x = y + z\n")
    verdicts = {line: check(issue("pool/both.py", line, "`x = y + z`")).claims[0].verdict for line in (2, 13, 60)}
    assert verdicts == {2: "not_executable", 13: "grounded", 60: "moved"}


def test_in_an_excerpt_of_both_the_line_said_decides(check, tree):
    body = 'def f(x):\n    """\n    >>> y = rand(4)\n    """\n    y = rand(x)\n'
    (tree / "pool/both.py").write_text(body)
    verdicts = [check(f"## R in `pool/both.py` : {line}\n```python\n{body}```\n").claims[0].verdict for line in (3, 5)]
    assert verdicts == ["not_executable", "grounded"]


def test_a_test_is_not_executable_whatever_is_quoted(check):
    for words in ("`assert ring.head == 1`", "nothing", "`a = b + c`"):
        assert check(issue("tests/test_ring.py", 3, words)).claims[0].verdict == "not_executable"


def test_a_line_in_a_docstring_without_a_quote_is_not_executable(check):
    assert check(issue("pool/ring.py", 4, "the `head` wraps")).claims[0].verdict == "not_executable"


@pytest.mark.parametrize("words", ["the `head` and `Ring` are public", "nothing", "`push()` is slow", "`ring.tail` is"])
def test_a_name_grounds_nothing(check, words):
    (claim,) = check(issue("pool/ring.py", 9, words)).claims
    assert (claim.verdict, claim.found) == ("absent", None)


def test_a_dotted_name_grounds_at_its_line_alone(check):
    verdicts = [check(issue("pool/ring.py", line, "`self.data` is raw")).claims[0].verdict for line in (9, 14)]
    assert verdicts == ["grounded", "absent"]


def test_one_wrong_line_in_an_excerpt_of_many_does_not_matter_but_two_do(check):
    rows = ["def push(self, row):", "# self.data[self.head] = before", "self.head = (self.head + 1) % self.rows"]
    rows.append("self.data[self.head] = row")
    verdicts = []
    for wrong in (1, 2):
        body = "\n".join(["x = y * z"] * wrong + rows[wrong:])
        verdicts.append(check(f"## R in `pool/ring.py` : 60\n```python\n{body}\n```\n").claims[0].verdict)
    assert verdicts == ["grounded", "absent"]


def test_lines_of_an_excerpt_that_are_there_are_not_denied(check):
    body = "def push(self, row):\n    with self.lock:\n        row = row + self.bias\n        return row * self.scale"
    (claim,) = check(f"## R in `pool/ring.py` : 90\n```python\n{body}\n```\n").claims
    assert claim.verdict == "absent"
    assert "the quoted lines are not in the file as they are quoted: 1 of 4 stand somewhere in it" in claim.why


def test_a_name_that_is_there_is_not_denied(check):
    (claim,) = check(issue("pool/ring.py", 14, "`self.data` is raw, and so is `a = b + c`")).claims
    assert claim.verdict == "absent"
    assert claim.why.startswith("of what is quoted only a name is in the file, and not at the line said")


def test_a_line_behind_the_end_is_said(check):
    (claim,) = check(issue("pool/table.py", 99, "`a = b + c`")).claims
    assert claim.why == "the quoted code is not in the file; the file ends at line 4"


def test_a_file_that_does_not_parse_is_read_all_the_same(check, tree):
    (tree / "pool/torn.py").write_text("def f(:\n    x = y + z\n  return (((\nclass G:\n    u = v + w\n")
    for quote, line in (("x = y + z", 2), ("u = v + w", 5)):
        (claim,) = check(issue("pool/torn.py", line, f"`{quote}`")).claims
        assert (claim.verdict, claim.found.line) == ("grounded", line)


def test_a_file_that_cannot_be_read_grounds_nothing(check, tree):
    (tree / "pool/raw.py").write_bytes(b"a = b + c\0")
    (claim,) = check(issue("pool/raw.py", 1, "`a = b + c`")).claims
    assert claim.verdict == "absent"
    assert "NUL" in claim.why


def test_a_file_of_another_language_is_read_as_text(check, tree):
    (tree / "pool/kernel.cu").write_text("int i = threadIdx.x;\nout[i] = in[i] / scale;\n")
    (claim,) = check(issue("pool/kernel.cu", 2, "`out[i] = in[i] / scale`")).claims
    assert claim.verdict == "grounded"
