"""The fastest copy of so many bytes on a device, among a few ways of copying them.

The driver's copy, which is what ``copy_`` becomes and what a CUDA graph holds as a copy node, moves some sizes at two
thirds of the rate of others. A kernel that reads and writes every element once is the same kernel at every size. The
faster of the two is what a kernel can be held to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from deltaproof.bench.device import Device
from deltaproof.bench.statistics import Samples, quantile

WAYS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "driver": lambda source, target: target.copy_(source),
    "kernel": lambda source, target: torch.bitwise_not(source, out=target),
}
"""Name -> what moves all bytes of ``source`` to ``target``; the second turns them over on the way."""
LINE = 128
"""Bytes of a cache line: buffers are whole lines, so that no way meets a ragged end."""


def copied_bytes(nbytes: int) -> int:
    """Return the bytes of a buffer whose copy reads and writes ``nbytes`` together, up to a line."""
    return max(1, -(-nbytes // (2 * LINE))) * LINE


def copy_sets(count: int, nbytes: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return pairs (source, target) of buffers whose copies move ``nbytes`` each, read and written together."""
    empty = partial(torch.empty, copied_bytes(nbytes) // 4, dtype=torch.int32, device=device)
    return [(empty().random_(), empty().zero_()) for _ in range(count)]


def fastest_copy(device: Device, count: int, nbytes: int, replays: int) -> tuple[str, Samples]:
    """Time every way on the same buffers; return the name and the samples of the one with the smallest median.

    Args:
        device: clock and memory.
        count: pairs of buffers, which the copies take in turn.
        nbytes: what one copy moves, read and written together.
        replays: timed replays of each way.
    """
    with device.scope(), torch.inference_mode():
        pairs = copy_sets(count, nbytes, device.name)
        found = {
            name: device.measure([partial(way, source, target) for source, target in pairs], replays)
            for name, way in WAYS.items()
        }
    del pairs
    device.free()
    name = min(found, key=lambda way: quantile(found[way].ms, 0.5))
    return name, found[name]
