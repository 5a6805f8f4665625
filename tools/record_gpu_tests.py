"""Run the tests marked ``gpu`` on this machine and keep what came of each as JSON.

python tools/record_gpu_tests.py benchmarks/results/gpu-tests-h200.json --jobs 8
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deltaproof.verify.machine import commit, machine, versions  # noqa: E402


class Recorder:
    """Collects the outcome of every test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of the call, or of the set-up where that ends the test."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the tests, write the file and return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write what came of them")
    parser.add_argument("--jobs", type=int, default=1, help="tests at a time (default: 1)")
    asked = parser.parse_args(arguments)
    workers = ["-n", str(asked.jobs), "--dist", "worksteal"] if asked.jobs > 1 else []
    recorder = Recorder()
    code = pytest.main(["-m", "gpu", "-q", *workers, str(ROOT / "tests")], plugins=[recorder])
    result = {"machine": machine("cuda"), "versions": versions(), "commit": commit(), "exit_code": int(code)}
    asked.file.write_text(json.dumps({**result, "tests": recorder.outcomes}, indent=2) + "\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
