"""What the device does at best: a copy and a matrix product, timed in the same run."""

from __future__ import annotations

import torch

from deltaproof.bench.device import Device
from deltaproof.bench.model import Ceilings
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
    with device.scope(), torch.inference_mode():
        copy_bytes = COPY_BYTES[device.name]
        source = torch.randn(copy_bytes // 4, device=device.name)
        target = torch.empty_like(source)
        # the driver's copy is not always the fastest way to move bytes; a ceiling is the faster of the two
        ways = [lambda: target.copy_(source), lambda: torch.neg(source, out=target)]
        copy = min((device.measure([way], device.replays) for way in ways), key=lambda found: quantile(found.ms, 0.5))
        size, dtype = MATMUL[device.name]
        a, b = (torch.randn(size, size, device=device.name).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        matmul = device.measure([lambda: torch.mm(a, b, out=out)], device.replays)
    bytes_per_s, flops_per_s = rates(copy, copy_bytes, matmul, size)
    device.free()
    return Ceilings(
        copy_bytes_per_s=bytes_per_s,
        copy_bytes=copy_bytes,
        matmul_flops_per_s=flops_per_s,
        matmul_size=size,
        matmul_dtype=str(dtype).removeprefix("torch."),
    )
