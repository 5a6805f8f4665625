"""Every format shows every failure with all that is known of it, and counts and names what was not analysed."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from deltaproof.contracts.clauses import CLAUSES
from deltaproof.reports import json_report, markdown, text
from deltaproof.reports.model import BackendInfo, Check, Location, Status, VerifyReport
from deltaproof.reports.schema import schema_files, verify_schema
from deltaproof.reports.summary import matrix, verdict, worst_ratio

REPEAT = "deltaproof verify --backend mine.py:Backend --probe slots --form decode --case 'raw -1' --seed 7"
PLAIN = {"text": text.render, "markdown": markdown.render}
ALL = {**PLAIN, "json": json_report.render}


def check(status: Status, probe: str = "values", form: str = "chunk", case: str = "T=64", **fields: object) -> Check:
    return Check.model_validate(
        {"probe": probe, "case": case, "form": form, "status": status, "clause": "N2", **fields}
    )


FAILURE = check(
    Status.FAIL,
    probe="slots",
    form="decode",
    case="raw -1",
    clause="P1",
    hazard="padding-slot-address",
    message="a padding row changed the pool",
    location=Location(tensor="pool", element=(3, 0, 1, 2), slot=3),
    value="0.53125",
    expected="0.0",
    observed=0.53125,
    bound=0.0078125,
    ratio=68.0,
    repeat=REPEAT,
)

REPORT = VerifyReport(
    operator="gated_delta_rule",
    contract_version=1,
    backend=BackendInfo(
        name="mine",
        version="1.2",
        source="mine.py:Backend",
        conventions={"layouts": ["k_first", "v_first"], "gate": "log"},
        unsupported={"I2": "library matmuls"},
    ),
    device="cpu",
    tier="smoke",
    seed=7,
    command="deltaproof verify --backend mine.py:Backend",
    versions={"torch": "2.13.0"},
    checks=[
        check(Status.PASS, ratio=0.25),
        check(Status.PASS, case="T=65", ratio=0.5),
        check(Status.PASS, form="decode"),
        FAILURE,
        check(Status.UNSUPPORTED, probe="invariance", case="pack", reason="library matmuls"),
        check(Status.UNSUPPORTED, probe="invariance", case="place", reason="library matmuls"),
        check(Status.SKIPPED, probe="graph", form="decode", reason="needs a CUDA device"),
        check(Status.WAIVED, probe="graph", reason="known", url="https://example.org/7", expiry="2030-01-01"),
        check(Status.ERROR, probe="gradients", case="gva", message="oracle ran out of memory\n  at T=64"),
        check(Status.NOT_RUN, probe="compile"),
    ],
)


def words(rendered: str) -> str:
    return " ".join(rendered.replace("\\", "").split())


@pytest.mark.parametrize("render", PLAIN.values(), ids=PLAIN)
def test_a_failure_shows_all_that_is_known_of_it(render):
    shown = words(render(REPORT))
    for part in (
        "slots · decode · raw -1",
        f"P1: {CLAUSES['P1'].title}",
        "padding-slot-address",
        "a padding row changed the pool",
        "pool[3, 0, 1, 2] (slot 3)",
        "0.53125",
        "0.0",
        "error 0.531",
        "0.00781",
        "68 (observed ÷ bound)",
        REPEAT,
    ):
        assert part in shown


@pytest.mark.parametrize("render", PLAIN.values(), ids=PLAIN)
def test_a_clause_of_another_contract_is_shown_by_its_code(render):
    shown = words(render(REPORT.model_copy(update={"checks": [check(Status.FAIL, clause="Z9")]})))
    assert "clause Z9" in shown.replace(":", "")


@pytest.mark.parametrize("render", PLAIN.values(), ids=PLAIN)
def test_a_harness_error_is_shown_beside_the_failures(render):
    shown = render(REPORT)
    assert "gradients · chunk · gva" in shown
    assert "oracle ran out of memory" in shown and "at T=64" in shown


@pytest.mark.parametrize("render", PLAIN.values(), ids=PLAIN)
def test_every_status_is_counted_and_named_and_every_reason_given_once(render):
    shown = words(render(REPORT))
    assert "10 checks: 3 pass, 1 fail; 6 without a verdict" in shown
    assert "(2 unsupported, 1 skipped, 1 waived, 1 error, 1 not-run)" in shown
    assert shown.count("2 × library matmuls") == 1
    assert "1 × needs a CUDA device" in shown
    assert "1 × known (until 2030-01-01) https://example.org/7" in shown
    assert "1 × no reason given" in shown


@pytest.mark.parametrize("render", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("checks", [[], [check(Status.PASS)]], ids=["nothing", "one-pass"])
def test_a_run_without_failure_still_says_what_was_not_analysed(render, checks):
    shown = render(REPORT.model_copy(update={"checks": checks}))
    assert f"{len(checks)} checks: {len(checks)} pass, 0 fail; 0 without a verdict (0 unsupported" in shown
    assert "I2" in shown and "library matmuls" in shown
    assert "clean" not in shown and "all pass" not in shown


def test_the_matrix_has_probes_as_rows_forms_as_columns_and_the_worst_ratio():
    found = matrix(REPORT)
    assert found.forms == ("chunk", "decode")
    assert {probe: [str(cell) for cell in cells] for probe, cells in found.rows} == {
        "values": ["2 pass x0.5", "1 pass"],
        "slots": ["-", "0 pass 1 fail x68"],
        "invariance": ["2 unsupported", "-"],
        "graph": ["1 waived", "1 skipped"],
        "gradients": ["1 error", "-"],
        "compile": ["1 not-run", "-"],
    }


def test_a_cell_counts_what_has_no_verdict_beside_what_has():
    found = matrix(REPORT.model_copy(update={"checks": [check(Status.PASS), check(Status.SKIPPED)]}))
    assert [str(cell) for _, cells in found.rows for cell in cells] == ["1 pass +1"]


def test_the_text_matrix_puts_a_cell_in_its_row():
    rows = [line.split() for line in text.render(REPORT).splitlines()]
    assert ["probe", "chunk", "decode"] in rows
    assert ["slots", "-", "0", "pass", "1", "fail", "x68"] in rows


def test_the_markdown_matrix_is_a_table():
    lines = markdown.render(REPORT).splitlines()
    head = lines.index("| probe | chunk | decode |")
    assert lines[head + 1] == "| --- | --- | --- |"
    assert lines[head + 2] == "| values | 2 pass x0.5 | 1 pass |"
    assert "| slots | - | **0 pass 1 fail x68** |" in lines


def test_nan_is_the_worst_ratio():
    checks = [check(Status.FAIL, ratio=ratio) for ratio in (3.0, float("nan"), 1e9)]
    assert str(worst_ratio(checks)) == "nan"


def test_a_terminal_gets_colour_and_a_pipe_the_same_words_without():
    def printed(**options: object) -> str:
        buffer = StringIO()
        text.print_report(REPORT, Console(file=buffer, width=120, legacy_windows=False, **options))
        return buffer.getvalue()

    piped = printed()
    assert "\x1b" not in piped
    assert "\x1b[" in printed(force_terminal=True, color_system="standard")
    assert piped == text.render(REPORT)


def test_a_narrow_terminal_keeps_the_repeat_command_in_one_line():
    buffer = StringIO()
    text.print_report(REPORT, Console(file=buffer, width=40))
    assert any(line.endswith(REPEAT) for line in buffer.getvalue().splitlines())


def test_what_looks_like_markup_is_shown_as_it_is():
    odd = check(Status.FAIL, case="[bold]x[/bold]", message="a[0] :warning: `b`\n```c", value="<i>|*")
    report = REPORT.model_copy(update={"checks": [odd]})
    assert "[bold]x[/bold]" in text.render(report) and ":warning:" in text.render(report)
    shown = markdown.render(report)
    assert "````text\na[0] :warning: `b`\n```c\n````" in shown
    assert "\\<i>\\|\\*" in shown


def test_json_holds_the_whole_report_and_follows_the_schema():
    rendered = json_report.render(REPORT)
    Draft202012Validator(verify_schema()).validate(json.loads(rendered))
    assert VerifyReport.model_validate_json(rendered) == REPORT


@pytest.mark.parametrize(
    ("field", "value"),
    [("schema_version", 2), ("checks", [{"probe": "values"}]), ("surprise", 1), ("seed", "7")],
)
def test_the_schema_refuses_what_is_no_report(field, value):
    data = {**json.loads(json_report.render(REPORT)), field: value}
    assert not Draft202012Validator(verify_schema()).is_valid(data)


def test_json_writes_null_for_a_number_that_is_not_finite():
    report = REPORT.model_copy(update={"checks": [check(Status.FAIL, observed=float("nan"), ratio=float("inf"))]})
    data = json.loads(json_report.render(report), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["checks"][0]["observed"] is None
    Draft202012Validator(verify_schema()).validate(data)


def test_the_schema_is_itself_valid_and_its_file_is_up_to_date():
    Draft202012Validator.check_schema(verify_schema())
    docs = Path(__file__).parents[2] / "docs"
    files = schema_files()
    assert list(files) == [
        "schemas/verify-1.json",
        "schemas/mutants-1.json",
        "schemas/source-mutants-1.json",
        "schemas/scenario-1.json",
        "schemas/audit-1.json",
        "schemas/claims-1.json",
    ]
    for path, content in files.items():
        assert (docs / path).read_text(encoding="utf-8") == content


@pytest.mark.parametrize("render", ALL.values(), ids=ALL)
def test_a_format_is_deterministic(render):
    assert render(REPORT) == render(REPORT.model_copy(deep=True))


def test_the_verdict_names_every_status():
    assert all(status.value in verdict(REPORT) for status in Status)
