"""How many sets, how many calls, and what the clock says; on a GPU also graphs, events and memory."""

from __future__ import annotations

import itertools

import pytest
import torch

from deltaproof.bench import ceilings
from deltaproof.bench.device import MOST_CALLS, MOST_SETS, Cpu, device_of, pass_count, set_count
from deltaproof.bench.statistics import Samples, quantile

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_sets_exceed_twice_the_cache_together():
    for size in (1_000_000, 3_000_000, 50_000_000, 99_999_999):
        assert set_count(size, 50_000_000) * size > 100_000_000
    assert set_count(1 << 40, 50_000_000) == 2
    assert set_count(100, 0) == 2
    assert set_count(1, 50_000_000) == MOST_SETS


def test_a_replay_holds_enough_passes_and_not_too_many_calls():
    assert pass_count(pass_ms=50.0, calls=2) == 1
    assert pass_count(pass_ms=1.0, calls=2) == 5
    assert pass_count(pass_ms=0.001, calls=2) == MOST_CALLS // 2
    assert pass_count(pass_ms=0.001, calls=10 * MOST_CALLS) == 1


def test_the_cpu_times_passes_over_all_sets_after_one_that_does_not_count():
    # every look at the clock is one second later than the last, and one slow pass
    ticks = itertools.accumulate([0.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    made = []
    samples = Cpu(clock=lambda: next(ticks)).measure([lambda: made.append("a"), lambda: made.append("b")], 3)
    assert made == ["a", "b"] * 4
    assert samples == Samples((500.0, 500.0, 4500.0), 2, "perf-counter")


def test_a_cpu_knows_no_peak_of_memory():
    assert device_of("cpu").peak_bytes(lambda: torch.ones(1000)) is None


def test_rates_count_what_is_read_and_written_and_two_operations_a_multiply_add():
    copy, matmul = Samples((3.0, 2.0, 9.0), 1, "x"), Samples((0.5,), 1, "x")
    bytes_per_s, flops_per_s = ceilings.rates(copy, 1_000_000, matmul, 100)
    assert bytes_per_s == pytest.approx(2_000_000 / 3e-3)
    assert flops_per_s == pytest.approx(2e6 / 0.5e-3)


def test_ceilings_of_this_cpu_are_plausible():
    found = ceilings.measure(Cpu())
    assert 1e8 < found.copy_bytes_per_s < 1e13
    assert 1e8 < found.matmul_flops_per_s < 1e14
    assert found.matmul_dtype == "float32"


@gpu
@needs_gpu
def test_on_a_gpu_a_call_is_captured_and_one_that_waits_is_timed_from_the_host():
    device = device_of("cuda")
    x = torch.randn(1 << 20, device="cuda")
    with device.scope():
        captured = device.measure([lambda: x * 2, lambda: x + 1], 5)
        waiting = device.measure([lambda: (x * 2).sum().item()], 5)
        again = device.measure([lambda: x * 2], 5)
    assert (captured.method, captured.note) == ("cuda-graph", None)
    assert captured.calls % 2 == 0 and len(captured.ms) == 5 and min(captured.ms) > 0
    assert waiting.method == "cuda-events" and "waits for the GPU" in waiting.note
    assert again.method == "cuda-graph"


@gpu
@needs_gpu
def test_on_a_gpu_a_backward_is_captured_behind_a_forward_that_was_not():
    device = device_of("cuda")
    with device.scope(), torch.enable_grad():
        x = torch.randn(4096, 512, device="cuda", requires_grad=True)
        y, ones = torch.sin(x), torch.ones(4096, 512, device="cuda")
        samples = device.measure([lambda: torch.autograd.grad(y, x, ones, retain_graph=True)], 5)
    assert samples.method == "cuda-graph"


@gpu
@needs_gpu
def test_on_a_gpu_a_graph_takes_as_long_as_its_work():
    device = device_of("cuda")
    small, large = (torch.zeros(size, dtype=torch.uint8, device="cuda") for size in (1 << 29, 1 << 32))
    with device.scope():
        times = [quantile(device.measure([lambda x=x: x.clone()], 7).ms, 0.5) for x in (small, large)]
    assert 5 < times[1] / times[0] < 12


@gpu
@needs_gpu
def test_on_a_gpu_the_peak_is_what_a_call_takes_beyond_its_inputs():
    device = device_of("cuda")
    x = torch.zeros(1 << 26, dtype=torch.uint8, device="cuda")
    with device.scope():
        peak = device.peak_bytes(lambda: (x + 1) + 1)
    assert peak == 2 << 26
