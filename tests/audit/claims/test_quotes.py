"""What a claim quotes, and what only looks like a quote."""

from __future__ import annotations

import pytest

from deltaproof.audit.claims.claim import Claim
from deltaproof.audit.claims.formats import read
from deltaproof.audit.claims.quotes import inline, quotes


@pytest.mark.parametrize("text", ["a = b", "a + b", "state.shape[0]", "f(x, y)", "for i in range(3):", "x is None"])
def test_an_expression_or_statement_is_a_quote(text):
    quote = inline(text)
    assert quote is not None and not quote.weak


@pytest.mark.parametrize("text", ["state", "1.5", "'a text'", "a/b/c.py", "kernel.cu", "[start, end)", "of it"])
def test_names_paths_constants_and_words_are_none(text):
    assert inline(text) is None


@pytest.mark.parametrize("text", ["torch.rand", "torch.rand()", "torch.rand(...)"])
def test_a_dotted_name_says_something_only_at_its_line(text):
    quote = inline(text)
    assert quote is not None and quote.weak
    assert quote.code == ("torch", ".", "rand")


def test_blanks_commas_comments_and_kinds_of_quotation_marks_do_not_count():
    one, other = inline("f( a,'b', )  # why"), inline('f(a, "b")')
    assert one is not None and other is not None
    assert one.code == other.code


def test_a_tuple_of_one_keeps_its_comma():
    one, other = inline("f((a,))"), inline("f((a))")
    assert one is not None and other is not None
    assert one.code != other.code


@pytest.mark.parametrize(
    "fix",
    [
        "**Fix:** keep `a = b + c`",
        "**Fix Suggestion:**\n```python\na = b + c\n```",
        "[Mathematical/Code Fix Suggestion] keep `a = b + c`",
        "* **Fix recommendation** – pass it:\n\n```python\na = b + c\n```",
        "**Mathematical / Code Fix Suggestion:**  \n`a = b + c`",
        "**Recommended change**\n`a = b + c`",
        "```diff\n-a = b + d\n+a = b + c\n```",
        "```suggestion\na = b + c\n```",
    ],
)
def test_the_proposed_fix_is_never_quoted(fix):
    (claim,) = read(f"## a/b.py\n[Severity: HIGH]\n[Line 1]\n**Issue:** it is `x = y + z`.\n{fix}\n").claims
    assert [quote.text for quote in quotes(claim)] == ["x = y + z"]


@pytest.mark.parametrize("words", ["Replace `x = 1 + y` with", "it should be", "Use", "Consider"])
def test_what_the_words_propose_is_not_quoted(words):
    claim = Claim("a.py", prose=[f"The sum is off. {words} `a = b + c`."])
    assert "a = b + c" not in [quote.text for quote in quotes(claim)]


def test_what_the_words_describe_is_quoted():
    claim = Claim("a.py", prose=["The index is computed with `i = (i + 1) % n`, then used."])
    assert [quote.text for quote in quotes(claim)] == ["i = (i + 1) % n"]


def test_an_ellipsis_parts_an_excerpt():
    claim = Claim("a.py", excerpts=["a = b + c\n...\nd = e + f\n# ... more ...\ng"])
    assert [quote.text for quote in quotes(claim)] == ["a = b + c", "d = e + f"]
