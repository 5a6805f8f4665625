"""Compile every Triton kernel for compute capability 9.0, without a GPU, and say what each needs.

The kernels are found by running the backend's host code on the CPU and noting what it would launch. Exit code 1 where a
kernel is never launched, does not compile, takes too long or too much shared memory, or spills registers outside
benchmarks/spills.json.

    python tools/compile_kernels.py --kernel states --json builds.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernel_builds import conv_cases, coverage, record, report, spills  # noqa: E402, I001  (record comes before triton)
from kernel_builds.build import build_all  # noqa: E402
from kernel_builds.cases import CASES, run  # noqa: E402

import torch  # noqa: E402
import triton  # noqa: E402

import deltaproof.ops  # noqa: E402


def recorded() -> list[record.Launch]:
    """Return the distinct launches of all cases."""
    torch.set_num_threads(1)
    with record.recording() as recorder:
        for case in CASES:
            recorder.facts = case.facts()
            run(case)
        for conv in conv_cases.CASES:
            recorder.facts = conv.facts()
            conv.run()
    return report.ordered(recorder.launches.values())


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", metavar="SUBSTRING", help="only kernels whose name contains this")
    parser.add_argument("--list", action="store_true", help="name what would be compiled, and compile nothing")
    parser.add_argument("--jobs", type=int, default=2, help="compiles at a time (default: 2)")
    parser.add_argument("--limit", type=int, default=60, metavar="SECONDS", help="CPU time a compile may take")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--spills", type=Path, default=ROOT / "benchmarks" / "spills.json", help="the allowed spills")
    parser.add_argument("--write", action="store_true", help="refresh the byte counts of the allowed spills")
    parser.add_argument("--expect-triton", metavar="VERSION", help="fail where another version is installed")
    options = parser.parse_args(arguments)

    version = triton.__version__
    if options.expect_triton not in (None, version):
        parser.error(f"triton {options.expect_triton} was expected, {triton.__file__} is {version}")
    if options.write and options.kernel:
        parser.error("--write needs every kernel, so it goes without --kernel")
    try:
        rows = spills.read_rows(options.spills)
    except ValueError as refused:
        print(refused, file=sys.stderr)
        return 1
    launches = recorded()
    missing = coverage.uncovered(coverage.jit_functions(deltaproof.ops), launches)
    found = [f"{name}: no case launches it" for name in missing]
    launches = [launch for launch in launches if options.kernel in launch.kernel]
    if options.list:
        print("\n".join([*report.launch_lines(launches), *found]))
        return 1 if found else 0

    start = time.monotonic()
    builds = build_all(launches, jobs=options.jobs, limit=options.limit)
    if options.write:
        rows = spills.refreshed(rows, builds, version)
        spills.write_rows(options.spills, rows)
    found += spills.problems(builds, rows, version, whole=not options.kernel)
    print("\n".join(report.build_lines(builds)))
    target = f"{record.TARGET.backend}:{record.TARGET.arch}"
    spilling = sum(build.usage is not None and build.usage.spilled > 0 for build in builds)
    print(
        f"\ntriton {version}, {target}: {len(builds)} compiled of {len({x.kernel for x in launches})} kernels"
        f" in {time.monotonic() - start:.0f} s, {spilling} with spills, {len(found)} problems"
    )
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    if options.json:
        text = json.dumps(report.as_json(builds, found, version, target), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
