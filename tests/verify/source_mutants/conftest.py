"""Triton's interpreter, where it works."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

WORKS = """
import torch, triton, triton.language as tl
import pathlib, sys, tempfile, importlib.util

text = '''
import triton
import triton.language as tl

@triton.jit
def total(x, y):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, 4))))
'''
path = pathlib.Path(tempfile.mkdtemp()) / "probe.py"
path.write_text(text)
spec = importlib.util.spec_from_file_location("probe", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
y = torch.zeros(1)
module.total[(1,)](torch.ones(4), y)
assert y.item() == 4.0
"""
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


@cache
def trouble() -> str:
    done = subprocess.run([sys.executable, "-c", WORKS], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it fails"])[-1]


@pytest.fixture
def interpreter() -> dict[str, str]:
    """Return the environment for a process that interprets kernels; skip where the interpreter does not work."""
    pytest.importorskip("triton")
    if trouble():
        pytest.skip(f"Triton's interpreter does not work here: {trouble()}")
    return dict(ENVIRONMENT)
