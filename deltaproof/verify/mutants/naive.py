"""The suite that many kernels ship with: what it lets live is what the probes are for.

K = V = 64, T = 128, as many value heads as query heads, a zero state, every tensor contiguous and every length a whole
number of chunks, forward only, and one tolerance for everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.ops.registry import operator
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Reference
from deltaproof.verify.inputs import build

TOLERANCE = 1e-2


def naive_cases(form: str) -> Iterator[Case]:
    """Yield the naive suite's cases of one form."""
    base = Case(form, label="naive", B=2, T=1 if form == "decode" else 128, H=2, HV=2, K=64, V=64)
    yield base
    if form == "decode":
        yield base.but(T=4)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Return whether a result is within the one tolerance."""
    return torch.allclose(got.double(), want, rtol=TOLERANCE, atol=TOLERANCE)


def _holds(backend: Backend, case: Case, seed: int) -> bool:
    found = operator(backend.operator)
    call: Any = build(case, seed, gate_per_channel=found.gate_per_channel)
    clean: Any = build(case, seed, gate_per_channel=found.gate_per_channel)
    oracle = Reference(found).oracle
    for one in (call, clean):
        (one.pool if case.is_pool else one.initial_state).zero_()
    if not case.is_pool:
        o, final = getattr(backend, case.form)(call)
        want, last = oracle.sequence(clean)
        return close(o, want) and close(final, last)
    o = getattr(backend, case.form)(call)
    result = oracle.decode(clean) if case.form == "decode" else oracle.prefill(clean)
    return close(o, result.o) and all(close(call.pool[slot], state) for slot, state in result.writes.items())


def survives(backend: Backend, form: str, seed: int = 0) -> bool:
    """Return whether a backend passes the naive suite of a form."""
    try:
        with torch.no_grad():
            return all(_holds(backend, case, seed) for case in naive_cases(form))
    except Exception:
        # a backend that raises has failed the suite
        return False
