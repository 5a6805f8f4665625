"""Rows of the convolution: a row's results are its own, in any batch, in any cut, in any memory

What it does
    Runs each row of a call alone, the whole call twice, cuts the rows' tokens into calls of one or more tokens that
    carry the window, and runs them with strided inputs and with outputs and tokens of nobody full of NaN, also where
    padding rows, short rows and a tail leave outputs that no token computes.

What it shows
    Results that depend on neighbours or on what memory held; a window handed over after the wrong token; inputs that
    are written; strides that are ignored.

How it judges
    The same call, and a row alone, must give the same bits (I1, I2). Cuts must give the oracle's values within the
    bound of the whole, and the same windows to the bit. Inputs must be as they were (M2).

What it cannot see
    What differs by the size of a batch larger than a case has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall
from deltaproof.ops.common.allocation import forced_init
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.conv.inputs import build
from deltaproof.verify.conv.judge import expected, run
from deltaproof.verify.observation import Observation, compare, same_bits
from deltaproof.verify.probe import Context, Plan, Probe

ORDER = 202
INPUTS = ("x", "weight", "bias", "read_index", "write_index", "num_tokens", "has_initial_state", "cu_seqlens")


class ConvRows(Probe):
    """Clauses I1, I2, T3 and M1 to M3 for the convolution."""

    name = "conv_rows"
    clause = "T3"
    clauses = ("I1", "I2", "T3", "M1", "M2", "M3", "S1", "S3")
    hazards = ("unwritten-output", "appended-cache", "assumed-contiguous", "autotuned-in-place", "racing-store")
    forms = ("decode", "prefill")
    family: ClassVar[str] = "causal_conv"

    def cases(self, plan: Plan) -> Iterator[ConvCase]:  # type: ignore[override]
        base = ConvCase(plan.form, T=6)
        for label in ("alone", "cuts", "memory"):
            yield base.but(label=label)
            yield base.but(label=label, layout="time_first", dtype="bfloat16", state_dtype="bfloat16", W=3)
            if plan.full:
                yield base.but(label=label, W=8, T=13, C=70, B=5)
                yield base.but(label=label, W=2, dtype="float16", state_dtype="float16", silu=False)
        # outputs that no token computes: of padding rows, past a row's number, behind the last sequence
        if plan.form == "decode":
            yield base.but(label="memory", read=(1, -1, 3), num_tokens=(6, 6, 2))
        else:
            yield base.but(label="memory", read=(1, 2, -1, 4), seqlens=(5, 0, 4, 3), tail=2)

    def run(self, case: ConvCase, context: Context) -> Iterator[Observation]:  # type: ignore[override]
        yield from {"alone": self._alone, "cuts": self._cuts, "memory": self._memory}[case.label](case, context)

    def _alone(self, case: ConvCase, context: Context) -> Iterator[Observation]:
        call, again = (build(case, context.seed, context.device) for _ in range(2))
        y, second = run(context, case, call), run(context, case, again)
        yield same_bits("y", second, y, "I1", None, "the same call twice")
        yield same_bits("pool", again.pool, call.pool, "I1", None, "the same call twice")
        for row in range(case.B):
            one: Any = build(case, context.seed, context.device)
            one = one.with_(x=one.x[row : row + 1].clone(), read_index=one.read_index[row : row + 1].clone())
            slot = int(one.read_index[0])
            mine = run(context, case, one)
            yield same_bits("y", mine[0], y[row], "I2", None, f"row {row} alone and among {case.B}")
            yield same_bits(f"pool[{slot}]", one.pool[slot], call.pool[slot], "I2", None, f"row {row} alone")

    def _cuts(self, case: ConvCase, context: Context) -> Iterator[Observation]:
        whole = build(case, context.seed, context.device)
        run(context, case, whole)
        want, _ = expected(build(case, context.seed))
        for step in (1, 2, case.W):
            call: Any = build(case, context.seed, context.device)
            parts = []
            for start in range(0, case.T, step):
                # every part goes on from the window that the one before left in the pool
                parts.append(run(context, case, call.with_(x=call.x[:, start : start + step].clone())))
            yield compare(torch.cat(parts, 1), want, "T3", "appended-cache")
            what = f"the window after parts of {step} tokens, and after the whole"
            yield same_bits("pool", call.pool, whole.pool, "T3", "appended-cache", what)

    def _memory(self, case: ConvCase, context: Context) -> Iterator[Observation]:
        plain, call = (build(case, context.seed, context.device) for _ in range(2))
        y = run(context, case, plain)
        before = {name: x.clone() for name in INPUTS if (x := getattr(call, name, None)) is not None}
        for init in ("poison", "zeros"):
            fresh = build(case, context.seed, context.device)
            with forced_init(init):
                found = run(context, case, fresh)
            yield same_bits("y", found, y, "M1", "unwritten-output", f"output memory full of {init} and as it came")
        run(context, case, call)
        for name, was in before.items():
            yield same_bits(name, getattr(call, name), was, "M2", None, "inputs stay as they were")
        strided: Any = build(case, context.seed, context.device)
        found = run(context, case, _strided(strided))
        yield same_bits("y", found, y, "M3", "assumed-contiguous", "x and weight as views with gaps, and without")


def _strided(call: Any) -> ConvCall:
    """Return the call with x and weight as views into wider tensors."""
    views = {}
    for name in ("x", "weight"):
        x = getattr(call, name)
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype, device=x.device)
        views[name] = wide[..., 1::2].copy_(x)
    changed: ConvCall = call.with_(**views)
    return changed


PROBE = ConvRows()
