"""Time the torch backend: T = 4096, H = 4, K = V = 64, float32, forward and forward with backward.

python benchmarks/torch_backend.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from deltaproof import chunk_gated_delta_rule
from deltaproof.verify.machine import machine, versions

T, H, K, V = 4096, 4, 64, 64
RUNS = 15


def median(run: Callable[[], object]) -> float:
    """Return the median seconds of a call after three that do not count."""
    for _ in range(3):
        run()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print two lines of seconds and the machine they hold for."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, T, H, K).unbind()
    v, beta, g = torch.randn(1, T, H, V), torch.rand(1, T, H), -torch.rand(1, T, H) * 0.1
    inputs = [x.requires_grad_() for x in (q.clone(), k.clone(), v, g, beta)]

    def forward() -> None:
        with torch.no_grad():
            chunk_gated_delta_rule(*inputs, use_qk_l2norm_in_kernel=True, backend="torch")

    def both() -> None:
        o, _ = chunk_gated_delta_rule(*inputs, use_qk_l2norm_in_kernel=True, backend="torch")
        torch.autograd.grad(o.sum(), inputs)

    print(f"forward               {median(forward):.3f} s")
    print(f"forward and backward  {median(both):.3f} s")
    print(f"{torch.get_num_threads()} threads; {machine('cpu')}; {versions()}")


if __name__ == "__main__":
    main()
