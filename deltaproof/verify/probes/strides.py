"""Strides: a non-contiguous input gives what its contiguous copy gives

What it does
    Passes inputs as views: tokens stored head first, sliced from one fused row of q, k and v, every second element of
    something larger, a batch that repeats one row by a stride of 0; initial states likewise; gate parameters,
    cu_seqlens and slot indices as every second element. What lies between the elements of a view is NaN, for indices
    plausible numbers.

What it shows
    Strides computed from the shape for a tensor that nobody checks, and kernels cached for the strides of an earlier
    call.

How it judges
    The results must be the same bits as with contiguous copies. A backend called without the public functions' checks
    may refuse a view by raising instead; then a call with contiguous copies still has to be made right. A backend that
    does not promise clause I1 is held to the oracle within the bound of clause N2.

What it cannot see
    Whether a view was copied or read in place: both are allowed. Strides of a pool are the probe slots' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.probes._expected import compare_all, expected, on_cpu, values
from deltaproof.verify.probes._runs import Run, arguments, make, refusal, repeatable, returned, same

TOKENS = ("q", "k", "v", "g", "beta")
PARAMETERS = ("A_log", "dt_bias")
INDICES = ("cu_seqlens", "read_index", "write_index", "num_tokens", "has_initial_state", "checkpoint_index")
Views = dict[str, torch.Tensor]


def every_second(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the values of ``x`` as every second element along a dimension of something larger."""
    shape = list(x.shape)
    shape[dim] *= 2
    fill: inputs.Fill = "nan" if x.is_floating_point() else "stale"
    larger = inputs.red_zone_(torch.empty(shape, dtype=x.dtype, device=x.device), fill)
    larger = inputs.guarded(larger, fill, x.device)
    view = larger[(slice(None),) * (dim % x.dim()) + (slice(None, None, 2),)]
    return view.copy_(x)


def stored_as(x: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Return the values of ``x`` in storage where two dimensions are swapped."""
    return inputs.guarded(x.transpose(first, second).contiguous(), device=x.device).transpose(first, second)


def head_first(given: Views) -> Views:
    """Store tokens [B, H, T, ...]."""
    return {name: stored_as(given[name], 1, 2) for name in TOKENS}


def fused(given: Views) -> Views:
    """Cut q, k and v out of one row a token, with something behind them; g and beta out of another."""
    changed = {}
    for names in (("q", "k", "v"), ("g", "beta")):
        flat = [given[name].flatten(2) for name in names]
        spare = inputs.red_zone_(torch.empty_like(flat[0][..., :1]).repeat(1, 1, 8), "nan")
        row = inputs.guarded(torch.cat([*flat, spare], -1), device=spare.device)
        for name, part in zip(names, row.split([*(x.shape[-1] for x in flat), 8], -1), strict=False):
            changed[name] = part.unflatten(-1, given[name].shape[2:])
    return changed


def second_tokens(given: Views) -> Views:
    """Take every second token of something twice as long."""
    return {name: every_second(given[name], 1) for name in TOKENS}


def second_channels(given: Views) -> Views:
    """Take every second channel of q, k and v, and every second head of g and beta."""
    return {name: every_second(given[name], -1) for name in TOKENS}


def expanded(given: Views) -> Views:
    """Repeat the first batch row by a stride of 0, and the first initial state."""
    changed = {name: given[name][:1].expand(given[name].shape) for name in TOKENS}
    if "initial_state" in given:
        changed["initial_state"] = given["initial_state"][:1].expand(given["initial_state"].shape)
    return changed


def state_by_rows(given: Views) -> Views:
    """Store the initial state heads outermost, and inside a head transposed."""
    return {"initial_state": stored_as(stored_as(given["initial_state"], 2, 3), 0, 1)}


def second_states(given: Views) -> Views:
    """Take every second sequence's initial state of a pool-like tensor."""
    return {"initial_state": every_second(given["initial_state"], 0)}


def indices(given: Views) -> Views:
    """Take bounds and indices as every second element."""
    return {name: every_second(given[name], -1) for name in INDICES if name in given}


def parameters(given: Views) -> Views:
    """Take gate parameters as every second element."""
    return {name: every_second(given[name], -1) for name in PARAMETERS}


VIEWS: dict[str, Callable[[Views], Views]] = {
    "head-first": head_first,
    "fused": fused,
    "second-tokens": second_tokens,
    "second-channels": second_channels,
    "expanded": expanded,
    "state-transposed": state_by_rows,
    "second-states": second_states,
    "indices": indices,
    "parameters": parameters,
}


class Strides(Probe):
    """Views of every kind."""

    name = "strides"
    clause = "M3"
    clauses = ("M3", "S1", "S3")
    hazards = ("assumed-contiguous", "incomplete-cache-key")

    def cases(self, plan: Plan) -> Iterator[Case]:
        form = plan.form
        base = Case(form, T=3 if form == "decode" else 18, K=16, V=24)
        yield base.but(label="head-first")
        if plan.light:
            base = base.but(H=1, HV=2)
        for label in ("fused", "second-tokens", "second-channels", "expanded"):
            yield base.but(label=label)
        yield base.but(label="parameters", gate_in_kernel=True)
        if not base.is_pool:
            yield base.but(label="state-transposed")
            yield base.but(label="state-transposed", layout="v_first", K=8, V=5)
            yield base.but(label="second-states", layout="v_first")
        if form == "decode":
            yield base.but(label="indices", num_tokens=(3, 2), write=(4, 5), fresh=(False, True))
            yield base.but(label="indices", write=((4, 5, -1), (6, 3, 0)))
        else:
            yield base.but(label="indices", seqlens=(7, 0, 11), **({"write": (4, 5, 6)} if base.is_pool else {}))
        if plan.full:
            sizes = ({"K": 72, "V": 136}, {"K": 64, "V": 64, "H": 1, "HV": 1}, {"B": 1, "K": 9, "V": 13})
            for label in VIEWS:
                if label in ("indices", "state-transposed", "second-states", "parameters"):
                    continue
                for dtype in ("bfloat16", "float16"):
                    for size in sizes:
                        yield base.but(label=label, dtype=dtype, gate_dtype=dtype, normalize=False, **size)

    def still_about(self, case: Case) -> bool:
        return case.label != "parameters" or case.gate_in_kernel

    def run(self, case: Case, context: Context) -> Iterator[Observation]:
        packed: Any = context.call(case)
        views = VIEWS[case.label](arguments(packed))
        copies = {name: inputs.guarded(x, device=context.device) for name, x in views.items()}
        contiguous = make(case, context, packed.with_(**copies))
        fresh: Any = context.call(case)
        strided = fresh.with_(**views)
        error, outputs = (None, context.run(case, strided)) if context.target.face else refusal(case, context, strided)
        if outputs is None:
            yield Observation(True, "M3", f"refused: {error}")
            return
        run = Run(strided, outputs, returned(strided, outputs), {})
        if repeatable(context):
            what = "a view must give what its contiguous copy gives"
            yield from same(run, contiguous, "M3", "assumed-contiguous", what)
            return
        clean = context.call(case, device="cpu").with_(**{name: x.cpu() for name, x in copies.items()})
        want = expected(context, case.form, on_cpu(clean))
        yield from compare_all(values(strided, outputs), want, "M3", "assumed-contiguous", case)


PROBE = Strides()
