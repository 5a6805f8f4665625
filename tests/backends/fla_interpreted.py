"""Running scripts on the installed fla in Triton's interpreter, each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

needs_fla = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fla", "einops")), reason="fla-core is not installed"
)


def fla_version() -> str | None:
    """Return the version of the installed fla-core."""
    try:
        return importlib.metadata.version("fla-core")
    except importlib.metadata.PackageNotFoundError:
        return None


def run(script: str, *arguments: str) -> list[str]:
    """Run a script and return the lines it printed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()
