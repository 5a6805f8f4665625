"""A run: what it finds, what it leaves out and says so, the same in one process and in several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deltaproof.audit.cache import Cache
from deltaproof.audit.own_rules import OWN_RULES
from deltaproof.audit.rule import Rule
from deltaproof.contracts.errors import ContractError
from deltaproof.reports.audit_summary import exit_code, verdict
from tests.audit.rule_for_tests import RULE, UnmaskedLoad
from tests.audit.trees import HEAD, audit, kernel, lay_out

pytestmark = pytest.mark.usefixtures("rule_for_tests_alone")


def test_a_finding_says_what_where_and_why_and_quotes_the_source(tmp_path):
    source = HEAD + kernel("step", "b = tl.load(\n        p,\n        other=0,\n    )")
    finding = audit(lay_out(tmp_path, {"pkg/ops.py": source})).findings[0]
    assert (finding.code, finding.name, finding.path) == ("HZ101", "unmasked-load", "pkg/ops.py")
    assert (finding.line, finding.end_line, finding.column, finding.function) == (7, 10, 8, "step")
    assert (finding.severity, finding.verdict, finding.probe) == ("critical", "likely", "ragged")
    assert finding.message == "step loads without a mask"
    assert finding.fix.text == "pass `mask`"
    lines = source.splitlines()
    assert all(item.text == lines[item.line - 1].strip() for item in finding.evidence)
    assert [(item.line, item.why) for item in finding.evidence] == [
        (7, "step loads without a mask"),
        (8, "continued"),
        (9, "continued"),
        (6, "the kernel"),
    ]


def test_a_column_counts_characters_not_bytes(tmp_path):
    report = audit(lay_out(tmp_path, {"ops.py": HEAD + kernel(statement="q = 'äöü'; b = tl.load(p)")}))
    assert report.findings[0].column == len("    q = 'äöü'; b = ")


def test_what_was_looked_at_is_counted(tmp_path):
    files = {"a.py": HEAD + kernel() + "def host(p):\n    kernel[(1,)](p)\n", "b.py": "x = 1\n", "notes.txt": "no"}
    report = audit(lay_out(tmp_path, files))
    seen = report.analysed
    assert (seen.files, seen.lines, seen.functions, seen.kernels, seen.launches) == (2, 12, 2, 1, 1)
    assert report.checked == ["a.py", "b.py"]


def test_clean_never_stands_without_what_was_analysed_and_what_was_not(tmp_path):
    lay_out(tmp_path, {"good.py": HEAD + kernel(statement="b = tl.load(p, mask=p < 3)"), "bad.py": "def f(:\n"})
    report = audit(tmp_path)
    assert report.findings == []
    assert verdict(report) == (
        "clean: analysed 1 file (9 lines, 1 function) with 1 kernel and 0 launches; 1 path not analysed"
    )
    assert exit_code(report) == 0


def test_where_nothing_could_be_read_the_verdict_is_not_clean(tmp_path):
    report = audit(lay_out(tmp_path, {"bad.py": "def f(:\n"}))
    assert verdict(report).startswith("nothing was analysed: ")


def test_a_candidate_that_a_rule_drops_is_kept_with_its_reason(tmp_path):
    report = audit(lay_out(tmp_path, {"a.py": HEAD + kernel("safe")}))
    assert report.findings == []
    assert [(item.path, item.line, item.reason) for item in report.dismissed] == [("a.py", 7, "the function is safe")]


def test_only_rules_that_ask_for_tests_see_them(tmp_path):
    class InTests(UnmaskedLoad):
        name = "in-tests"
        tests = True

    lay_out(tmp_path, {"tests/test_ops.py": HEAD + kernel(), "ops.py": HEAD + kernel()})
    found = audit(tmp_path, rules=(RULE, InTests())).findings
    assert sorted((item.name, item.path) for item in found) == [
        ("in-tests", "ops.py"),
        ("in-tests", "tests/test_ops.py"),
        ("unmasked-load", "ops.py"),
    ]


def test_a_rule_is_not_given_a_file_without_its_triggers(tmp_path):
    class Counting(Rule):
        code, name, triggers = "HZ998", "counting", ("atomic",)

        def __init__(self):
            self.given = []

        def check(self, module, project):
            self.given.append(module.path)
            return iter(())

    rule = Counting()
    audit(lay_out(tmp_path, {"a.py": "x = 1\n", "b.py": "atomic = 1\n"}), rules=(rule,))
    assert rule.given == ["b.py"]


def test_a_rule_that_raises_loses_neither_the_file_nor_what_others_found(tmp_path):
    class Second(UnmaskedLoad):
        name = "second"

        def check(self, module, project):
            yield from super().check(module, project)
            raise RecursionError("too deep")

    lay_out(tmp_path, {"a.py": HEAD + kernel("first") + kernel("breaks"), "b.py": HEAD + kernel()})
    report = audit(tmp_path, rules=(RULE, Second()))
    assert [(item.path, item.reason) for item in report.not_analysed] == [
        ("a.py", "rule second failed: KeyError: 'no such name'"),
        ("a.py", "rule unmasked-load failed: KeyError: 'no such name'"),
        ("b.py", "rule second failed: RecursionError: too deep"),
    ]
    assert sorted((item.path, item.name) for item in report.findings) == [
        ("a.py", "second"),
        ("a.py", "unmasked-load"),
        ("b.py", "second"),
        ("b.py", "unmasked-load"),
    ]
    assert report.checked == ["a.py", "b.py"]
    assert "3 rule runs failed" in verdict(report)


def test_a_run_without_findings_in_which_a_rule_raised_is_an_error(tmp_path):
    report = audit(lay_out(tmp_path, {"a.py": HEAD + kernel("breaks")}))
    assert report.findings == []
    assert exit_code(report) == 2


def test_with_a_root_only_the_targets_are_reported(tmp_path):
    lay_out(tmp_path, {"a.py": HEAD + kernel("one"), "b.py": HEAD + kernel("two")})
    report = audit(tmp_path, [tmp_path / "b.py"])
    assert [item.path for item in report.findings] == ["b.py"]
    assert report.checked == ["b.py"]


def test_what_a_rule_sees_in_another_file_is_reported_once_and_only_in_the_targets(tmp_path):
    class Everywhere(UnmaskedLoad):
        name = "everywhere"
        triggers = ()

        def check(self, module, project):
            for path in project.paths:
                yield from super().check(project.module(path), project)

    lay_out(tmp_path, {"a.py": HEAD + kernel("one"), "b.py": HEAD + kernel("two"), "c.py": HEAD + kernel("three")})
    report = audit(tmp_path, [tmp_path / "a.py", tmp_path / "b.py"], rules=(Everywhere(),))
    assert [item.path for item in report.findings] == ["a.py", "b.py"]


def test_several_processes_find_what_one_does(tmp_path):
    files = {f"pkg/m{n}.py": HEAD + kernel(f"k{n}") + (kernel("breaks") if n == 7 else "") for n in range(40)}
    lay_out(tmp_path, {**files, "pkg/bad.py": "def f(:\n"})
    one, two = (audit(tmp_path, jobs=jobs).model_dump(exclude={"seconds"}) for jobs in (1, 2))
    assert one == two
    assert len(one["findings"]) == 40
    assert len(one["not_analysed"]) == 2


def test_a_file_that_ends_the_process_is_named_and_the_others_are_analysed(tmp_path):
    files = {f"m{n:02}.py": HEAD + kernel(f"k{n}") for n in range(30)}
    lay_out(tmp_path, {**files, "m13.py": HEAD + kernel("ends")})
    report = audit(tmp_path, jobs=2)
    assert [(item.path, item.reason) for item in report.not_analysed] == [
        ("m13.py", "the process that read it was ended")
    ]
    assert len(report.findings) == 29


def test_a_process_that_was_ended_is_no_result_for_later(tmp_path, monkeypatch):
    lay_out(tmp_path, {f"m{n:02}.py": HEAD + kernel("ends" if n == 13 else f"k{n}") for n in range(30)})
    cache = Cache(tmp_path / "cache")
    assert [item.path for item in audit(tmp_path, cache=cache, jobs=2).not_analysed] == ["m13.py"]
    monkeypatch.setattr(UnmaskedLoad, "check", lambda self, module, project: iter(()))
    assert audit(tmp_path, cache=cache, jobs=2).not_analysed == []


def test_what_stands_in_a_test_is_dropped_and_says_so(tmp_path):
    files = {"tests/a.py": HEAD + kernel(), "ops.py": HEAD + kernel(), "benchmarks/b.py": HEAD + kernel("safe")}
    report = audit(lay_out(tmp_path, files))
    assert [item.path for item in report.findings] == ["ops.py"]
    assert [(item.path, item.line, item.reason) for item in report.dismissed] == [
        ("tests/a.py", 7, "stands in a test, a benchmark or an example")
    ]


def test_an_indexed_call_counts_as_a_launch_only_where_there_may_be_a_kernel(tmp_path):
    files = {"plain.py": "def f(x):\n    x[1](2)\n", "host.py": "import triton\n\n\ndef f(k):\n    k[(1,)](2)\n"}
    assert audit(lay_out(tmp_path, files)).analysed.launches == 1


def test_a_finding_names_the_innermost_function(tmp_path):
    class Outer(UnmaskedLoad):
        def check(self, module, project):
            for seen in super().check(module, project):
                yield replace(seen, function=module.functions[0])

    source = HEAD + "def host(p):\n    @triton.jit\n    def inner(q):\n        return tl.load(q)\n"
    assert audit(lay_out(tmp_path, {"a.py": source}), rules=(Outer(),)).findings[0].function == "host.inner"


def test_a_failed_rule_is_not_clean_and_makes_no_baseline(tmp_path):
    lay_out(tmp_path, {"a.py": HEAD + kernel("breaks")})
    report = audit(tmp_path)
    assert verdict(report).startswith("no finding, but a rule failed: ")
    assert verdict(report).endswith("; 1 rule run failed")


def test_the_progress_reaches_the_number_of_files(tmp_path):
    lay_out(tmp_path, {f"m{n}.py": "x = 1\n" for n in range(3)})
    seen = []
    audit(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_graver_and_surer_finding_comes_first(tmp_path):
    source = HEAD + kernel() + "x = 1  # deltaproof: ignore[unmasked-load] for nothing\n"
    report = audit(lay_out(tmp_path, {"a.py": source}))
    assert [item.severity for item in report.findings] == ["critical", "low"]


def test_the_command_that_shows_it_is_named_only_where_verify_can_run_the_code(tmp_path):
    files = {"fla/ops/gated_delta_rule/chunk.py": HEAD + kernel(), "fla/ops/rwkv/chunk.py": HEAD + kernel()}
    found = {item.path: item.try_ for item in audit(lay_out(tmp_path, files)).findings}
    assert found == {
        "fla/ops/gated_delta_rule/chunk.py": "deltaproof verify --backend fla --probe ragged",
        "fla/ops/rwkv/chunk.py": None,
    }


@pytest.mark.parametrize("threshold", ["critical", "low", "likely", "possible"])
def test_a_finding_at_the_threshold_fails_the_run(tmp_path, threshold):
    assert exit_code(audit(lay_out(tmp_path, {"a.py": HEAD + kernel()})), threshold) == 1


@pytest.mark.parametrize("threshold", ["proven", "reproduced"])
def test_a_finding_below_the_threshold_does_not(tmp_path, threshold):
    assert exit_code(audit(lay_out(tmp_path, {"a.py": HEAD + kernel()})), threshold) == 0


def test_a_target_outside_the_root_is_refused(tmp_path):
    lay_out(tmp_path, {"in/a.py": "", "out.py": ""})
    with pytest.raises(ContractError, match="PATH: expected files and folders inside --root"):
        audit(tmp_path / "in", [tmp_path / "out.py"])


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ContractError, match="--root: expected a folder that exists"):
        audit(tmp_path / "none", [tmp_path])


def test_own_rules_need_no_rule_beside_them(tmp_path):
    report = audit(lay_out(tmp_path, {"a.py": "x = 1  # deltaproof: ignore[nothing] why\n"}), rules=OWN_RULES)
    assert [item.name for item in report.findings] == ["invalid-suppression"]
