"""``deltaproof verify --backend triton --device cpu`` interprets the kernels without being told to."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from deltaproof.ops.common import triton_interpreter

MIXED = """
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

class Refused(TorchBackend):
    name = "refused"
    cannot_run = "the interpreter of triton 3.6.0 cannot take numpy 2.4.6"
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != triton_interpreter.VARIABLE}


def deltaproof(words: list[str], code: int, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "deltaproof", *words, "--jobs", "1", "--format", "json"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "RuntimeWarning" not in done.stderr
    return json.loads(done.stdout)


def made(report: dict) -> list[dict]:
    return [check for check in report["checks"] if check["status"] != "not-run"]


@pytest.mark.slow
def test_a_few_smoke_cases_pass_and_a_repeat_command_works_as_it_is_printed():
    pytest.importorskip("triton")
    reason = triton_interpreter.why_not()
    if reason is not None:
        pytest.skip(reason)
    from deltaproof.verify.execute import repeat_command_for

    words = ["verify", "--backend", "triton", "--device", "cpu", "--form", "decode", "--form", "recurrent"]
    checks = made(deltaproof([*words, "--probe", "values"], 0))
    assert {check["form"] for check in checks} == {"decode", "recurrent"}
    assert all(check["status"] == "pass" and check["ratio"] > 0 for check in checks), checks
    first = checks[0]
    repeat = shlex.split(repeat_command_for("gated_delta_rule", "triton", "cpu", "values", first["case"], 0))
    again = made(deltaproof(repeat[1:], 0))
    assert [(check["case"], check["observed"]) for check in again] == [(first["case"], first["observed"])]


def test_what_the_environment_says_is_kept():
    pytest.importorskip("triton")
    words = ["verify", "--backend", "triton", "--device", "cpu", "--form", "decode", "--probe", "values"]
    checks = made(deltaproof(words, 2, TRITON_INTERPRET="0"))
    assert {check["status"] for check in checks} == {"unsupported"}
    assert {check["reason"] for check in checks} == {"device:cpu: the kernels need a GPU"}


def test_where_the_backend_cannot_run_every_check_is_skipped_with_the_reason_and_nothing_has_passed(tmp_path):
    (tmp_path / "mixed.py").write_text(MIXED)
    words = ["verify", "--backend", f"{tmp_path}/mixed.py:Refused", "--form", "decode"]
    checks = made(deltaproof(words, 2))
    assert {check["status"] for check in checks} == {"skipped"}
    reasons = {check["reason"] for check in checks}
    assert reasons == {"the interpreter of triton 3.6.0 cannot take numpy 2.4.6", "needs a GPU"}
