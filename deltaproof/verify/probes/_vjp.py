"""Asking a backend for gradients, and comparing them with the oracle's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.verify.case import Case
from deltaproof.verify.expected import GRADIENT_INPUTS, Expected
from deltaproof.verify.inputs import guarded
from deltaproof.verify.observation import Observation, Unsupported, compare
from deltaproof.verify.probe import Context
from deltaproof.verify.probes._gauge import LIMIT

Gradients = dict[str, "torch.Tensor | None"]


@dataclass(frozen=True)
class Cotangents:
    """What flows back into a call, on the CPU.

    Attributes:
        o: [B, T, HV, V] in o's dtype, or None.
        state: like the final state, or None.
    """

    o: torch.Tensor | None
    state: torch.Tensor | None

    @classmethod
    def draw(cls, case: Case, context: Context, *, o: bool = True, state: bool = True) -> Cotangents:
        """Draw standard normal cotangents, the same ones for the same case and seed."""
        clean = context.call(case, device="cpu")
        assert isinstance(clean, SequenceCall)
        _, _, _, HV, K, V = clean.dims
        generator = torch.Generator().manual_seed(case.seed(context.seed) ^ 1)
        do = torch.randn(clean.v.shape, generator=generator).to(clean.v.dtype)
        shape = (clean.sequences, HV, *clean.options.layout.inner_shape(K, V))
        dtype = torch.float32 if clean.initial_state is None else clean.initial_state.dtype
        dstate = torch.randn(shape, generator=generator).to(dtype)
        return cls(do if o else None, dstate if state and case.final_state else None)


def require_backward(context: Context, cotangents: Cotangents) -> None:
    """Raise Unsupported where the backend declares that it has no such gradients."""
    unsupported = context.target.backend.unsupported
    needs = ["backward"] + (["G2"] if cotangents.state is not None else [])
    for name in needs:
        if name in unsupported:
            raise Unsupported(f"{name}: {unsupported[name]}")


def leaves_of(call: SequenceCall, names: Sequence[str] = GRADIENT_INPUTS) -> dict[str, torch.Tensor]:
    """Mark the call's tensors of these names as leaves of the graph and return them."""
    found = {name: getattr(call, name) for name in names}
    return {name: x.requires_grad_() for name, x in found.items() if x is not None}


def pull_back(
    case: Case, context: Context, call: SequenceCall, leaves: dict[str, torch.Tensor], cotangents: Cotangents
) -> Gradients | Observation:
    """Run the call and its backward; return the gradients, or what made them impossible."""
    outputs = context.run(case, call)
    pairs = []
    for name, root, cotangent in (
        ("o", outputs.o, cotangents.o),
        ("final_state", outputs.final_state, cotangents.state),
    ):
        if cotangent is None:
            continue
        if root is None or not root.requires_grad:
            text = f"{name} has no gradient function although inputs require gradients"
            return Observation(False, "G1", text, "wrong-gradient", expected="requires_grad", value=str(root is None))
        if root.shape != cotangent.shape or root.dtype != cotangent.dtype:
            text = f"{name} has shape {list(root.shape)} and dtype {root.dtype}"
            expected = f"{list(cotangent.shape)} {cotangent.dtype}"
            return Observation(False, "S1", text, expected=expected, value=f"{list(root.shape)} {root.dtype}")
        pairs.append((root, guarded(cotangent, device=context.device)))
    roots, flows = zip(*pairs, strict=True)
    try:
        found = torch.autograd.grad(roots, list(leaves.values()), flows, allow_unused=True)
    except RuntimeError as error:
        if "number of gradients" not in str(error):
            raise
        return Observation(False, "G1", f"backward does not fit forward: {error}", "gradient-arity")
    if context.device == "cuda":
        torch.cuda.synchronize()
    return dict(zip(leaves, found, strict=True))


def expectations(case: Case, context: Context, cotangents: Cotangents) -> dict[str, Expected]:
    """Return the expected gradients of all inputs."""
    clean = context.call(case, device="cpu")
    do = torch.zeros_like(clean.v) if cotangents.o is None else cotangents.o
    return context.reference.gradients(clean, do, cotangents.state, chunked=case.form == "chunk")


def judge_gradients(
    gradients: Gradients, expected: dict[str, Expected], clause: str, hazard: str | None, chunk_size: int
) -> Iterator[Observation]:
    """Compare gradients with their expectations; None passes only where the gradient is zero by construction."""
    for name, gradient in gradients.items():
        want = expected[name]
        if gradient is None:
            due = bool((want.want != 0).any())
            text = f"no gradient of {name} came back" if due else ""
            yield Observation(not due, clause, text, hazard, expected="a gradient", value="None")
            continue
        per_token = name not in ("initial_state", "A_log", "dt_bias")
        yield compare(gradient, want, clause, hazard, chunk_size if per_token else None)


def gauge_gradients(
    case: Case, context: Context, cotangents: Cotangents, expected: dict[str, Expected]
) -> Iterator[Observation]:
    """Hold each bound to at most 64 times the error of a same-dtype reference, differentiated by autograd.

    Gradients of fewer than 16 rows say too little about that error and are left out.
    """
    call = context.call(case, device="cpu")
    leaves = leaves_of(call)
    o, final = context.reference.noise.same_dtype(call, chunked=case.form == "chunk")
    loss = 0.0
    for root, cotangent in ((o, cotangents.o), (final, cotangents.state)):
        if cotangent is not None:
            loss = loss + (root * cotangent.float()).sum()
    assert isinstance(loss, torch.Tensor)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, want), gradient in zip(expected.items(), found, strict=True):
        if gradient is None or want.bound.numel() < 16:
            continue
        error = (gradient.to(want.dtype).double().reshape(want.want.shape) - want.want).norm(dim=-1)
        spread, bound = (float(x.pow(2).mean().sqrt()) for x in (error, want.bound))
        ok = bound <= LIMIT * spread
        text = (
            f"the bound of the gradient of {name} is {bound / max(spread, 1e-300):.3g} times the error of a same-dtype"
        )
        text += f" reference, at most {LIMIT:g} allowed"
        yield replace(Observation(ok, "N2", "" if ok else text), observed=bound, bound=LIMIT * spread)


def finite_gradients(case: Case, context: Context, hazard: str) -> Iterator[Observation]:
    """Check that every gradient of a sequence form is finite (clause N1), if the backend has gradients at all."""
    if "backward" in context.target.backend.unsupported:
        return
    cotangents = Cotangents.draw(case, context, state="G2" not in context.target.backend.unsupported)
    call = context.call(case)
    gradients = pull_back(case, context, call, leaves_of(call), cotangents)
    if isinstance(gradients, Observation):
        yield gradients
        return
    for name, gradient in gradients.items():
        finite = gradient is None or bool(gradient.isfinite().all())
        count = 0 if gradient is None else int((~gradient.isfinite()).sum())
        text = "" if finite else f"the gradient of {name} has {count} elements that are not finite"
        yield Observation(finite, "N1", text, hazard, expected="finite", value=str(count))
