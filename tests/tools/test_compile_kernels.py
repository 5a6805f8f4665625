"""The tool that compiles kernels without a GPU: what it records, reads and refuses."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are never compiled", allow_module_level=True)
torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compile_kernels  # noqa: E402
from kernel_builds import coverage, report, spills  # noqa: E402
from kernel_builds.build import SHARED_LIMIT, Build, Usage, build_all, parse_usage  # noqa: E402
from kernel_builds.record import Launch, recording  # noqa: E402

import deltaproof.ops  # noqa: E402

FACTS = {"dtype": "fp32", "K": 64, "V": 64, "label": "a case"}


@triton.jit
def _doubled(x):
    return x * 2.0


@triton.jit(do_not_specialize=["rows"])
def double_kernel(x, y, factor, rows, stride, one, wide, SIZE: tl.constexpr, FLAG: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at * stride + wide, _doubled(tl.load(x + at, mask=at < rows, other=0.0)) * factor + one)


@triton.jit
def hungry_kernel(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    b = tl.load(x + at)
    tl.store(y + at, b / tl.sum(b))


@triton.jit
def long_kernel(x, STEPS: tl.constexpr):
    b = tl.load(x)
    for _ in tl.static_range(STEPS):
        b = tl.sin(b) + b * b
    tl.store(x, b)


@triton.jit
def broken_kernel(x):
    tl.static_assert(False, "this one is broken")


def double(x: Any, y: Any, *, rows: int = 16, warps: int = 2) -> None:
    double_kernel[(1,)](x, y, 0.5, rows, 32, 1, 2**31, SIZE=16, FLAG=True, num_warps=warps)


def launches_of(run: Any) -> list[Launch]:
    with recording() as recorder:
        recorder.facts = FACTS
        run()
    return list(recorder.launches.values())


def test_a_launch_is_recorded_as_triton_specialises_it() -> None:
    x, y = torch.zeros(16, dtype=torch.bfloat16), torch.zeros(17)[1:]
    (launch,) = launches_of(lambda: double(x, y))

    assert launch.kernel == "double_kernel"
    assert launch.signature == {
        "x": "*bf16",
        "y": "*fp32",
        "factor": "fp32",
        "rows": "i32",
        "stride": "i32",
        "one": "constexpr",
        "wide": "i64",
        "SIZE": "constexpr",
        "FLAG": "constexpr",
    }
    assert launch.constexprs == {"one": 1, "SIZE": 16, "FLAG": True}
    by_16 = [["tt.divisibility", 16]]
    # y is not aligned, rows is not specialised, the others are multiples of 16
    assert launch.attributes == {(0,): by_16, (1,): [], (4,): by_16, (6,): by_16}
    assert (launch.options.num_warps, launch.options.num_stages) == (2, 3)
    assert launch.options.arch == "sm90"
    assert launch.facts == [FACTS]


def test_launches_that_compile_alike_are_one() -> None:
    x, y = torch.zeros(17), torch.zeros(16)
    with recording() as recorder:
        recorder.facts = {"label": "first"}
        double(x, y)
        recorder.facts = {"label": "second"}
        double(x, y, rows=1)  # not specialised
        double(x[1:], y)
        double(x, y, warps=4)
    assert [[facts["label"] for facts in launch.facts] for launch in recorder.launches.values()] == [
        ["first", "second"],
        ["second"],
        ["second"],
    ]


def test_recording_runs_nothing_and_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("a driver was created")

    # the package has an object of the module's name
    monkeypatch.setattr(sys.modules["triton.runtime.driver"], "_create_driver", refuse)
    x, y = torch.ones(16), torch.ones(1024)
    before = triton.runtime.driver._active
    assert len(launches_of(lambda: double(x, y))) == 1
    assert bool((y == 1).all())
    assert triton.runtime.driver._active is before


def test_a_function_that_no_case_reaches_is_named() -> None:
    launches = launches_of(lambda: double(torch.zeros(16), torch.zeros(16)))
    functions = [_doubled, double_kernel, hungry_kernel]
    assert coverage.uncovered(functions, launches) == [f"{__name__}.hungry_kernel"]
    assert coverage.uncovered(functions, []) == [f"{__name__}.{x.__name__}" for x in functions]


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    return compile_kernels.recorded()


def test_every_kernel_of_the_package_is_launched_by_a_case(launches: list[Launch]) -> None:
    functions = coverage.jit_functions(deltaproof.ops)
    assert {"recurrence_kernel", "softplus"} <= {function.__name__ for function in functions}
    assert coverage.uncovered(functions, launches) == []
    lines = report.launch_lines(launches)
    assert len(lines) == len(launches) + 1
    assert {line.split()[0] for line in lines[1:]} == {launch.kernel for launch in launches}


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'outer' for 'sm_90a'
ptxas info    : Function properties for outer
    248 bytes stack frame, 300 bytes spill stores, 344 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 248 bytes cumulative stack size
ptxas info    : Function properties for inner
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
"""


