"""What a whole call must give, by name: for probes that hold more than one run to the same expectation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected
from deltaproof.verify.observation import Observation, compare
from deltaproof.verify.probe import Call, Context
from deltaproof.verify.target import Outputs

Values = dict[str, torch.Tensor]


def on_cpu(call: Any) -> Any:
    """Return a copy of a call on the CPU, in memory of its own."""
    tensors = {name: x for name, x in vars(call).items() if isinstance(x, torch.Tensor)}
    return call.with_(**{name: x.detach().cpu().clone() for name, x in tensors.items()})


def expected(context: Context, form: str, call: Call) -> dict[str, Expected]:
    """Return what ``o``, ``final_state`` and ``pool[slot]`` of a call on the CPU must be."""
    if isinstance(call, SequenceCall):
        return context.reference.sequence(call, chunked=form == "chunk")
    o, writes = context.reference.pool(call)
    return {"o": o, **{f"pool[{slot}]": want for slot, want in writes.items()}}


def values(call: Call, outputs: Outputs) -> Values:
    """Return what a call gave, under the names of ``expected``."""
    found = {"o": outputs.o}
    if isinstance(call, SequenceCall):
        return found if outputs.final_state is None else {**found, "final_state": outputs.final_state}
    return {**found, **{f"pool[{slot}]": call.pool[slot].clone() for slot in range(call.pool.shape[0])}}


def compare_all(
    got: Values, want: dict[str, Expected], clause: str, hazard: str | None, case: Case, what: str = ""
) -> Iterator[Observation]:
    """Compare everything that is expected; ``what`` says what was compared, where it is not the oracle."""
    for name, row in want.items():
        seen = compare(got[name], row, clause, hazard, case.chunk_size if name == "o" else None)
        yield replace(seen, message=f"{seen.message}: {what}") if what and not seen.ok else seen


def between(first: dict[str, Expected], second: Values, bounds: dict[str, Expected]) -> dict[str, Expected]:
    """Return the second run's values as expectation for the first, with the sum of the bounds of both.

    Each lies within its bound of the oracle, so the two lie within the sum of each other.
    """
    return {
        name: replace(row, want=second[name].detach().cpu().double(), bound=row.bound + bounds[name].bound)
        for name, row in first.items()
    }
