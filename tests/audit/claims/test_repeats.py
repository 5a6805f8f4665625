"""Repeats of one claim are grouped; other claims about the same place are not."""

from __future__ import annotations

from tests.audit.claims.conftest import SAMPLES, issue

QUOTE = "`self.data[self.head] = row`"


def repeats(report):
    return [claim.repeats for claim in report.claims]


def section(line, words, severity="HIGH"):
    return f"---\n[Severity: {severity}]\n[Line {line}]\n**Issue:** {words}\n"


def test_the_same_quote_in_the_same_place_is_a_repeat(check):
    text = issue("pool/ring.py", 9, QUOTE) + section(10, f"again {QUOTE}") + section(90, f"and {QUOTE}")
    assert repeats(check(text)) == [None, 1, 1]


def test_the_path_may_be_spelt_in_two_ways(check):
    assert repeats(check(issue("pool/ring.py", 10, QUOTE) + issue("python/pool/ring.py", 10, QUOTE))) == [None, 1]


def test_other_code_on_the_same_line_is_another_claim(check):
    text = issue("pool/ring.py", 9, "`a = b + c`") + section(9, "`d = e + f`") + section(9, "`a = b + c`", "LOW")
    assert repeats(check(text)) == [None, None, None]


def test_other_lines_without_code_are_other_claims(check):
    assert repeats(check(issue("pool/table.py", 3, "wrong") + section(4, "wrong"))) == [None, None]


def test_claims_without_code_are_one_only_if_they_say_the_same(check):
    words = ("`head` is racy", "`Head`  is racy.", "`tail` is racy", "a comma is missing")
    text = issue("pool/table.py", 3, words[0]) + "".join(section(3, said) for said in words[1:])
    assert repeats(check(text)) == [None, 1, None, None]


def test_a_claim_in_other_words_is_not_grounded_by_the_one_before_it(check):
    report = check(issue("pool/ring.py", 10, QUOTE) + section(10, "a comma is missing"))
    assert [(claim.verdict, claim.repeats) for claim in report.claims] == [("grounded", None), ("absent", None)]


def test_what_a_bot_calls_a_duplicate_is_one(check):
    assert repeats(check((SAMPLES / "review.md").read_bytes())) == [None, None, None, 1, None]


def test_a_prompt_repeats_the_comment_above_it(check):
    report = check((SAMPLES / "review_page.md").read_bytes())
    assert repeats(report) == [None, 1]
    assert [[claim.index for claim in group] for group in report.groups()] == [[1, 2]]


def test_two_rules_about_one_place_are_two_claims(check):
    text = "".join(
        f"## {rule} in `pool/ring.py` : 10\n```python\nself.data[self.head] = row\n```\n"
        for rule in ("A_B", "C_D", "A_B")
    )
    assert repeats(check(text)) == [None, None, 1]


def test_a_repeat_in_plain_words_has_the_verdict_of_what_it_repeats(check):
    words = "the store is raw"
    report = check(
        issue("pool/ring.py", 10, f"{words}: {QUOTE}") + section(10, f"The {words[4:]}.") + section(3, words)
    )
    assert [claim.verdict for claim in report.claims] == ["grounded", "grounded", "not_executable"]
    assert report.claims[1].why == "says again what claim 1 says"


def test_a_repeat_that_quotes_other_code_has_its_own_verdict(check):
    text = "In `@pool/ring.py`:\n- Around line 10: `self.data[self.head] = row`\n\nDuplicate comments (1)\n"
    report = check(text + "pool/ring.py (1)\n\n`10`: Major\n\nIt is `a = b + c`.\n")
    assert [(claim.verdict, claim.repeats) for claim in report.claims] == [("grounded", None), ("absent", 1)]
    assert [[claim.index for claim in group] for group in report.groups()] == [[1], [2]]
