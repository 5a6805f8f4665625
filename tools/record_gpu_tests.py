"""Run the tests marked ``gpu`` on this machine and keep what came of each as JSON.

python tools/record_gpu_tests.py benchmarks/results/gpu-tests-h200.json
"""

from __future__ import annotations

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


def main(path: Path) -> int:
    """Run the tests, write the file and return pytest's exit code."""
    recorder = Recorder()
    code = pytest.main(["-m", "gpu", "-q", str(ROOT / "tests")], plugins=[recorder])
    result = {"machine": machine("cuda"), "versions": versions(), "commit": commit(), "exit_code": int(code)}
    path.write_text(json.dumps({**result, "tests": recorder.outcomes}, indent=2) + "\n")
    return int(code)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
