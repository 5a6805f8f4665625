"""What a GPU probe needs of CUDA, in one place that tests can put a stand-in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from deltaproof.verify.target import Outputs

WARM_UP = 3
DELAY_CYCLES = 200_000_000
"""About a tenth of a second."""


class Device(Protocol):
    """Graphs, streams and counters of one GPU."""

    def capture(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture a call in a graph after warming it up; return its replay, which waits and gives the outputs."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which a host synchronisation raises."""

    def behind(self, producer: Callable[[], None], function: Callable[[], Outputs]) -> Outputs:
        """Call both on a side stream, where the producer's work comes late; wait and return the outputs."""

    def allocations(self) -> int:
        """Return how often memory was taken from the allocator so far."""

    def synchronize(self) -> None:
        """Wait for everything."""


class Cuda:
    """The current CUDA device."""

    def capture(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture a call in a graph after warming it up on a side stream, as CUDA graphs ask for."""
        self.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()

        def replay() -> Outputs:
            graph.replay()
            self.synchronize()
            return outputs

        return replay

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Make every host synchronisation that PyTorch knows of raise."""
        self.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def behind(self, producer: Callable[[], None], function: Callable[[], Outputs]) -> Outputs:
        """Sleep on a side stream, then produce and call there; the default stream is free all the while."""
        self.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(DELAY_CYCLES)
            producer()
            outputs = function()
        self.synchronize()
        return outputs

    def allocations(self) -> int:
        """Return how often memory was taken from PyTorch's caching allocator so far."""
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        torch.cuda.synchronize()
