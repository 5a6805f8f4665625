"""Time the auditor on a tree, cold and with a warm cache, beside ruff with every rule on the same tree.

    python tools/audit_speed.py TREE --jobs 2

Every command runs three times; the fastest counts. Memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds that a command takes; exit codes 0 and 1 are results."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> int:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if ruff is None:
        sys.exit("ruff is not installed")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        output = f"{folder}/report.json"
        audit = [sys.executable, "-m", "deltaproof", "audit", str(options.tree), "--preview", "--format", "json"]
        audit += ["--output", output, "--jobs", str(options.jobs)]
        every = [ruff, "check", "--select", "ALL", "--no-cache", "--quiet", str(options.tree)]
        commands = {"ruff, all rules, no cache": every, "audit, no cache": [*audit, "--no-cache"]}
        best = {name: min(timed(line, environment) for _ in range(options.runs)) for name, line in commands.items()}
        timed(audit, environment)
        best["audit, warm cache"] = min(timed(audit, environment) for _ in range(options.runs))
    first = best["ruff, all rules, no cache"]
    for name, seconds in best.items():
        print(f"{name:28} {seconds:7.2f} s   {seconds / first:5.2f} x ruff")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"largest process              {peak / 1024:7.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
