"""The yardstick of a copy: every way moves every byte, and the fastest counts."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from deltaproof.bench.copies import LINE, WAYS, copied_bytes, copy_sets, fastest_copy
from deltaproof.bench.statistics import Samples


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 4096, 135_000_064, 2_158_034_944])
def test_a_copy_reads_and_writes_as_many_bytes_as_asked_and_at_most_two_lines_more(nbytes):
    buffer = copied_bytes(nbytes)
    assert buffer % LINE == 0
    assert nbytes <= 2 * buffer <= max(nbytes + 2 * LINE - 1, 2 * LINE)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_reaches_every_byte(way):
    for source, target in copy_sets(2, 100_000, "cpu"):
        assert source.nbytes == target.nbytes == copied_bytes(100_000)
        before = source.clone()
        WAYS[way](source, target)
        assert torch.equal(source, before)
        assert torch.equal(target if way == "driver" else ~target, source)


def test_sets_are_buffers_of_their_own():
    buffers = [buffer for pair in copy_sets(3, 5000, "cpu") for buffer in pair]
    assert len({buffer.data_ptr() for buffer in buffers}) == 6


class Clock:
    """A device on which the driver's copies of large buffers are slow."""

    name, replays = "cpu", 3

    def __init__(self):
        self.measured = []

    def scope(self):
        return nullcontext()

    def free(self):
        pass

    def measure(self, calls, replays):
        for call in calls:
            call()
        way = "driver" if calls[0].func is WAYS["driver"] else "kernel"
        self.measured.append((way, len(calls), replays))
        large = calls[0].args[0].nbytes > 10_000
        return Samples({"driver": (3.0, 9.0, 4.0) if large else (1.0,) * 3, "kernel": (3.5, 2.0, 3.0)}[way], 1, "x")


@pytest.mark.parametrize(("nbytes", "way", "median"), [(1000, "driver", 1.0), (100_000, "kernel", 3.0)])
def test_the_way_with_the_smallest_median_counts_at_each_size(nbytes, way, median):
    clock = Clock()
    name, samples = fastest_copy(clock, 2, nbytes, 3)
    assert (name, sorted(samples.ms)[1]) == (way, median)
    assert clock.measured == [("driver", 2, 3), ("kernel", 2, 3)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_size_falls_far_behind_a_larger_one():
    from deltaproof.bench.device import Cuda

    device = Cuda()
    # sizes at which the driver's copies were seen to run at two thirds of the rate
    sizes = [271_077_376, 542_138_368, 1_084_260_352, 2_169_045_760]
    rates = [size / sorted(fastest_copy(device, 2, size, 7)[1].ms)[3] for size in sizes]
    assert min(rates) > 0.9 * max(rates), rates
