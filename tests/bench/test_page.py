"""docs/performance.md: every kept run with every time, and figures that say what they were drawn from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deltaproof.bench.model import BenchReport
from deltaproof.bench.page import RESULTS, render_performance, stale_figures, write_figures
from deltaproof.bench.text import ms

DOCS = Path(__file__).parents[2] / "docs"
KEPT = sorted(RESULTS.glob("bench-*.json"))


def section(text, name):
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def page():
    return render_performance()["performance.md"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_section_has_the_whole_run(page, path):
    report = BenchReport.model_validate_json(path.read_text())
    found = section(page, path.stem.removeprefix("bench-"))
    for word in (report.commit, f"`{report.command}`", report.machine["gpu"], report.versions["torch"], "TFLOP/s"):
        assert word in found
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in found.splitlines() if line.startswith("| ")}
    for row in report.rows:
        shown = ms(row.time.median_ms) if row.time else {"fail": "FAIL", "unsupported": "unsupported"}[row.status.value]
        assert shown in found and row.workload in lines
        if row.time is None:
            assert row.reason in found


def test_ratios_are_the_peers_time_over_ours_in_the_overview_too(page):
    found = section(page, "prefill-h200")
    assert "| fla | 14 | 0.97 | 0.81 (2/8 1024x8) |" in found
    line = next(line for line in found.splitlines() if line.startswith("| 2/8 2048 "))
    assert "| 0.0680 |" in line and "| 0.0821 |" in line and "| 1.21 |" in line
    overview = page.split("\n## ")[0]
    assert (
        "| [prefill-h200](#prefill-h200) | gated_delta_rule prefill | fla | 14 | **0.97, 0.81** | 1.08, 0.81 |"
        in overview
    )
    assert overview.index("(#prefill-h200)") < overview.index("(#decode-h200)") < overview.index("(#kda-prefill-h200)")


def test_a_backward_has_both_times_and_a_speculative_step_its_ratio_to_one_token(page):
    assert "Forward and backward together, time of fla ÷ ours: 1.24, worst 0.96." in section(page, "backward-h200")
    assert "| 16/32 64 rows 8 drafted | 0.1017 | 1.49 |" in section(page, "decode-speculative-h200")


def test_only_saturated_prefills_stand_beside_published_times(page):
    published = section(page, "prefill-h200").split("| saturated workload |")[1]
    assert "| 16/64 4096x8 | 3.777 | 1.217 | 0.8410 | 3.390 | 0.22 |" in published
    assert "2/8" not in published and "saturated workload" not in section(page, "backward-h200")


def test_a_copy_is_shown_only_where_it_was_made_in_several_ways(tmp_path):
    name = "bench-decode-h200.json"
    shutil.copy(RESULTS / name, tmp_path / name)
    assert "of copy" in render_performance(tmp_path)["performance.md"]
    data = json.loads((tmp_path / name).read_text())
    for workload in data["workloads"]:
        workload["copy_way"] = None
    (tmp_path / name).write_text(json.dumps(data))
    assert "of copy" not in render_performance(tmp_path)["performance.md"]


def test_figures_are_drawn_from_the_kept_runs_and_are_stale_when_these_change(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    name = "bench-decode-bf16-h200.json"
    shutil.copy(RESULTS / name, results / name)
    figures = [f"performance/decode-bf16-h200-{figure}.svg" for figure in ("bars", "roofline")]
    assert stale_figures(docs, results) == figures
    assert write_figures(docs, results) == figures
    assert stale_figures(docs, results) == [] == write_figures(docs, results)
    text = render_performance(results)["performance.md"]
    assert all(f"]({figure})" in text and (docs / figure).is_file() for figure in figures)

    (results / name).write_text((results / name).read_text() + "\n")
    assert stale_figures(docs, results) == figures
    write_figures(docs, results)
    (docs / "performance" / "gone.svg").write_text("")
    (docs / figures[0]).unlink()
    assert stale_figures(docs, results) == [figures[0], "performance/gone.svg"]
    write_figures(docs, results)
    assert sorted(path.relative_to(docs).as_posix() for path in (docs / "performance").iterdir()) == figures


def test_the_figures_in_docs_are_of_the_kept_runs_and_small():
    assert stale_figures(DOCS) == []
    assert all(path.stat().st_size < 200_000 for path in (DOCS / "performance").iterdir())


def test_the_page_is_checked_without_torch_and_matplotlib():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from deltaproof.bench.page import render_performance, stale_figures\n"
        f"from pathlib import Path; print(len(render_performance()), stale_figures(Path({str(DOCS)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1 []", done.stderr
