"""Holding outputs to a float32 reference before they are timed, within a bound that follows from rounding.

A kernel may round each operand of its matrix products to the inputs' dtype, and each result to the dtype it is stored
in. Rounding to p bits is off by at most u = 2^-p of the value; taken as uniform, by u / sqrt(3) in the root mean
square. An output that is reached by s such roundings, each of its own, is off by u * sqrt(s / 3). To that comes the
float32 arithmetic: sums of n terms, about sqrt(n) roundings. The bound is MARGIN times the two together.

It is meant to catch what is wrong, not to rank: ``deltaproof verify`` judges row by row, with a bound of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deltaproof.bench.model import OutputError

ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
MARGIN = 4.0


@dataclass(frozen=True)
class Sites:
    """How many roundings of operands reach an output, and a gradient, of an operator's chunk form."""

    forward: int
    backward: int


SITES: Mapping[str, Sites] = {
    "gated_delta_rule": Sites(7, 20),
    "kda": Sites(15, 44),
}
"""By operator. Forward they are finished operands of the chunked algorithm: the state (twice), the right side, the
inverse, the new values, the attention, the decayed keys. With gates a channel no decay stands outside of a product:
the keys and the queries that read the state are decayed before, and so are both factors of the system and of the
attention; there the kernel also normalises q and k. Backward they are the forward's, and as many again on each of the
two ways back, by the outputs and by the states, but for the one product that ends them."""
TOKEN_SITES = 7
"""Of the token-by-token forms, which compute in float32 throughout."""
SUM_TERMS = 512
"""Terms of the sums behind one number: K and V up to 128 each, a chunk of 64, and their gates."""


@dataclass(frozen=True)
class Rounding:
    """How often a form rounds.

    Attributes:
        operand: dtype to which operands are rounded.
        sites: how many roundings of operands reach an output.
        terms: of the sums behind one number.
    """

    operand: torch.dtype
    sites: int
    terms: int = SUM_TERMS

    def rms_bound(self, stored: torch.dtype) -> float:
        """Return the bound on an output's relative root mean square error, stored in ``stored``."""
        single = ROUNDOFF[torch.float32]
        squares = self.sites * ROUNDOFF[self.operand] ** 2 + ROUNDOFF[stored] ** 2
        return MARGIN * math.sqrt(squares / 3 + self.terms * single**2)


def chunked(operator: str, dtype: torch.dtype) -> Rounding:
    """Return the rounding of the chunk form's outputs."""
    return Rounding(dtype, SITES[operator].forward)


def chunked_backward(operator: str, dtype: torch.dtype, summed: int = 0) -> Rounding:
    """Return the rounding of the chunk form's gradients, of which a last sum may have ``summed`` terms."""
    return Rounding(dtype, SITES[operator].backward, SUM_TERMS + summed)


def single_token() -> Rounding:
    """Return the rounding of the token-by-token forms, which compute in float32 throughout."""
    return Rounding(torch.float32, TOKEN_SITES)


def compare(
    output: str, got: torch.Tensor, want: torch.Tensor, stored: torch.dtype, rounding: Rounding, least: float = 0.0
) -> OutputError:
    """Return how far ``got`` lies from ``want`` (float32), which must have its shape; its dtype must be ``stored``.

    An error is set against the root mean square of ``want``, or against ``least`` where that is larger: what it would
    be if no terms cancelled in a sum.

    The root mean square runs over all elements. The largest error may be that of the largest of n normal errors,
    sqrt(2 ln 2n) times the bound, where the reference's last dimension is largest: one row off by a few per cent of
    itself shows there even if it is one of millions.
    """
    bound = rounding.rms_bound(stored)
    scale = max(_largest_row(want), least)
    largest_bound = bound * scale * math.sqrt(2 * math.log(2 * max(want.numel(), 1)))
    problem = None
    if got.shape != want.shape:
        problem = f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
    elif got.dtype != stored:
        problem = f"expected {str(stored).removeprefix('torch.')}, got {str(got.dtype).removeprefix('torch.')}"
    if problem is not None:
        return OutputError(
            output=output, relative_rms=None, rms_bound=bound, largest=None, largest_bound=largest_bound,
            problem=problem, ok=False,
        )  # fmt: skip
    if want.numel() == 0:
        return OutputError(
            output=output, relative_rms=0.0, rms_bound=bound, largest=0.0, largest_bound=largest_bound, ok=True
        )
    error = (got.detach().float() - want).abs_()
    rms = (
        (_rms(error) / max(_rms(want), least, torch.finfo(torch.float32).tiny)) if error.isfinite().all() else math.nan
    )
    # NaN counts as the largest
    place = int(error.nan_to_num_(nan=math.inf).argmax())
    largest = float(error.flatten()[place])
    return OutputError(
        output=output,
        relative_rms=rms if math.isfinite(rms) else None,
        rms_bound=bound,
        largest=largest if math.isfinite(largest) else None,
        largest_bound=largest_bound,
        where=[int(i) for i in torch.unravel_index(torch.tensor(place), error.shape)],
        ok=rms <= bound and largest <= largest_bound,
    )


def _rms(x: torch.Tensor) -> float:
    # a float32 norm of a billion elements is itself off; the mean of rows' sums in float64 is not
    return math.sqrt(float(x.square().sum(-1).sum(dtype=torch.float64)) / x.numel())


def _largest_row(want: torch.Tensor) -> float:
    return math.sqrt(float(want.square().mean(-1).max())) if want.numel() else 0.0


def describe(errors: list[OutputError]) -> str:
    """Return what broke a bound, in one line."""
    parts = []
    for error in errors:
        if error.ok:
            continue
        if error.problem:
            parts.append(f"{error.output}: {error.problem}")
            continue
        rms = "not finite" if error.relative_rms is None else f"{error.relative_rms:.2g}"
        largest = "not finite" if error.largest is None else f"{error.largest:.2g}"
        parts.append(
            f"{error.output}: relative RMS error {rms} (bound {error.rms_bound:.2g}), largest {largest} "
            f"(bound {error.largest_bound:.2g}) at {error.where}"
        )
    return "; ".join(parts)
