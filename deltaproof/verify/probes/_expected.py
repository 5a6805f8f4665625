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


class WrongResult(Exception):
    """What a backend returned has not the shape that other runs can be compared with."""


def values(call: Call, outputs: Outputs) -> Values:
    """Return what a call gave, under the names of ``expected``.

    Raises:
        WrongResult: a result is missing or has another shape than the call asks for.
    """
    found = {"o": outputs.o}
    shapes = {"o": call.v.shape}
    if isinstance(call, SequenceCall):
        _, _, _, HV, K, V = call.dims
        if call.output_final_state:
            if outputs.final_state is None:
                raise WrongResult("no final state was returned")
            found["final_state"] = outputs.final_state
            shapes["final_state"] = torch.Size((call.sequences, HV, *call.options.layout.inner_shape(K, V)))
    else:
        found |= {f"pool[{slot}]": call.pool[slot].clone() for slot in range(call.pool.shape[0])}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise WrongResult(f"{name} has shape {list(found[name].shape)}, expected {list(shape)}")
    return found


def compare_all(
    got: Values, want: dict[str, Expected], clause: str, hazard: str | None, case: Case, what: str = ""
) -> Iterator[Observation]:
    """Compare everything that is expected; ``what`` says what was compared, where it is not the oracle."""
    for name, row in want.items():
        seen = compare(got[name], row, clause, hazard, case.chunk_size if name == "o" else None)
        yield replace(seen, message=f"{seen.message}: {what}") if what and not seen.ok else seen


def compare_between(
    got: Values,
    second: Values,
    first: dict[str, Expected],
    bounds: dict[str, Expected],
    clause: str,
    hazard: str | None,
    case: Case,
    what: str,
) -> Iterator[Observation]:
    """Compare two runs: each lies within its bound of the oracle, so the two lie within the sum of each other.

    ``first`` holds the bounds of ``got``, ``bounds`` those of ``second``.
    """
    for name, row in first.items():
        other = second[name].detach().cpu().double()
        if not bool(other.isfinite().all()):
            yield Observation(False, clause, f"{name} is not finite: {what}", hazard)
            continue
        want = replace(row, want=other, bound=row.bound + bounds[name].bound)
        yield from compare_all(got, {name: want}, clause, hazard, case, what)
