"""Inputs that have gradients, and the reference's outputs and gradients, some heads at a time.

Shape legend: T tokens, H q,k heads, HV value heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from deltaproof.ops.common.calls import SequenceCall

Outputs = dict[str, torch.Tensor]
HEADS_AT = {
    "q": 2, "k": 2, "v": 2, "g": 2, "beta": 2, "A_log": 0, "dt_bias": 0, "initial_state": 1, "o": 2, "final_state": 1,
}  # fmt: skip
"""Tensor -> its dimension of heads."""
DIFFERENTIABLE = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "initial_state")
MOST_TOKEN_HEADS = 1 << 19
"""Tokens times value heads of which autograd keeps everything at once. With gates a channel the torch backend keeps
about 47 KiB of each, for K = V = 128: 25 GB."""


def with_gradients(call: SequenceCall) -> tuple[str, ...]:
    """Return the names of a call's inputs that have gradients."""
    return tuple(name for name in DIFFERENTIABLE if getattr(call, name) is not None)


def with_leaves(call: SequenceCall) -> SequenceCall:
    """Return the call with such inputs as leaves."""
    names = with_gradients(call)
    changed: SequenceCall = call.with_(**{name: getattr(call, name).detach().requires_grad_() for name in names})
    return changed


def leaves(call: SequenceCall) -> tuple[torch.Tensor, ...]:
    """Return these inputs."""
    return tuple(getattr(call, name) for name in with_gradients(call))


def named(call: SequenceCall, gradients: Sequence[torch.Tensor]) -> Outputs:
    """Return the gradients of a call's leaves by name: "dq" and so on."""
    return {f"d{name}": gradient for name, gradient in zip(with_gradients(call), gradients, strict=True)}


def summed(call: SequenceCall) -> dict[str, int]:
    """Return the gradients that are sums over all tokens, with their terms."""
    tokens = call.q.shape[0] * call.q.shape[1]
    terms = {"A_log": tokens * math.prod(call.g.shape[3:]), "dt_bias": tokens}
    return {f"d{name}": count for name, count in terms.items() if getattr(call, name) is not None}


def sum_scales(call: SequenceCall, want: Outputs) -> dict[str, float]:
    """Return the root mean square of each such sum, as it would be if its terms had random signs.

    Terms may cancel, and an error in proportion to them is then none in proportion to their sum. The gate is a function
    of exp(A_log) * (g + dt_bias): the terms of ddt_bias are dg, those of dA_log dg * (g + dt_bias).
    """
    if not summed(call):
        return {}
    assert call.A_log is not None and call.dt_bias is not None and call.options.lower_bound is not None
    dg = want["dg"]
    rate = dg * (call.g.float() + call.dt_bias)
    parts = {"dA_log": (rate, call.A_log), "ddt_bias": (dg, call.dt_bias)}
    return {name: math.sqrt(float(x.square().sum()) / into.numel()) for name, (x, into) in parts.items()}


def _heads(call: SequenceCall) -> Iterator[tuple[slice, slice]]:
    """Yield q,k heads and their value heads, as many as fit at once."""
    B, T, H, HV, _, _ = call.dims
    group = HV // H
    count = max(1, MOST_TOKEN_HEADS // max(1, B * T * group))
    for first in range(0, H, count):
        last = min(first + count, H)
        yield slice(first, last), slice(first * group, last * group)


def _of(x: torch.Tensor, name: str, heads: slice) -> torch.Tensor:
    return x[(slice(None),) * HEADS_AT[name] + (heads,)]


def by_heads(
    chunk: Callable[[SequenceCall], Any], call: SequenceCall, gradients: tuple[torch.Tensor, torch.Tensor]
) -> Outputs:
    """Return outputs and gradients of a call in float32; heads do not know of each other, so one after another."""
    found: dict[str, list[torch.Tensor]] = {}
    for keys, values in _heads(call):
        own = {name: keys if name in ("q", "k") else values for name in HEADS_AT}
        part = with_leaves(
            call.with_(**{name: _of(getattr(call, name), name, own[name]) for name in with_gradients(call)})
        )
        o, final = chunk(part)
        back = tuple(_of(x, name, values) for name, x in zip(("o", "final_state"), gradients, strict=True))
        into = torch.autograd.grad((o, final), leaves(part), back)
        for name, x in {"o": o, "final_state": final, **named(part, into)}.items():
            found.setdefault(name, []).append(x.detach().float())
    return {name: torch.cat(parts, HEADS_AT[name.removeprefix("d")]) for name, parts in found.items()}
