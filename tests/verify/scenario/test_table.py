"""The table as a whole, on processes; the command; text, Markdown and JSON."""

from __future__ import annotations

import io
import json

import jsonschema
import pytest
from rich.console import Console
from typer.testing import CliRunner

from deltaproof.cli.app import app
from deltaproof.reports.scenario import ScenarioReport, Verdict
from deltaproof.reports.scenario_text import print_scenario, render_markdown
from deltaproof.reports.schema import scenario_schema
from deltaproof.verify.scenario import table

ADAPTERS = ("operators", "snapshot shared with a writer")


@pytest.fixture(scope="module")
def report() -> ScenarioReport:
    return table.run_table(2, (0,), 10, ADAPTERS)


def test_the_sums_are_those_of_the_rows(report: ScenarioReport):
    assert len(report.rows) == len(table.places(ADAPTERS)) == 10
    assert {row.requests for row in report.rows} == {10}
    assert (report.faults_seen, report.faults_total) == (1, 1)
    assert report.clean_rows_changed == report.ours_rows_changed == 0
    assert report.held
    changed = [row for row in report.rows if row.verdict is Verdict.CHANGED]
    assert changed and all(row.pool == "plain" and row.changed > 0 for row in changed)


def test_json_is_as_its_schema_says(report: ScenarioReport):
    data = json.loads(report.model_dump_json())
    jsonschema.validate(data, scenario_schema())
    assert {"rows", "clean_rows_changed", "faults_seen", "faults_total"} <= set(data)
    assert {"strategy", "adapter", "pool", "seed", "requests", "changed", "accuracy", "touched"} <= set(data["rows"][0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"rows": [{"strategy": "no_buffer"}]}, scenario_schema())


def test_a_report_with_a_changed_clean_row_does_not_hold(report: ScenarioReport):
    assert not report.model_copy(update={"clean_rows_changed": 1}).held
    assert not report.model_copy(update={"ours_rows_changed": 1}).held
    assert not report.model_copy(update={"faults_seen": 0}).held


def test_text_and_markdown_have_a_line_a_group(report: ScenarioReport):
    file = io.StringIO()
    print_scenario(report, Console(file=file, width=200))
    text = file.getvalue()
    for written in (text, render_markdown(report)):
        assert written.count("snapshot shared with a writer") >= 4
        assert "1 of 1 faults change tokens on the plain pool" in written
        assert "start: expected a snapshot of this pool" in written
    assert len([line for line in render_markdown(report).splitlines() if line.startswith("| ")]) == 11


def test_wilson_holds_the_share_and_shrinks():
    few, many = table.wilson(1, 10), table.wilson(100, 1000)
    assert few is not None and many is not None
    assert few.low < 0.1 < few.high and many.low < 0.1 < many.high
    assert many.high - many.low < few.high - few.low
    none = table.wilson(0, 120)
    assert none is not None and none.low == 0 and none.high == pytest.approx(0.031, abs=0.001)
    assert table.wilson(0, 0) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "2"], "--seeds"),
        (["--scenario", "serving", "--device", "cuda"], "--device"),
        (["--scenario", "serving", "--mutants"], "--scenario"),
        (["--scenario", "other"], "scenario"),
    ],
)
def test_wrong_words_are_refused(words: list[str], told: str):
    done = CliRunner().invoke(app, ["verify", *words])
    assert done.exit_code == 2 and told in done.output


def test_the_command_prints_the_table(monkeypatch: pytest.MonkeyPatch, report: ScenarioReport):
    asked = []

    def run_table(jobs: int, seeds: range, advance: object) -> ScenarioReport:
        asked.append((jobs, list(seeds)))
        return report

    monkeypatch.setattr(table, "run_table", run_table)
    words = ["verify", "--scenario", "serving", "--jobs", "2", "--seed", "5", "--seeds", "4"]
    done = CliRunner().invoke(app, [*words, "--format", "json"])
    assert done.exit_code == 0 and asked == [(2, [5, 6, 7, 8])]
    assert ScenarioReport.model_validate_json(done.stdout) == report
    assert "first divergence" in CliRunner().invoke(app, words).stdout
