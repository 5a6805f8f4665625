"""Figures of a run, drawn again from what was kept of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltaproof.bench.model import BenchReport, RowStatus
from deltaproof.bench.plots import OWN, PEERS, colours, group, groups, plot_files, write_plots
from deltaproof.bench.sets import find
from deltaproof.bench.summary import classes
from deltaproof.contracts.errors import ContractError

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "bench-prefill-h200.json"


@pytest.fixture(scope="module")
def kept():
    return BenchReport.model_validate_json(KEPT.read_text())


def words(svg):
    """Return the texts of an SVG, which are texts and not paths."""
    return [
        ("".join(text.itertext())).strip() for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def wide(report, backends=4):
    """Return a run of the grid, each of the kept run's times for one of so many backends."""
    workloads = find("gated_delta_rule", "prefill", "grid")
    info, (own, peer) = report.workloads[0], report.rows[:2]
    infos = [info.model_copy(update={"name": w.name, "shape": w}) for w in workloads]
    names = ["ours", *(f"peer{number}" for number in range(1, backends))]
    known = {one.peer: one for one in report.backends}
    return report.model_copy(
        update={
            "workloads": infos,
            "backends": [known[n != "ours"].model_copy(update={"name": n, "spec": n}) for n in names],
            "rows": [
                (own if n == "ours" else peer).model_copy(update={"workload": w.name, "backend": n})
                for w in workloads
                for n in names
            ],
        }
    )


def test_both_figures_come_in_both_formats_or_in_the_one_that_is_named():
    both = plot_files(Path("out/v0.1"))
    assert {figure: [str(file) for file in files] for figure, files in both.items()} == {
        "bars": ["out/v0.1-bars.svg", "out/v0.1-bars.png"],
        "roofline": ["out/v0.1-roofline.svg", "out/v0.1-roofline.png"],
    }
    assert plot_files(Path("x.png"))["bars"] == [Path("x-bars.png")]


def test_the_bars_name_every_workload_with_its_times_and_its_ratio(kept, tmp_path):
    bars, roofline = write_plots(kept, tmp_path / "x.svg", source="kept run")
    text = words(bars)
    assert {info.name for info in kept.workloads} <= set(text)
    assert {"triton", "fla", "few heads", "one sequence", "saturated", "floor"} <= set(text)
    for row in kept.rows:
        assert f"{row.time.median_ms:.4f}" in text or f"{row.time.median_ms:.3f}" in text
    assert text.count("0.81") == 2 and "1.21" in text
    assert any("geometric mean 0.97, worst 0.81 (2/8 1024x8)" in line for line in text)
    assert any("NVIDIA H200" in line for line in text)
    assert "kept run" in bars.read_text() and bars.stat().st_size < 200_000
    marks = words(roofline)
    assert {"triton", "fla", "100%", "10%", "few heads"} <= set(marks)
    # a bar and a point each, in the backend's colour, but for the mark of the legend
    for svg in (bars, roofline):
        for colour in (OWN[0], PEERS[0]):
            assert len(re.findall(f"fill: {colour.lower()}", svg.read_text())) >= len(kept.workloads)


def test_a_png_is_not_blank(kept, tmp_path):
    from matplotlib.image import imread

    for file in write_plots(kept, tmp_path / "x.png"):
        pixels = imread(file)[..., :3]
        assert min(pixels.shape[:2]) > 500
        assert 0.02 < (pixels.min(-1) < 0.9).mean() < 0.6


def test_drawing_twice_writes_the_same_svg(kept, tmp_path):
    first = [file.read_bytes() for file in write_plots(kept, tmp_path / "a.svg")]
    assert first == [file.read_bytes() for file in write_plots(kept, tmp_path / "b.svg")]


def test_many_workloads_stand_beside_each_other_by_class(kept, tmp_path):
    report = wide(kept)
    bars, _ = write_plots(report, tmp_path / "x.svg")
    text = words(bars)
    assert all(text.count(info.name) == 1 for info in report.workloads)
    assert bars.stat().st_size < 200_000
    width, height = (
        float(ElementTree.parse(bars).getroot().get(side).removesuffix("pt")) for side in ("width", "height")
    )
    assert 0.5 < width / height < 2


def test_a_backend_that_failed_is_shown_failing_and_one_that_never_ran_is_not_there(kept, tmp_path):
    report = kept.model_copy(deep=True)
    for row in report.rows[1::2]:
        row.status, row.time, row.to_floor = RowStatus.FAIL, None, None
    bars, _ = write_plots(report, tmp_path / "x.svg")
    text = words(bars)
    assert text.count("fla: FAIL") == len(report.workloads) and "triton" in text
    assert not any("fastest" in line and "geometric" in line for line in text), "no peer has a time"
    for row in report.rows[1::2]:
        row.status = RowStatus.UNSUPPORTED
    assert set(colours(report)) == {"triton"}


def test_colours_do_not_depend_on_which_peers_are_there(kept):
    assert colours(kept) == {"triton": OWN[0], "fla": PEERS[0]}
    report = wide(kept, backends=3)
    assert list(colours(report).values()) == [OWN[0], *PEERS[:2]]


def test_workloads_are_grouped_by_the_first_class_that_fits_and_ordered_by_heads(kept):
    found = groups(kept)
    assert list(found) == ["few_heads", "one_sequence", "saturated"]
    assert sum(map(len, found.values())) == len(kept.workloads)
    for name, workloads in found.items():
        assert all(group(one) == name == classes(one.shape)[0] for one in workloads)
        heads = [one.shape.heads[::-1] for one in workloads]
        assert heads == sorted(heads)


def test_without_a_time_there_is_nothing_to_draw(kept, tmp_path):
    report = kept.model_copy(update={"rows": []})
    with pytest.raises(ContractError, match="--plot: expected a run with at least one time"):
        write_plots(report, tmp_path / "x")
    with pytest.raises(ContractError, match="--plot: expected a file in a folder that exists"):
        write_plots(kept, tmp_path / "no" / "x")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(kept, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ContractError, match=r"pip install 'deltaproof\[plot\]'"):
        write_plots(kept, tmp_path / "x")
