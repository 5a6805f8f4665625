"""The three formats of reports, read from samples, and what belongs to none of them."""

from __future__ import annotations

import pytest

from deltaproof.audit.claims.blocks import lines
from deltaproof.audit.claims.formats import file_by_file, pattern_scan, read, review_bot
from deltaproof.audit.claims.mojibake import plain
from deltaproof.audit.claims.quotes import quotes
from tests.audit.claims.conftest import SAMPLES


def sample(name: str) -> str:
    return plain((SAMPLES / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("scan.md", pattern_scan.FORMAT),
        ("files.md", file_by_file.FORMAT),
        ("review.md", review_bot.FORMAT),
        ("review_page.md", review_bot.FORMAT),
    ],
)
def test_the_format_shows_in_the_report(name, format):
    assert read(sample(name)).format == format


def test_a_scan_names_rule_path_line_and_excerpt():
    first, second, gone, safe = read(sample("scan.md")).claims
    assert (first.path, first.first, first.title) == ("python/pool/ring.py", 6, "WRAPPED_INDEX [CONFIRMED BUG]")
    assert first.excerpts[0].startswith("class Ring:")
    assert len(first.excerpts) == 1
    assert second.excerpts == ["        self.head = (self.head + 1) % self.rows\n        self.data[self.head] = row"]
    assert gone.path == "python/pool/gone.py"
    assert safe.nothing == "the report's own verdict is SAFE"


def test_a_file_by_file_audit_has_bold_bare_quoted_and_table_claims():
    claims = read(sample("files.md")).claims
    assert [(claim.path, claim.first, claim.last, claim.severity) for claim in claims] == [
        ("python/pool/ring.py", 9, 9, "high"),
        ("python/pool/ring.py", 30, 34, "critical"),
        ("python/pool/ring.py", 2, 2, "low"),
        ("python/pool/empty.py", None, None, None),
        ("python/pool/table.py", 3, 4, "high"),
        ("python/pool/table.py", 4, 4, "medium"),
    ]
    assert claims[1].excerpts == ["self.data[self.head] = row"]
    assert claims[3].nothing.startswith("I'm unable to examine")


def test_numbered_headings_in_a_section_are_titles():
    text = "## a/b.py\n### 1. Mask\n**Severity:** HIGH\n**Line(s):** 57-68\n\n**Issue:**\nwrong\n\n### 2. Seed\n"
    text += "**Severity:** LOW (but hidden)\n**Line(s):** 9\n\n## Summary\nBad.\n"
    reading = read(text)
    assert [(claim.title, claim.severity, claim.first, claim.last) for claim in reading.claims] == [
        ("Mask", "high", 57, 68),
        ("Seed", "low", 9, 9),
    ]
    assert reading.prose == 1


def test_a_review_has_inline_outside_also_duplicate_and_nitpick_places():
    claims = read(sample("review.md")).claims
    assert [(claim.path, claim.first, claim.last, claim.severity, claim.duplicate) for claim in claims] == [
        ("pool/ring.py", 8, 10, None, False),
        ("pool/table.py", 3, 3, None, False),
        ("pool/table.py", 40, 47, None, False),
        ("pool/ring.py", 8, 10, "major", True),
        ("tests/test_ring.py", 2, 3, "nitpick", False),
    ]


def test_a_review_page_for_people_gives_the_same_places():
    visible, prompt = read(sample("review_page.md")).claims
    assert (visible.path, visible.first, visible.last, visible.severity) == ("pool/table.py", 3, 4, "major")
    assert (prompt.path, prompt.first, prompt.last) == ("pool/table.py", 3, 4)
    assert [quote.text for quote in quotes(visible)] == ["total = left | right"]


def test_prose_is_left_alone_and_counted():
    reading = read("# Thoughts\n\nAll of it is wrong.\n\nReally: `a = b + c` fails\nin line 3.\n\n---\n")
    assert reading.claims == []
    assert reading.prose == 2


def test_summaries_belong_to_no_claim():
    reading = read(sample("files.md"))
    assert reading.prose == 4
    assert all("three findings" not in " ".join(claim.prose) for claim in reading.claims)


def test_a_fence_that_nobody_closes_ends_where_the_next_claim_begins():
    text = "## X in `a/b.py` : 1\n```python\nx = y + z\n## X in `a/c.py` : 2\n```python\nu = v + w"
    assert [(claim.path, claim.excerpts) for claim in read(text).claims] == [
        ("a/b.py", ["x = y + z"]),
        ("a/c.py", ["u = v + w"]),
    ]


def test_a_comment_in_an_excerpt_is_no_heading():
    text = "## X in `a/b.py` : 1\n```python\n# head\n## more\nx = y + z\n```\nwhy\n"
    (claim,) = read(text).claims
    assert claim.excerpts == ["# head\n## more\nx = y + z"]


def test_tags_and_quotation_marks_of_a_page_are_no_text():
    found = lines("> <summary>a.py (1)</summary>\n> ```\n> x\n> ```", lambda raw: False)
    assert [(line.text.strip(), line.fence) for line in found] == [("a.py (1)", 0), ("x", 1)]


@pytest.mark.parametrize(
    "heading",
    [
        "## R in `a/b.py` : 3-5",
        "### 🚨 R in `a/b.py:3-5`",
        "## **R** in a/b.py : 3 – 5",
        "# R at `a/b.py`, lines 3 to 5",
    ],
)
def test_the_heading_of_a_scan_has_some_freedom(heading):
    (claim,) = read(plain(f"{heading}\n```python\nx = y + z\n```\n")).claims
    assert (claim.path, claim.first, claim.last, claim.title) == ("a/b.py", 3, 5, "R")


@pytest.mark.parametrize(
    "heading",
    ["## 📂 a/b.py", "### File: `a/b.py`", "## 3. **a/b.py**", "## `a/b.py` (120 lines)", "**File:** `a/b.py`"],
)
@pytest.mark.parametrize(
    "place",
    ["[Severity: HIGH]\n[Line 3-5]", "**Severity:** High | **Lines:** 3-5", "- **Line(s)** ~3‑5\n- Severity: high"],
)
def test_an_audit_has_some_freedom(heading, place):
    (claim,) = read(plain(f"{heading}\n{place}\n**Issue:** `x = y + z`\n")).claims
    assert (claim.path, claim.first, claim.last, claim.severity) == ("a/b.py", 3, 5, "high")


@pytest.mark.parametrize(
    "place",
    [
        "In `@a/b.py`:\n- Around line 3 - 5: `x = y + z`",
        "In `@a/b.py`:\n- Around line 3-5: `x = y + z`",
        "In `@a/b.py` around lines 3 - 5, the sum `x = y + z`",
        "a/b.py (1)\n\n`3-5`: ⚠️ Potential issue | 🟠 Major\n\n`x = y + z`",
        "#### a/b.py (1)\n- **Line 3-5:** the sum `x = y + z`",
    ],
)
def test_a_review_has_some_freedom(place):
    (claim,) = read(plain(f"**Actionable comments posted: 1**\n\n{place}\n")).claims
    assert (claim.path, claim.first, claim.last) == ("a/b.py", 3, 5)
    assert [quote.text for quote in quotes(claim)] == ["x = y + z"]
