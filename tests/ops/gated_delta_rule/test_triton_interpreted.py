"""Runs the tests in ``interpreted/``: in Triton's interpreter on the CPU, and on a GPU as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from deltaproof.ops.common.triton_interpreter import why_not
from tests.ops.interpreted_files import passed

FILES = Path(__file__).parent / "interpreted"
TESTS = {"operators": 54, "gradients": 51, "products": 6, "hopper": 110}
"""How many tests each file holds: one that is not collected is not missed."""


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("name", TESTS)
def test_in_the_interpreter(name):
    assert passed(FILES / f"{name}.py", interpreted=True) == TESTS[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["operators", "gradients", "hopper"])
def test_on_a_gpu(name):
    assert passed(FILES / f"{name}.py", interpreted=False) == TESTS[name]


def test_every_file_is_run():
    assert {path.stem for path in FILES.glob("*.py")} == set(TESTS)
