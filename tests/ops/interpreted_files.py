"""Running the tests in a folder ``interpreted/``: in Triton's interpreter on the CPU, or on a GPU as they are.

The interpreter has to be asked for before triton is imported, so each file runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from deltaproof.ops.common.triton_interpreter import VARIABLE


def passed(file: Path, interpreted: bool) -> int:
    """Run one file and return how many of its tests passed; all must."""
    environment = {**os.environ, VARIABLE: "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    (count,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert not re.search(r"\d+ (skipped|xfailed|deselected)", done.stdout), done.stdout
    return int(count)
