"""The runner: a crash, a hang or an exception of a backend is a result, and exit codes say what happened."""

import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from deltaproof.cli.app import app
from deltaproof.reports.model import Status, VerifyReport
from deltaproof.verify.runner import NOT_REACHED

BACKENDS = """
import os, signal, time
import torch
from deltaproof.backends import Conventions
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

class Good(TorchBackend):
    name = "good"

class Crash(TorchBackend):
    name = "crash"
    def chunk(self, call):
        os.kill(os.getpid(), signal.SIGSEGV)

class Exits(TorchBackend):
    name = "exits"
    def chunk(self, call):
        os._exit(3)

class Hang(TorchBackend):
    name = "hang"
    def chunk(self, call):
        time.sleep(3600)

class SlowOnce(TorchBackend):
    name = "slow-once"
    def chunk(self, call):
        mark = os.path.join(os.path.dirname(__file__), "compiled")
        if not os.path.exists(mark):
            open(mark, "w").close()
            time.sleep(3600)
        return super().chunk(call)

class Raises(TorchBackend):
    name = "raises"
    def chunk(self, call):
        raise RuntimeError("no kernel image")

class Wrong(TorchBackend):
    name = "wrong"
    def chunk(self, call):
        o, state = super().chunk(call)
        return o * 1.01, state

class NoForm:
    name, version, operator, conventions, unsupported = "none", "0", "gated_delta_rule", Conventions(), {}

class Nothing(TorchBackend):
    name = "nothing"
    unsupported = {"dtype:float32": "no", "dtype:bfloat16": "no", "dtype:float16": "no"}

class BadReason(TorchBackend):
    unsupported = {"vralen": "a typo"}

def broken_import():
    raise ImportError("libmissing.so")
"""


@pytest.fixture
def verify(tmp_path, monkeypatch):
    (tmp_path / "backends.py").write_text(BACKENDS)
    monkeypatch.chdir(tmp_path)

    def run(attribute, *more, probe="values", form="chunk"):
        words = ["verify", "--backend", f"backends.py:{attribute}", "--form", form, "--probe", probe, "--jobs", "1"]
        done = CliRunner().invoke(app, [*words, "--format", "json", *more])
        report = json.loads(done.stdout) if done.stdout.startswith("{") else None
        return done.exit_code, report, done.stderr

    return run


def ran(report):
    return [check for check in report["checks"] if check["status"] not in ("not-run", "skipped")]


def test_a_right_backend_exits_0(verify):
    code, report, _ = verify("Good")
    assert code == 0
    assert {check["status"] for check in ran(report)} == {"pass"}


def test_a_wrong_backend_exits_1_and_every_failure_can_be_repeated(verify, tmp_path):
    code, report, _ = verify("Wrong")
    assert code == 1
    failed = [check for check in ran(report) if check["status"] == "fail"]
    assert failed
    for check in failed:
        assert check["clause"] == "N2"
        assert check["ratio"] > 1
        assert check["observed"] > check["bound"]
        assert check["value"] != check["expected"]
        assert check["location"]["tensor"] == "o"
        assert f"--probe values --case {check['case'].split('/')[0]}" in check["repeat"].replace("'", "")
    again = [sys.executable, "-m", *failed[0]["repeat"].split(" ")]
    done = subprocess.run(" ".join(again), shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert failed[0]["case"] in done.stdout


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("Crash", "SIGSEGV"), ("Exits", "exit code 3"), ("Raises", "RuntimeError at backends.py")],
)
def test_a_crash_is_a_failed_check_and_the_run_goes_on(verify, attribute, message):
    code, report, _ = verify(attribute)
    assert code == 1
    checks = ran(report)
    assert len(checks) >= 5
    assert {check["status"] for check in checks} == {"fail"}
    assert all(message in check["message"] for check in checks), [check["message"] for check in checks]


def test_a_hang_is_a_failed_check(monkeypatch, tmp_path):
    from deltaproof.ops.registry import operator
    from deltaproof.verify.probe import probes
    from deltaproof.verify.runner import Runner, Selection
    from deltaproof.verify.worker import Setup

    (tmp_path / "backends.py").write_text(BACKENDS)
    monkeypatch.setattr(type(probes()["values"]), "timeout", 2.0)
    setup = Setup(f"{tmp_path}/backends.py:Hang", "gated_delta_rule", "cpu", 0, 1)
    everything = Selection(operator("gated_delta_rule"), ("chunk",), ("values",)).tasks()[0]
    selection = Selection(operator("gated_delta_rule"), ("chunk",), ("values",), (everything[0].case.id,))
    report = Runner(setup, selection).run(["test"])
    (check,) = report.of("fail")
    assert "no answer within 2 s, twice" in check.message


