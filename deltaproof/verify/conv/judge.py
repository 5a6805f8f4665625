"""Holding a call of the convolution to its oracle: outputs within a bound, windows and all other memory to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaproof.ops.causal_conv1d import oracle
from deltaproof.ops.causal_conv1d.calls import ConvCall
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.expected import SUBNORMAL, Expected
from deltaproof.verify.inputs import Fill
from deltaproof.verify.noise import UNIT_ROUNDOFF
from deltaproof.verify.observation import Observation, compare, same_bits
from deltaproof.verify.probe import Context

HAZARD = "padding-slot-address"
SILU_ULPS = 8.0
"""Roundings of exp, the sum, the quotient and the product, each within two units."""


def expected(call: ConvCall) -> tuple[Expected, dict[int, torch.Tensor]]:
    """Return what y must be, with its bound, and what every written slot must hold. The call is on the CPU.

    A sum of W products and a bias in fp32, in any order, is off by at most W + 1 units of what its terms add up to,
    absolutely; silu's slope is at most 1.1. Then the output is rounded.
    """
    found = oracle.run(call)
    u32, out = UNIT_ROUNDOFF[torch.float32], UNIT_ROUNDOFF[call.x.dtype]
    off = (call.weight.shape[1] + 1) * u32 * found.magnitude
    if call.options.silu:
        off = 1.1 * off + SILU_ULPS * u32 * found.y.abs()
    off = off + out * (found.y.abs() + off) + SUBNORMAL[call.x.dtype] * (found.magnitude > 0)
    return Expected("y", found.y, off.norm(dim=-1), call.x.dtype), found.writes


def run(context: Context, case: ConvCase, call: ConvCall) -> torch.Tensor:
    """Call the backend and wait for it."""
    outputs = context.target.run(case.form, call)  # type: ignore[arg-type]
    if context.device == "cuda":
        torch.cuda.synchronize()
    return outputs.o


def judge(
    context: Context,
    case: ConvCase,
    call: ConvCall,
    y: torch.Tensor,
    fill: Fill,
    clause: str,
    hazard: str | None,
    turn: int = 0,
) -> Iterator[Observation]:
    """Compare what a call drawn from a case returned and left in its pool; ``fill`` and ``turn`` are the call's."""
    clean = build(case, context.seed, fill=fill, turn=turn)
    want, writes = expected(clean)
    yield compare(y, want, clause, hazard)
    for slot, window in writes.items():
        what = "the window is the last inputs of the row, as they are"
        yield same_bits(f"pool[{slot}]", call.pool[slot].cpu(), window, clause, hazard, what)
    yield context.untouched(call.pool, clean.pool, set(writes))
