"""What the device does at best: a copy and a matrix product, timed in the same run."""

from __future__ import annotations

from typing import cast

import torch

from deltaproof.bench.copies import fastest_copy
from deltaproof.bench.device import Device
from deltaproof.bench.model import Ceilings, CopyWay
from deltaproof.bench.statistics import Samples, quantile

COPY_BYTES = {"cuda": 1 << 29, "cpu": 1 << 25}
MATMUL = {"cuda": (8192, torch.bfloat16), "cpu": (512, torch.float32)}
"""Rows and dtype. A CPU's backends compute in float32."""


def rates(copy: Samples, copy_bytes: int, matmul: Samples, size: int) -> tuple[float, float]:
    """Return bytes a second, read + written, and operations a second, from the medians."""
    copy_s, matmul_s = (quantile(samples.ms, 0.5) / 1e3 for samples in (copy, matmul))
    return 2 * copy_bytes / copy_s, 2 * size**3 / matmul_s


def measure(device: Device) -> Ceilings:
    """Time both; the buffers are let go."""
    copy_bytes = COPY_BYTES[device.name]
    way, copy = fastest_copy(device, 1, 2 * copy_bytes, device.replays)
    with device.scope(), torch.inference_mode():
        size, dtype = MATMUL[device.name]
        a, b = (torch.randn(size, size, device=device.name).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        matmul = device.measure([lambda: torch.mm(a, b, out=out)], device.replays)
    bytes_per_s, flops_per_s = rates(copy, copy_bytes, matmul, size)
    device.free()
    return Ceilings(
        copy_bytes_per_s=bytes_per_s,
        copy_bytes=copy_bytes,
        copy_way=cast(CopyWay, way),
        matmul_flops_per_s=flops_per_s,
        matmul_size=size,
        matmul_dtype=str(dtype).removeprefix("torch."),
    )