def test_a_call_that_is_slow_once_is_no_hang(monkeypatch, tmp_path):
    """A first call may compile for long; the second finds what it compiled."""
    from deltaproof.ops.registry import operator
    from deltaproof.verify.probe import probes
    from deltaproof.verify.runner import Runner, Selection
    from deltaproof.verify.worker import Setup

    (tmp_path / "backends.py").write_text(BACKENDS)
    monkeypatch.setattr(type(probes()["values"]), "timeout", 5.0)
    setup = Setup(f"{tmp_path}/backends.py:SlowOnce", "gated_delta_rule", "cpu", 0, 1)
    everything = Selection(operator("gated_delta_rule"), ("chunk",), ("values",)).tasks()[0]
    selection = Selection(operator("gated_delta_rule"), ("chunk",), ("values",), (everything[0].case.id,))
    runner = Runner(setup, selection)
    report = runner.run(["test"])
    assert (tmp_path / "compiled").exists()
    assert runner.late == {("values", everything[0].case.id)}
    assert [check.status for check in report.checks if check.status != "not-run"] == ["pass"], report.checks


def test_nothing_to_judge_is_not_a_pass(verify):
    code, report, _ = verify("Nothing")
    assert code == 2
    assert {check["status"] for check in ran(report)} == {"unsupported"}
    assert all("dtype:" in check["reason"] for check in ran(report))


@pytest.mark.parametrize(
    ("attribute", "pieces"),
    [
        ("Missing", ("backend: expected an attribute of backends.py", "'Missing'")),
        ("NoForm", ("backend: expected at least one method of chunk, recurrent, decode, prefill",)),
        ("BadReason", ("backend.unsupported: expected a clause or one of", "'vralen'")),
        ("broken_import", ("backend: expected a class with attribute 'name'",)),
    ],
)
def test_a_backend_that_is_none_is_a_usage_error(verify, attribute, pieces):
    code, report, error = verify(attribute)
    assert code == 2
    assert report is None
    assert all(piece in error for piece in pieces), error


@pytest.mark.parametrize(
    ("option", "pieces"),
    [
        (("--probe", "valuse"), ("probe: expected one of values", "got 'valuse'")),
        (("--form", "chunks"), ("form: expected one of chunk, recurrent, decode, prefill", "got 'chunks'")),
        (("--case", "chunk/none"), ("case: expected the id of a case", "chunk/none")),
        (("--operator", "gdn"), ("operator: expected one of", "got 'gdn'")),
        (("--output", "no/such/folder.json"), ("--output", "folder that exists")),
        (("--device", "cuda"), ("--device", "no GPU is visible")),
    ],
)
def test_a_usage_error_names_the_argument(verify, option, pieces):
    import torch

    if "cuda" in option and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, report, error = verify("Good", *option)
    assert code == 2
    assert report is None
    assert all(piece in error for piece in pieces), error


def test_what_was_not_selected_is_counted_and_named(verify):
    _, report, _ = verify("Good")
    left_out = {(check["probe"], check["form"]) for check in report["checks"] if check["status"] == "not-run"}
    assert ("values", "decode") in left_out
    assert all(check["reason"] == "not selected" for check in report["checks"] if check["status"] == "not-run")


def test_the_result_goes_to_a_file_when_asked(verify, tmp_path):
    code, report, _ = verify("Good", "--output", "result.json")
    assert code == 0
    assert report is None
    assert json.loads((tmp_path / "result.json").read_text())["schema_name"] == "deltaproof.verify"


def test_a_run_that_is_killed_leaves_the_checks_it_made(tmp_path):
    slow = "class Slow(TorchBackend):\n    def chunk(self, call):\n        time.sleep(0.5)\n"
    (tmp_path / "backends.py").write_text(f"{BACKENDS}\n{slow}        return super().chunk(call)\n")
    path = tmp_path / "result.json"
    path.write_text("older")
    words = "verify --backend backends.py:Slow --form chunk --probe values --jobs 1 --format json --output result.json"
    command = [sys.executable, "-m", "deltaproof", *words.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while path.read_text() == "older" and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    report = VerifyReport.model_validate_json(path.read_text())
    assert not report.complete
    chosen = [check for check in report.checks if check.form == "chunk" and check.probe == "values"]
    missing = [check for check in chosen if check.status is Status.NOT_RUN]
    assert {check.reason for check in missing} == {NOT_REACHED}
    assert {check.status for check in chosen} == {Status.PASS, Status.NOT_RUN}
    assert len({check.case for check in chosen}) == len(chosen) > len(missing)


def test_a_wrong_kind_of_answer_is_the_backends_failure(verify, tmp_path):
    source = (tmp_path / "backends.py").read_text()
    more = "\nclass NoState(TorchBackend):\n    def chunk(self, call):\n        return super().chunk(call)[0]\n"
    (tmp_path / "backends.py").write_text(source + more)
    code, report, _ = verify("NoState")
    assert code == 1
    assert {check["status"] for check in ran(report)} == {"fail"}
    assert all("returned Tensor, expected (o, final_state)" in check["message"] for check in ran(report))
