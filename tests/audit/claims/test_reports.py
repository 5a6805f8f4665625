"""The checked report as table, Markdown and JSON, and the exit status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest
from rich.console import Console

from deltaproof.audit.claims import exit_code, run_claims
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.claims import ClaimsReport
from deltaproof.reports.claims_text import print_claims, render, render_json, render_markdown, sentence
from tests.audit.claims.conftest import SAMPLES, issue

HOSTILE = '`a = \x1b[31m"<img src=x onerror=alert(1)>" + b | c`\u202e\x07'


def test_the_summary_counts_findings_that_quote_code(check):
    report = check((SAMPLES / "files.md").read_bytes())
    assert sentence(report) == ("3 of 5 findings quote code that exists (2 absent, 1 moved, 2 grounded, 1 no_claim)")
    assert sentence(check(issue("pool/ring.py", 9, "no code"))).startswith("0 of 1 finding quotes code that exists")


def test_the_json_has_what_a_claim_needs(check):
    report = check((SAMPLES / "scan.md").read_bytes())
    data = json.loads(render_json(report))
    assert (data["schema_name"], data["schema_version"]) == ("deltaproof.claims", 1)
    assert {"index", "path", "line", "severity", "quote", "verdict", "found", "why"} <= set(data["claims"][0])
    assert data["claims"][0]["found"] == {"path": "pool/ring.py", "line": 6}
    assert data["claims"][2]["found"] is None
    jsonschema.validate(data, ClaimsReport.model_json_schema(mode="serialization"))
    assert ClaimsReport.model_validate(data) == report


def test_a_row_stands_for_a_claim_and_its_repeats(check):
    text = render(check((SAMPLES / "review.md").read_bytes()))
    assert "pool/ring.py:8-10 (x 2)" in text
    assert len(re.findall(r"^\d  ", text, re.MULTILINE)) == 4
    assert text.splitlines()[-1].startswith("4 of 5 findings quote code that exists")


def test_a_newer_tree_has_a_column(check, tree):
    report = check((SAMPLES / "files.md").read_bytes(), tree)
    assert "newer tree" in render(report)
    assert "| newer tree |" in render_markdown(report)
    assert sentence(report).endswith("in the newer tree: 3 stands")


@pytest.mark.parametrize("draw", [render, render_markdown])
def test_text_of_a_report_cannot_move_the_cursor_or_become_markup(check, draw):
    report = check(issue("pool/\x1b]0;title\x07ring.py", 9, "x") + issue("pool/ring.py", 9, HOSTILE))
    text = draw(report)
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    assert "\u202e" not in text
    for line in text.splitlines():
        assert "<img" not in line or "`" in line.partition("<img")[0] or draw is render


def test_markdown_keeps_its_table_whole(check):
    text = render_markdown(check(issue("pool/ring.py", 9, HOSTILE) + issue("a|b/c.py", 1, "`x = y | z`")))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}


def test_a_terminal_gets_colour_and_a_pipe_does_not(check):
    report = check((SAMPLES / "scan.md").read_bytes())
    file = io.StringIO()
    print_claims(report, Console(file=file, force_terminal=True, color_system="standard", width=120))
    assert "\x1b[" in file.getvalue()
    assert "\x1b[" not in render(report)


@pytest.mark.parametrize(
    ("words", "path", "code"),
    [("`self.data[self.head] = row`", "pool/ring.py", 0), ("`a = b + c`", "pool/ring.py", 1), ("x", "no/such.py", 1),
     ("x", "tests/test_ring.py", 0)],
)  # fmt: skip
def test_the_exit_status_is_1_when_a_claim_is_absent_or_a_file_missing(check, words, path, code):
    assert exit_code(check(issue(path, 10, words))) == code


def test_a_report_without_a_claim_passes_and_says_so(check):
    report = check("Nothing here.\n\nNor here.\n")
    assert exit_code(report) == 0
    assert render(report).splitlines() == [
        "2 paragraphs of prose left alone",
        "no claim in a known format was found",
        "0 of 0 findings quote code that exists",
    ]


@pytest.mark.parametrize("format", ["text", "json", "markdown"])
def test_the_command_writes_to_standard_output_or_to_a_file(tree, tmp_path, capsys, format):
    output = tmp_path / "out"
    for target in (None, output):
        assert run_claims(SAMPLES / "scan.md", tree, None, format=format, output=target) == 1
    assert capsys.readouterr().out == output.read_text()


def test_the_command_refuses_formats_that_claims_do_not_have(tree, tmp_path):
    with pytest.raises(ContractError, match="--format"):
        run_claims(SAMPLES / "scan.md", tree, None, format="sarif")
    with pytest.raises(ContractError, match="--output"):
        run_claims(SAMPLES / "scan.md", tree, None, output=tmp_path / "no" / "out")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("format", ["text", "json", "markdown"])
def test_what_the_output_cannot_show_is_escaped(tree, tmp_path, encoding, format):
    char = "\u6f22"
    report = tmp_path / "report.md"
    report.write_text(issue("pool/ring.py", 9, f'`a = "{char}" + c`'), encoding="utf-8")
    command = [sys.executable, "-m", "deltaproof", "audit", "--claims", str(report), "--root", str(tree)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, "--format", format], capture_output=True, env=environment, timeout=120)
    text = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (1, b"")
    assert (char if encoding == "utf-8" else "\\u6f22") in text
    if format == "json":
        assert json.loads(text)["claims"][0]["quote"] == f'a = "{char}" + c'
