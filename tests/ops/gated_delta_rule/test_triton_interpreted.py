"""Runs the tests in ``interpreted/``: in Triton's interpreter on the CPU, and on a GPU as they are.

The interpreter has to be asked for before triton is imported, so each file runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from deltaproof.ops.common.triton_interpreter import VARIABLE, why_not

FILES = Path(__file__).parent / "interpreted"
TESTS = {"operators": 48, "gradients": 51, "products": 6}
"""How many tests each file holds: one that is not collected is not missed."""


def passed(name: str, interpreted: bool) -> int:
    """Run one file and return how many of its tests passed; all must."""
    environment = {**os.environ, VARIABLE: "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, str(FILES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    (count,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert not re.search(r"\d+ (skipped|xfailed|deselected)", done.stdout), done.stdout
    return int(count)


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("name", TESTS)
def test_in_the_interpreter(name):
    assert passed(name, interpreted=True) == TESTS[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["operators", "gradients"])
def test_on_a_gpu(name):
    assert passed(name, interpreted=False) == TESTS[name]


def test_every_file_is_run():
    assert {path.stem for path in FILES.glob("*.py")} == set(TESTS)
