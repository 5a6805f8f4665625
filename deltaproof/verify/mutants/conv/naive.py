"""The suite that many convolution kernels ship with: what it lets live is what the probes are for.

W = 4, 64 channels, windows of zeros updated in place, whole rows of float32 with bias and silu, every tensor
contiguous, and one tolerance for everything.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.ops.causal_conv1d import oracle
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.mutants.naive import close


def naive_cases(form: str) -> Iterator[ConvCase]:
    """Yield the naive suite's cases of one form."""
    base = ConvCase(form, label="naive", B=2, T=1 if form == "decode" else 128, C=64)
    yield base
    if form == "decode":
        yield base.but(T=4)


def _holds(backend: Backend, case: ConvCase, seed: int) -> bool:
    call, clean = (build(case, seed) for _ in range(2))
    for one in (call, clean):
        one.pool.zero_()
    y = getattr(backend, case.form)(call)
    want = oracle.run(clean)
    return close(y, want.y) and all(close(call.pool[slot], x.double()) for slot, x in want.writes.items())


def survives(backend: Backend, form: str, seed: int = 0) -> bool:
    """Return whether a backend passes the naive suite of a form."""
    try:
        with torch.no_grad():
            return all(_holds(backend, case, seed) for case in naive_cases(form))
    except Exception:
        # a backend that raises has failed the suite
        return False
