"""The generated pages are up to date, complete, and their links resolve."""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.hazards import HAZARDS
from deltaproof.reports.pages import Linked, render_contract, render_hazards, render_pages, render_probe_pages

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "make_docs.py"


def make_docs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def probes(tmp_path):
    """A folder with one probe module that cannot be imported, and one helper."""
    folder = tmp_path / "probes"
    folder.mkdir()
    docstring = '"""Slots are kept apart.\n\n## What it does\n\nWrites to one slot\nand reads another, see P2.\n"""\n'
    (folder / "slots.py").write_text(docstring + "import no_such_module\n")
    (folder / "_shared.py").write_text("x = 1\n")
    return folder


def test_the_pages_in_docs_are_up_to_date():
    done = make_docs("--check")
    assert done.returncode == 0, done.stderr


def test_every_page_opens_by_saying_how_it_is_generated():
    for text in render_pages().values():
        assert text.splitlines()[0].startswith("*Generated from `deltaproof/")
        assert "`python tools/make_docs.py`" in text.splitlines()[0]


def test_every_link_inside_the_pages_resolves():
    pages = render_pages()
    anchors = {name: set(re.findall(r'<a id="([^"]+)">', text)) for name, text in pages.items()}
    checked = 0
    for name, text in pages.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", prose):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            page = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            assert page in pages or (ROOT / "docs" / page).is_file(), f"{name} links to {target}"
            assert not anchor or anchor in anchors[page], f"{name} links to {target}"
            checked += 1
    assert checked > len(CLAUSES) + len(HAZARDS)


def test_the_contract_page_has_every_clause_and_links_to_the_hazards_that_break_it():
    text = render_contract()
    for entry in CLAUSES.values():
        assert f"### {entry.code} {entry.name}\n" in text
        assert entry.title in text
    section = text.split("### P1 ")[1].split("### P2 ")[0]
    assert "[`padding-slot-address`](hazards.md#padding-slot-address)" in section
    assert "(P4)" not in section and "([P4](#p4))" in section


def test_the_hazards_page_has_every_hazard_with_its_stories_and_clauses():
    text = render_hazards()
    for entry in HAZARDS.values():
        assert f"### {entry.name}\n" in text
        assert all(story.text in text for story in entry.stories)
    section = text.split("### padding-slot-address\n")[1].split("###")[0]
    assert "[P1](contract.md#p1) padding-rows" in section
    assert "https://github.com/flashinfer-ai/flashinfer/pull/2810" in section


def test_names_inside_code_are_not_made_links():
    names = Linked("hazards.md", frozenset())
    assert names.prose("P1, `P1` and ```\nP1\n```") == "[P1](contract.md#p1), `P1` and ```\nP1\n```"


def test_a_probe_is_linked_only_if_it_has_a_page():
    names = Linked("hazards.md", frozenset({"slots"}))
    assert names.probe("slots") == "[`slots`](probes/slots.md)"
    assert names.probe("graph") == "`graph`"


def test_a_probe_page_is_the_docstring_of_its_module_which_is_not_imported(probes):
    pages = render_probe_pages(probes)
    assert list(pages) == ["slots"]
    first, rest = pages["slots"].split("\n\n", 1)
    assert "deltaproof/verify/probes/slots.py" in first
    assert rest == ("# Slots are kept apart\n\n## What it does\n\nWrites to one slot\nand reads another, see P2.\n")


def test_a_probe_without_a_docstring_is_an_error(probes):
    (probes / "poison.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"poison\.py: a probe module needs a docstring"):
        render_probe_pages(probes)


def test_check_names_stale_missing_and_orphaned_pages_and_a_run_mends_them(tmp_path):
    assert make_docs("--docs", tmp_path).returncode == 0
    assert make_docs("--docs", tmp_path, "--check").returncode == 0

    (tmp_path / "contract.md").write_text("edited by hand")
    (tmp_path / "hazards.md").unlink()
    (tmp_path / "probes").mkdir(exist_ok=True)
    (tmp_path / "probes" / "retired.md").write_text("a probe that is gone")
    done = make_docs("--docs", tmp_path, "--check")
    assert done.returncode == 1
    assert re.findall(r"stale: (\S+);", done.stderr) == ["contract.md", "hazards.md", "probes/retired.md"]

    assert make_docs("--docs", tmp_path).returncode == 0
    assert make_docs("--docs", tmp_path, "--check").returncode == 0
    assert not (tmp_path / "probes" / "retired.md").exists()
