"""``deltaproof bench`` on a CPU: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltaproof.bench.model import BenchReport
from deltaproof.bench.sets import SETS, find
from deltaproof.cli.app import app

STOPPING = """
import os
import signal

from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend


class Stopping(TorchBackend):
    name = "stopping"
    shapes = set()

    def chunk(self, call):
        self.shapes.add(tuple(call.v.shape))
        if len(self.shapes) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().chunk(call)
"""

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "bench-prefill-h200.json"
BACKENDS = str(Path(__file__).parents[1] / "bench" / "backends.py")


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("operator", SETS)
@pytest.mark.parametrize("verb", ["prefill", "backward", "decode"])
def test_the_smoke_set_runs_anywhere(operator, verb, tmp_path):
    path, smoke = tmp_path / "result.json", find(operator, verb, "smoke")
    done = bench(
        verb, "--operator", operator, "--device", "cpu", "--backends", "torch", "--replays", "2", "--json", str(path)
    )
    assert done.exit_code == 0, done.output
    assert f"{operator}, {verb} on cpu" in done.stdout
    assert "floor ms" in done.stdout and "torch ms" in done.stdout
    assert done.stderr.count("torch") == len(smoke), "a line a row"
    report = BenchReport.model_validate_json(path.read_text())
    assert (report.operator, report.verb) == (operator, verb) and report.complete
    assert [row.workload for row in report.rows] == [workload.name for workload in smoke]
    assert all(row.time.replays == 2 for row in report.rows)
    # a pipe gets plain text in which no cell is cut
    assert "\x1b[" not in done.stdout and "…" not in done.stdout


def test_a_file_of_workloads_and_a_dtype_are_taken(tmp_path):
    shapes, result = tmp_path / "shapes.json", tmp_path / "result.json"
    shapes.write_text(json.dumps({"workloads": [{"heads": [1, 2], "lengths": [17], "K": 16, "V": 8}]}))
    done = bench("prefill", "--device", "cpu", "--shapes", str(shapes), "--dtype", "float16", "--json", str(result))
    assert done.exit_code == 0, done.output
    report = BenchReport.model_validate_json(result.read_text())
    assert report.dtype == "float16" and report.workloads[0].name == "1/2 17 K=16 V=8"


def test_a_backend_that_fails_its_check_makes_it_1_and_is_not_timed():
    done = bench("prefill", "--device", "cpu", "--backends", f"torch,{BACKENDS}:Scaled", "--replays", "1")
    assert done.exit_code == 1
    assert "FAIL" in done.stdout and "relative RMS error 0.1" in done.stdout
    assert "2 timed, 2 fail" in done.stdout


def test_a_run_that_is_killed_leaves_the_rows_it_measured_in_place_of_an_older_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("{}")
    stopping = tmp_path / "stopping.py"
    stopping.write_text(STOPPING)
    command = [sys.executable, "-m", "deltaproof", "bench", "prefill", "--device", "cpu", "--shapes", "smoke"]
    command += ["--backends", f"{stopping}:Stopping", "--replays", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = BenchReport.model_validate_json(path.read_text())
    assert not report.complete
    assert [row.backend for row in report.rows] == ["stopping"] and report.rows[0].time is not None
    assert list(tmp_path.glob(".result*")) == []


def test_ours_runs_the_smoke_set_with_a_table_a_json_a_summary_and_figures(tmp_path):
    path, figures = tmp_path / "result.json", tmp_path / "smoke"
    backends = f"ours,{BACKENDS}:Peer"
    done = bench(
        "prefill", "--backends", backends, "--device", "cpu", "--shapes", "smoke", "--replays", "1",
        "--json", str(path), "--plot", str(figures),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "fastest peer ÷ ours (above 1: ours is faster)" in done.stdout
    report = json.loads(path.read_text())
    assert report["summary"]["backend"] == "ours" and report["summary"]["geomean_vs_fastest_peer"] > 0
    assert set(report["summary"]["by_class"]) == {"few_heads", "one_sequence"}
    names = {f"smoke-{figure}.{suffix}" for figure in ("bars", "roofline") for suffix in ("svg", "png")}
    assert {file.name for file in tmp_path.glob("smoke-*")} == names
    assert all(f"wrote {tmp_path / name}" in done.stderr for name in names)


def test_a_kept_run_is_printed_and_drawn_again_and_gets_its_summary(tmp_path):
    copy = tmp_path / "copy.json"
    done = bench("--from", str(KEPT), "--plot", str(tmp_path / "x.svg"), "--json", str(copy))
    assert done.exit_code == 0, done.output
    assert "16/64 4096x8" in done.stdout and "geometric mean 0.97 of 14, worst 0.81" in done.stdout
    assert {file.name for file in tmp_path.glob("*.svg")} == {"x-bars.svg", "x-roofline.svg"}
    assert json.loads(copy.read_text())["summary"]["worst_workload"] == "2/8 1024x8"


def test_a_kept_run_is_read_where_torch_is_not_installed():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['deltaproof', 'bench', '--from', sys.argv[1]]\n"
        "from deltaproof.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(KEPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "geometric mean 0.97" in done.stdout, done.stderr


def test_a_figure_that_cannot_be_drawn_costs_neither_the_table_nor_the_json(tmp_path, monkeypatch):
    def refuse(report, path):
        raise OSError("disk full")

    monkeypatch.setattr("deltaproof.cli.bench.write_plots", refuse)
    path = tmp_path / "result.json"
    done = bench("prefill", "--device", "cpu", "--replays", "1", "--json", str(path), "--plot", str(tmp_path / "x"))
    assert done.exit_code == 2 and "disk full" in done.stderr and "2 timed" in done.stdout
    assert BenchReport.model_validate_json(path.read_text()).complete


def test_a_wrong_backend_makes_it_1_though_there_is_nothing_to_draw(tmp_path):
    done = bench("prefill", "--device", "cpu", "--backends", f"{BACKENDS}:Scaled", "--plot", str(tmp_path / "x"))
    assert done.exit_code == 1 and "--plot: expected a run with at least one time" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_nothing_is_measured_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("prefill", "--device", "cpu", "--plot", str(tmp_path / "x"))
    assert done.exit_code == 2 and "deltaproof[plot]" in done.output and "torch" not in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sideways"], ["sideways"]),
        (["prefill", "--backends", "no-such"], ["no-such", "torch"]),
        (["prefill", "--backends", f"{BACKENDS}:Missing"], ["Missing"]),
        (["prefill", "--backends", ","], ["--backends"]),
        (["prefill", "--operator", "softmax"], ["--operator", "softmax", "gated_delta_rule", "kda"]),
        (["decode", "--operator", "causal_conv1d"], ["--operator", "causal_conv1d", "gated_delta_rule, kda"]),
        (["decode", "--operator", "kda", "--shapes", "speculative"], ["--shapes", "pool, models, smoke"]),
        (["decode", "--shapes", "giant"], ["--shapes", "giant", "smoke"]),
        (["prefill", "--dtype", "int8"], ["int8"]),
        (["prefill", "--replays", "0"], ["--replays"]),
        (["prefill", "--json", "/no/such/folder/x.json"], ["--json"]),
        (["prefill", "--plot", "/no/such/folder/x"], ["--plot", "folder"]),
        (["prefill", "--from", str(KEPT)], ["--from", "device, verb"]),
        ([], ["VERB", "prefill", "decode", "--from"]),
        (["--from", "/no/such.json"], ["--from", "/no/such.json"]),
        (["--from", __file__], ["--from", "deltaproof bench --json"]),
    ],
)
def test_a_usage_error_makes_it_2_and_names_the_argument(arguments, words):
    done = bench(*arguments, *(["--device", "cpu"] if arguments and arguments[0] != "--from" else []))
    assert done.exit_code == 2, done.output
    assert all(word in done.output for word in words), done.output


def test_a_device_that_is_not_here_is_a_usage_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = bench("prefill", "--device", "cuda")
    assert done.exit_code == 2 and "no GPU is visible" in done.output


def test_where_nothing_could_be_timed_it_is_2_and_the_reason_is_shown():
    done = bench("prefill", "--device", "cpu", "--backends", f"{BACKENDS}:Dense")
    assert done.exit_code == 2
    assert "unsupported" in done.stdout and "no form 'chunk'" in done.stdout
