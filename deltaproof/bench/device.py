"""The clock and the memory of a device: one class for the CPU, one for a GPU."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from deltaproof.bench.statistics import Samples

Run = Callable[[], object]
REPLAY_MS = 5.0
"""A replay holds so many passes over the input sets that it lasts about this long."""
MOST_CALLS = 128
"""Calls in a replay beyond which no further pass is added."""
MOST_SETS = 256


def set_count(set_bytes: int, cache_bytes: int) -> int:
    """Return how many input sets of ``set_bytes`` exceed twice the cache together: 2 to MOST_SETS."""
    return min(MOST_SETS, max(2, 2 * cache_bytes // max(set_bytes, 1) + 1))


def pass_count(pass_ms: float, calls: int) -> int:
    """Return how many passes over all sets one replay holds."""
    return max(1, min(math.ceil(REPLAY_MS / max(pass_ms, 1e-6)), MOST_CALLS // calls))


class Device(Protocol):
    """What the runner needs of a device."""

    name: str
    cache_bytes: int
    replays: int

    def scope(self) -> AbstractContextManager[None]: ...

    def measure(self, calls: Sequence[Run], replays: int) -> Samples: ...

    def peak_bytes(self, run: Run) -> int | None: ...

    def free(self) -> None: ...


class Cpu:
    """The CPU, by the clock."""

    name = "cpu"
    cache_bytes = 0
    replays = 5

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Do nothing around a row."""
        yield

    def measure(self, calls: Sequence[Run], replays: int) -> Samples:
        """Time passes over all calls, after one that does not count."""
        for call in calls:
            call()
        found = []
        for _ in range(replays):
            start = self._clock()
            for call in calls:
                call()
            found.append((self._clock() - start) * 1e3 / len(calls))
        return Samples(tuple(found), len(calls), "perf-counter")

    def peak_bytes(self, run: Run) -> None:
        """Return None: the CPU's allocator does not count."""

    def free(self) -> None:
        """Do nothing: memory is the system's."""


class Cuda:
    """The current GPU: CUDA graphs where a call can be captured, events where it cannot."""

    name = "cuda"
    replays = 21

    def __init__(self) -> None:
        self.cache_bytes = int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
        self._stream = torch.cuda.Stream()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run everything of a row on the stream that is captured later.

        A backward runs on the streams its forward ran on, so a forward elsewhere could not be captured behind it.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize()

    def measure(self, calls: Sequence[Run], replays: int) -> Samples:
        """Time a graph of one or more passes over all calls; without a graph, the same passes from the host."""
        for _ in range(2):
            calls[0]()
        for call in calls:
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        passes = pass_count((time.perf_counter() - start) * 1e3, len(calls))
        syncs = self._syncs(calls[0])

        def run() -> None:
            for _ in range(passes):
                for call in calls:
                    call()

        count = passes * len(calls)
        if syncs is not None:
            return Samples(self._replays(run, replays, count), count, "cuda-events", syncs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            run()
        found = Samples(self._replays(graph.replay, replays, count), count, "cuda-graph")
        graph.reset()
        return found

    @staticmethod
    def _replays(run: Run, replays: int, count: int) -> tuple[float, ...]:
        run()
        found = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end) / count)
        return tuple(found)

    @staticmethod
    def _syncs(call: Run) -> str | None:
        """Return why a call cannot be captured; asked before, since a capture that fails spoils the context."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return "it waits for the GPU, so no graph can be captured; launches from the host count"
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return None

    def peak_bytes(self, run: Run) -> int:
        """Return the peak of allocated memory over one call, beyond what was allocated before it."""
        run()
        self.free()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        """Give cached memory back, so that one row's does not fragment the next one's."""
        gc.collect()
        torch.cuda.empty_cache()


def device_of(name: str) -> Device:
    """Return the device "cpu" or "cuda"."""
    return Cuda() if name == "cuda" else Cpu()
