"""What a probe reports of one thing it looked at, and how tensors are compared row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.reports.model import Location
from deltaproof.verify.expected import Expected


class HarnessError(Exception):
    """The harness itself is broken or was tampered with: never the backend's pass, never its fail."""


class BackendFault(Exception):
    """The backend answered with something that is no answer."""


class Unsupported(Exception):
    """The backend declares that it lacks what the case needs; the text is its reason."""


class Skipped(Exception):
    """This machine lacks what the case needs."""


@dataclass(frozen=True)
class Observation:
    """One thing looked at.

    Attributes:
        ok: whether the promise held.
        clause: code of the clause.
        hazard: name of the hazard that would break it, if one is known.
        message: what was seen, in one line; required where not ok.
        location, value, expected, observed, bound, ratio: the worst place, as far as they apply.
    """

    ok: bool
    clause: str
    message: str = ""
    hazard: str | None = None
    location: Location | None = None
    value: str | None = None
    expected: str | None = None
    observed: float | None = None
    bound: float | None = None
    ratio: float | None = None


TOKEN_DIMS = ("row", "token", "head")
STATE_DIMS = ("row", "head")


def locate(name: str, index: tuple[int, ...], chunk_size: int | None = None) -> Location:
    """Return a Location for an index into a tensor: [row, token, head, ...], or [row, head, ...] for states."""
    per_token = not ("state" in name or name.startswith("pool"))
    dims = TOKEN_DIMS if per_token else STATE_DIMS
    named = dict(zip(dims, index, strict=False))
    chunk = named["token"] // chunk_size if chunk_size and "token" in named else None
    return Location(tensor=name, chunk=chunk, element=index, **named)


def number(x: torch.Tensor) -> str:
    """Return one element as text, with all the digits that matter."""
    value = x.item()
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def compare(
    got: torch.Tensor,
    expected: Expected,
    clause: str = "N2",
    hazard: str | None = None,
    chunk_size: int | None = None,
) -> Observation:
    """Compare a tensor with its expectation, row by row; the worst row is reported."""
    want, bound, name = expected.want, expected.bound, expected.name
    if not bool(want.isfinite().all()) or not bool(bound.isfinite().all()):
        raise HarnessError(f"the expected values of {name} are not finite: nothing can be compared with them")
    if tuple(got.shape) != tuple(want.shape) and got.numel() == want.numel() and got.shape == want.shape[:-1]:
        got = got[..., None]
    if tuple(got.shape) != tuple(want.shape):
        text = f"{name} has shape {list(got.shape)}, expected {list(want.shape)}"
        return Observation(False, "S1", text, hazard, value=str(list(got.shape)), expected=str(list(want.shape)))
    if got.dtype != expected.dtype:
        text = f"{name} has dtype {got.dtype}, expected {expected.dtype}"
        return Observation(False, "S3", text, hazard, value=str(got.dtype), expected=str(expected.dtype))
    if want.numel() == 0:
        return Observation(True, clause, f"{name} is empty", ratio=0.0)
    got64 = got.detach().cpu().double()
    error = (got64 - want).norm(dim=-1)
    # an exact row must be exact; elsewhere the ratio says by how much the bound was met
    exact = torch.where(error == 0, 0.0, float("inf"))
    ratio = torch.where(bound > 0, error / bound.clamp(min=1e-300), exact)
    ratio = torch.where(ratio.isnan(), float("inf"), ratio)
    flat = int(ratio.argmax())
    row = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), ratio.shape))
    worst = float(ratio[row])
    line = (got64[row] - want[row]).abs()
    line = torch.where(line.isnan(), float("inf"), line)
    element = (*row, int(line.argmax()))
    ok = worst <= 1.0
    text = f"{name}: error {float(error[row]):.3g} in a row, bound {float(bound[row]):.3g}" if not ok else ""
    return Observation(
        ok,
        clause,
        text,
        hazard,
        locate(name, element, chunk_size),
        number(got64[element]),
        number(want[element]),
        float(error[row]),
        float(bound[row]),
        worst,
    )


def same_bits(
    name: str, got: torch.Tensor, want: torch.Tensor, clause: str, hazard: str | None, what: str
) -> Observation:
    """Compare two tensors byte by byte (NaN equals the same NaN); ``what`` says what should have been the same."""
    if got.shape != want.shape or got.dtype != want.dtype:
        text = f"{name} changed shape or dtype: {what}"
        return Observation(
            False,
            clause,
            text,
            hazard,
            value=f"{got.dtype} {list(got.shape)}",
            expected=f"{want.dtype} {list(want.shape)}",
        )
    size = got.element_size()
    as_bytes = [x.detach().cpu().contiguous().view(-1).view(torch.uint8).view(-1, size) for x in (got, want)]
    different = (as_bytes[0] != as_bytes[1]).any(-1)
    if not bool(different.any()):
        return Observation(True, clause)
    flat = int(different.int().argmax())
    element = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), got.shape)) if got.dim() else ()
    count = int(different.sum())
    text = f"{name}: {count} of {different.numel()} elements differ: {what}"
    return Observation(
        False, clause, text, hazard, locate(name, element), number(got[element].cpu()), number(want[element].cpu())
    )
