"""The rules' docstrings: pages, explain text and help."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from deltaproof.audit import rule as rules
from deltaproof.audit.own_rules import OWN_RULES
from deltaproof.audit.registry import all_rules
from deltaproof.hazards import HAZARDS
from deltaproof.reports.explain import explain
from deltaproof.reports.rule_text import HEADINGS, render_rule_pages, rule_texts

TEXTS = rule_texts()


def test_the_headings_are_those_that_a_rule_promises():
    assert rules.HEADINGS == HEADINGS


def test_what_is_read_is_what_is_imported():
    imported = {rule.name: (rule.code, rule.stable) for rule in (*all_rules(), *OWN_RULES)}
    assert {name: (text.code, text.stable) for name, text in TEXTS.items()} == imported
    assert import_module("deltaproof.audit.own_rules.unused_suppression").RULE in OWN_RULES


@pytest.mark.parametrize("name", TEXTS)
def test_a_rule_has_every_heading_in_order_with_text_below_it(name):
    assert TEXTS[name].headings == HEADINGS
    for section in TEXTS[name].body.split("## ")[1:]:
        assert section.partition("\n")[2].strip()


@pytest.mark.parametrize("name", TEXTS)
def test_a_rule_is_explained_by_name_and_code(name):
    text = TEXTS[name]
    assert text.body in explain(name)
    assert text.body in explain(text.code.lower())
    assert (text.hazard is None) == (name not in HAZARDS)
    if text.hazard is not None:
        assert text.hazard.avoid in explain(name)


def test_every_rule_has_a_page_and_a_row_in_the_list():
    pages = render_rule_pages()
    for name, text in TEXTS.items():
        assert text.body in pages[f"rules/{name}.md"]
        assert f"[`{name}`]({name}.md)" in pages["rules/README.md"]
    assert len(pages) == len(TEXTS) + 1


DOC = '''"""some-rule

What it does
    Finds `x`.

    And more.

Why it matters
It is bad.

## Example:
```python
What it does
```

"""


class Some:
    code = "HZ999"
    name: str = "some-rule"
    stable = True
'''


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "hz999_some_rule.py").write_text(DOC)
    (tmp_path / "_helper.py").write_text("x = 1\n")
    return tmp_path


def test_a_docstring_becomes_markdown_whatever_its_indentation(folder):
    text = rule_texts([folder])["some-rule"]
    assert (text.code, text.name, text.stable, text.title) == ("HZ999", "some-rule", True, "some-rule")
    assert text.body == (
        "## What it does\n\nFinds `x`.\n\nAnd more.\n\n## Why it matters\n\nIt is bad.\n\n"
        "## Example\n\n```python\nWhat it does\n```"
    )
    assert text.headings == ("What it does", "Why it matters", "Example")


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = 1\n", "needs a docstring"), ('"""Doc."""\nclass A:\n    code = "HZ999"\n', "says code and name")],
)
def test_a_file_that_is_no_rule_is_named(folder, content, message):
    (folder / "hz998_other.py").write_text(content)
    with pytest.raises(ValueError, match=message):
        rule_texts([folder])