def test_usage_is_read_from_the_log_of_ptxas() -> None:
    usage = parse_usage(LOG)
    assert usage == Usage(registers=255, spill_stores=304, spill_loads=356, stack=256)
    assert usage.spilled == 660
    assert Usage(32, 0, 0, stack=16).spilled == 16
    assert Usage(32, 0, 0, stack=0).spilled == 0
    with pytest.raises(ValueError, match="no resource usage"):
        parse_usage("ptxas info    : 0 bytes gmem\n")


def test_real_kernels_compile_clean_spill_fail_or_take_too_long() -> None:
    x = torch.zeros(8192)

    def run() -> None:
        double(x, x)
        hungry_kernel[(1,)](x, x, SIZE=8192, num_warps=1, maxnreg=32)
        broken_kernel[(1,)](x)

    clean, hungry, broken = build_all(launches_of(run), jobs=2, limit=60)
    assert clean.error is None and clean.usage is not None and clean.usage.spilled == 0
    assert 8 <= clean.usage.registers <= 64
    assert clean.seconds > 0
    assert hungry.error is None and hungry.usage is not None and hungry.usage.spilled > 1000
    assert hungry.usage.registers <= 32
    assert broken.usage is None and broken.error is not None and "this one is broken" in broken.error

    (late,) = build_all(launches_of(lambda: long_kernel[(1,)](x, STEPS=5000)), jobs=1, limit=1)
    assert late.error == "took more than 1 s"

    found = spills.problems([clean, hungry, broken, late], [], triton.__version__, whole=True)
    assert [line.split(" ")[0] for line in found] == ["hungry_kernel", "broken_kernel", "long_kernel"]
    lines = report.build_lines([clean, hungry, broken, late])
    assert lines[0].split() == ["kernel", "first", "case", "warps", "regs", "spills", "stack", "shared", "seconds"]
    assert lines[3].split()[-5:-1] == ["-"] * 4


def build(spilled: int, shared: int = 0, **facts: Any) -> Build:
    launch = Launch(hungry_kernel, {}, {(2,): 8192}, {}, None, [{**FACTS, **facts}])
    return Build(launch, 1.0, Usage(255, spilled, 0, spilled), shared)


def row(where: dict[str, Any], limits: dict[str, int] | None = None, reason: str = "no other tile fits") -> Any:
    return spills.Allowed("hungry_kernel", where, {"3.6.0": 100} if limits is None else limits, reason)


FP32_64 = {"dtype": "fp32", "K": 64, "V": 64}


def test_a_spill_needs_a_row_that_allows_as_much() -> None:
    (unlisted,) = spills.problems([build(100)], [], "3.6.0", whole=True)
    assert "spills 100 bytes and is not listed" in unlisted and '"K": 64' in unlisted
    assert spills.problems([build(100)], [row(FP32_64)], "3.6.0", whole=True) == []
    (more,) = spills.problems([build(104)], [row(FP32_64)], "3.6.0", whole=True)
    assert "spills 104 bytes, its row allows 100" in more
    (other,) = spills.problems([build(100)], [row(FP32_64)], "3.5.1", whole=True)
    assert "is not listed" in other
    precise = row({**FP32_64, "SIZE": [4096, 8192]})
    assert spills.problems([build(100)], [precise], "3.6.0", whole=True) == []
    assert len(spills.problems([build(100)], [row({**FP32_64, "SIZE": 4096})], "3.6.0", whole=False)) == 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_with_head_sizes_64_and_128_never_spills(dtype: str) -> None:
    rows = [row({"dtype": dtype, "K": 64, "V": 128})]
    (found,) = spills.problems([build(4, dtype=dtype, V=128)], rows, "3.6.0", whole=True)
    assert "never allowed" in found
    shared = build(4)
    shared.launch.facts.append({**FACTS, "dtype": dtype})  # one of two cases that compile alike
    (found,) = spills.problems([shared], [row(FP32_64)], "3.6.0", whole=True)
    assert "never allowed" in found
    assert spills.problems([build(0, dtype=dtype)], [], "3.6.0", whole=True) == []
    odd = {"dtype": dtype, "K": 256, "V": 64}
    assert spills.problems([build(4, **odd)], [row(odd)], "3.6.0", whole=True) == []


