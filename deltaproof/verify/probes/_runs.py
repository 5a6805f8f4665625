"""Making calls, with or without a backward, and holding the results of two runs together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.verify import inputs
from deltaproof.verify.case import Case
from deltaproof.verify.expected import GRADIENT_INPUTS
from deltaproof.verify.inputs import Fill
from deltaproof.verify.observation import HarnessError, Observation, Skipped, Unsupported, number, same_bits
from deltaproof.verify.probe import Call, Context
from deltaproof.verify.target import Outputs

BACKWARD = "backward"
"""Label of cases that run the backward too; cases of their own, for a backend may lack it."""


def require(context: Context, *names: str) -> None:
    """Raise Unsupported where the backend declares that it lacks one of these."""
    declared = context.target.backend.unsupported
    for name in names:
        if name in declared:
            raise Unsupported(f"{name}: {declared[name]}")


def arguments(call: Call) -> dict[str, torch.Tensor]:
    """Return every tensor of a call by the name of its argument, the drafts' parts among them."""
    found = {item.name: getattr(call, item.name) for item in fields(call)}
    kept = call.drafts if isinstance(call, DecodeCall) else None
    parts = {} if kept is None else {f"drafts.{name}": x for name, x in kept._asdict().items()}
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)} | parts


@dataclass
class Run:
    """One call and what came of it.

    Attributes:
        call: the call, its pool as the backend left it.
        outputs: what it returned.
        results: o, the final state or the pool, and gradients, by name.
        cotangents: what arrived at o and the final state; only where there was a backward.
    """

    call: Any
    outputs: Outputs
    results: dict[str, torch.Tensor]
    cotangents: dict[str, torch.Tensor]


def make(
    case: Case,
    context: Context,
    call: Call | None = None,
    *,
    fill: Fill = "nan",
    backward: bool = False,
    inside: AbstractContextManager[Any] | None = None,
) -> Run:
    """Make a case's call, or the one given; only the backend runs ``inside``.

    With ``backward``, cotangents of o and of the final state are drawn and every gradient is taken.
    """
    call = context.call(case, fill=fill) if call is None else call
    inside = inside or nullcontext()
    if not backward:
        with inside:
            outputs = context.run(case, call)
        return Run(call, outputs, returned(call, outputs), {})
    assert isinstance(call, SequenceCall)
    leaves = {name: getattr(call, name) for name in GRADIENT_INPUTS if getattr(call, name) is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    cotangents = drawn_cotangents(case, context, call, fill)
    with inside:
        outputs = context.run(case, call)
        pairs = [(outputs.o, cotangents["do"])]
        if outputs.final_state is not None:
            pairs.append((outputs.final_state, cotangents["dstate"]))
        if case.tokens == case.tail:
            # no token in any sequence: results may depend on nothing
            pairs = [pair for pair in pairs if pair[0].requires_grad]
        roots, arriving = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        grads = torch.autograd.grad(roots, list(leaves.values()), arriving, allow_unused=True) if roots else ()
        if context.device == "cuda":
            torch.cuda.synchronize()
    results = returned(call, outputs)
    for name, grad in zip(leaves, grads, strict=bool(grads)):
        if grad is not None:
            results[f"gradient of {name}"] = grad
    return Run(call, outputs, results, cotangents)


def returned(call: Call, outputs: Outputs) -> dict[str, torch.Tensor]:
    found = {"o": outputs.o.detach()}
    if outputs.final_state is not None:
        found["final_state"] = outputs.final_state.detach()
    if not isinstance(call, SequenceCall):
        found["pool"] = call.pool
    return found


def drawn_cotangents(case: Case, context: Context, call: SequenceCall, fill: Fill) -> dict[str, torch.Tensor]:
    """Return what arrives at o and at the final state; rows in no sequence hold what the red zones hold."""
    generator = torch.Generator().manual_seed(case.seed(context.seed + 1))
    B, T, _, HV, K, V = call.dims
    do = torch.randn(B, T, HV, V, generator=generator)
    if case.tail:
        inputs.red_zone_(do[:, T - case.tail :], fill)
    dstate = torch.randn(call.sequences, HV, *call.options.layout.inner_shape(K, V), generator=generator)
    dtype = inputs.dtype_of(case.state_dtype) if case.initial_state else torch.float32
    placed = {"do": do.to(call.v.dtype), "dstate": dstate.to(dtype)}
    return {name: inputs.guarded(x, fill, context.device) for name, x in placed.items()}


def same(got: Run, want: Run, clause: str, hazard: str, what: str) -> Iterator[Observation]:
    """Compare the results of two runs byte by byte."""
    for name in want.results.keys() | got.results.keys():
        if name not in got.results or name not in want.results:
            yield Observation(False, clause, f"only one of two runs has a {name}: {what}", hazard)
        else:
            yield same_bits(name, got.results[name], want.results[name], clause, hazard, what)


def finite(run: Run, clause: str, hazard: str, what: str) -> Iterator[Observation]:
    """Check that every result is finite."""
    for name, x in run.results.items():
        bad = ~x.isfinite()
        if not bool(bad.any()):
            yield Observation(True, clause)
            continue
        flat = int(bad.int().argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), x.shape))
        text = f"{name}: {int(bad.sum())} of {x.numel()} elements are not finite: {what}"
        yield Observation(False, clause, text, hazard, value=number(x[at].cpu()), expected="a finite number")


def repeatable(context: Context) -> bool:
    """Return whether the backend promises the same bits run to run; without that no two runs can be compared."""
    return "I1" not in context.target.backend.unsupported


def refusal(case: Case, context: Context, call: Call) -> tuple[Exception | None, Outputs | None]:
    """Make a call that may be refused; return what it raised, or what it returned."""
    try:
        return None, context.run(case, call)
    except (Unsupported, Skipped, HarnessError):
        raise
    except Exception as error:
        return error, None
