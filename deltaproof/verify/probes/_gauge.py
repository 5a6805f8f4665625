"""Two checks on the yardstick itself: that a bound is not too wide, and that stored values are rounded fairly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context

LIMIT = 64.0
STANDARD_ERRORS = 5.0


def gauge(case: Case, context: Context) -> Iterator[Observation]:
    """Hold each bound to at most 64 times the error of a same-dtype reference (both root mean squares over rows).

    The reference is the operator's chunked algorithm in fp32 whose matmul operands are rounded to the inputs' dtype
    and whose results are rounded to the dtype they are stored in: what an ordinary good kernel computes.
    """
    clean = context.call(case, device="cpu")
    assert isinstance(clean, SequenceCall)
    chunked = case.form == "chunk"
    expected = context.reference.sequence(clean, chunked=chunked)
    o, final = context.reference.noise.same_dtype(clean, chunked=chunked)
    got = {"o": o, "final_state": final}
    for name, want in expected.items():
        if want.want.numel() == 0:
            continue
        error = (got[name].to(want.dtype).double() - want.want).norm(dim=-1).pow(2).mean().sqrt()
        bound = want.bound.pow(2).mean().sqrt()
        width = float(bound / error.clamp(min=1e-300))
        text = (
            f"the bound of {name} is {width:.3g} times the error of a same-dtype reference, at most {LIMIT:g} allowed"
        )
        observation = Observation(width <= LIMIT, "N2", text, observed=float(bound), bound=float(LIMIT * error))
        yield observation if not observation.ok else replace(observation, message="")


def bias_of_rounding(case: Case, context: Context, o: torch.Tensor, turn: int) -> Observation:
    """Check that stored outputs are rounded to nearest: the mean signed error, in ulps, is near zero.

    Truncation moves every value towards zero by half an ulp on average.
    """
    clean = context.call(case, device="cpu", turn=turn)
    if isinstance(clean, SequenceCall):
        want = context.reference.sequence(clean, chunked=False)["o"].want
    else:
        want = context.reference.pool(clean)[0].want
    got = o.detach().cpu().double()
    bits = 8 if o.dtype == torch.bfloat16 else 11
    exponent = torch.frexp(want).exponent.double()
    normal = exponent > (-125 if o.dtype == torch.bfloat16 else -13)
    ulps = ((got - want) * want.sign() * torch.exp2(bits - exponent))[normal]
    if ulps.numel() < 100:
        return Observation(True, "S3")
    mean = float(ulps.mean())
    allowed = STANDARD_ERRORS * math.sqrt(1 / 12 / ulps.numel())
    text = f"stored outputs are off by {mean:+.3f} ulp on average, towards {'zero' if mean < 0 else 'infinity'}"
    ok = abs(mean) <= allowed
    return Observation(ok, "S3", "" if ok else text, "low-precision-accumulate", observed=abs(mean), bound=allowed)