def test_a_row_that_nothing_needs_is_stale() -> None:
    rows = [row(FP32_64), row({"dtype": "fp32", "K": 256, "V": 256})]
    (stale,) = spills.problems([build(8)], rows, "3.6.0", whole=True)
    assert '"K": 256' in stale and "nothing spills there" in stale
    assert spills.problems([build(8)], rows, "3.6.0", whole=False) == []
    assert len(spills.problems([build(0)], rows, "3.6.0", whole=True)) == 2


def test_too_much_shared_memory_and_an_error_are_problems() -> None:
    assert spills.problems([build(0, shared=SHARED_LIMIT)], [], "3.6.0", whole=True) == []
    (found,) = spills.problems([build(0, shared=SHARED_LIMIT + 1)], [], "3.6.0", whole=True)
    assert "shared memory" in found
    (found,) = spills.problems([replace(build(0), error="took more than 60 s")], [], "3.6.0", whole=True)
    assert "took more than 60 s" in found


def test_refreshing_keeps_reasons_and_drops_what_no_version_needs() -> None:
    rows = [row(FP32_64, {"3.5.1": 7, "3.6.0": 100}), row({"dtype": "fp32", "K": 256, "V": 256})]
    fresh = spills.refreshed(rows, [build(40), build(48)], "3.6.0")
    assert fresh == [row(FP32_64, {"3.5.1": 7, "3.6.0": 48})]
    assert spills.refreshed(fresh, [build(0)], "3.6.0") == [row(FP32_64, {"3.5.1": 7})]


def test_writing_fills_in_counts_and_adds_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(8192)
    hungry = launches_of(lambda: hungry_kernel[(1,)](x, x, SIZE=8192, num_warps=1, maxnreg=32))
    monkeypatch.setattr(compile_kernels, "recorded", lambda: hungry)
    monkeypatch.setattr(coverage, "jit_functions", lambda package: [])
    path = tmp_path / "spills.json"

    spills.write_rows(path, [])
    assert compile_kernels.main(["--write", "--spills", str(path)]) == 1
    assert "is not listed" in capsys.readouterr().err
    assert spills.read_rows(path) == []

    spills.write_rows(path, [row(FP32_64, {}, "kept as it is")])
    assert compile_kernels.main(["--write", "--spills", str(path)]) == 0
    (written,) = spills.read_rows(path)
    assert written.reason == "kept as it is"
    assert list(written.bytes) == [triton.__version__] and written.bytes[triton.__version__] > 1000
    assert compile_kernels.main(["--spills", str(path)]) == 0


def test_rows_are_written_and_read_back(tmp_path: Path) -> None:
    rows = [row(FP32_64), row({"dtype": ["fp32"], "K": 33, "V": 40, "varlen": True})]
    spills.write_rows(tmp_path / "spills.json", rows)
    assert spills.read_rows(tmp_path / "spills.json") == rows


@pytest.mark.parametrize(
    ("where", "reason", "message"),
    [
        (FP32_64, " ", "needs a reason"),
        ({"dtype": "fp32", "K": 64}, "wide", "must name dtype, K and V"),
        ({"dtype": "bf16", "K": 64, "V": 128}, "wide", "may never spill"),
        ({"dtype": ["fp32", "fp16"], "K": [256, 128], "V": 64}, "wide", "may never spill"),
    ],
)
def test_a_row_that_may_not_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: dict[str, Any], reason: str, message: str
) -> None:
    path = tmp_path / "spills.json"
    spills.write_rows(path, [row(where, reason=reason)])
    assert compile_kernels.main(["--spills", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_a_row_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spills.json"
    path.write_text(json.dumps([{"kernel": "a_kernel", "where": FP32_64, "max": 3}]), encoding="utf-8")
    with pytest.raises(ValueError, match="needs kernel, where, bytes and reason"):
        spills.read_rows(path)


def test_another_version_of_triton_than_expected_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile_kernels.main(["--expect-triton", "1.2.3"])
    assert "triton 1.2.3 was expected" in capsys.readouterr().err


def test_the_tool_prints_a_table_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launches: list[Launch],
) -> None:
    monkeypatch.setattr(compile_kernels, "recorded", lambda: launches)
    out = tmp_path / "builds.json"
    code = compile_kernels.main(["--kernel", "zero_tail", "--json", str(out), "--expect-triton", triton.__version__])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    builds = json.loads(out.read_text(encoding="utf-8"))["builds"]
    assert builds and {build["kernel"] for build in builds} == {"zero_tail_kernel"}
    assert all(build["registers"] > 0 and build["spill_stores"] == 0 and build["error"] is None for build in builds)
    assert f"triton {triton.__version__}, cuda:90: {len(builds)} compiled of 1 kernels" in printed.out
