"""The model backend is a right one: it is the control of every mutant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operator
from deltaproof.verify.case import Case
from deltaproof.verify.expected import GRADIENT_INPUTS
from deltaproof.verify.inputs import build
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.observation import compare
from deltaproof.verify.probe import Context
from deltaproof.verify.target import Target

FORMS = ("chunk", "recurrent", "decode", "prefill")


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(Target(ModelBackend(), operator("gated_delta_rule"), "model", face=False), 0, "cpu")


def cases(form: str) -> list[Case]:
    base = Case(form, T=5 if form == "decode" else 35, K=20, V=36)
    low = base.but(dtype="bfloat16", gate_in_kernel=True, beta_sigmoid=True, layout="v_first", state_dtype="bfloat16")
    found = [base, low, base.but(normalize=False, scale=0.3, gates="mixed"), base.but(B=0)]
    if form == "decode":
        found.append(base.but(B=3, read=(2, -1, 9), num_tokens=(3, 5, 5), write=(4, 1, 2)))
        found.append(base.but(read=(2, 2), write=((1, 3, -1, 4, 7), (5, -1, 6, 9, 0)), fresh=(False, True)))
    else:
        found.append(base.but(seqlens=(17, 0, 33), tail=2, chunk_size=16))
        found.append(base.but(T=0))
    if form == "prefill":
        every = {"checkpoint_every": 16, "checkpoints": ((3, 4), (5, -1))}
        found.append(base.but(chunk_size=16, read=(1, -1), **every))
    return found


@pytest.mark.parametrize("case", [case for form in FORMS for case in cases(form)], ids=lambda case: case.id)
def test_every_form_agrees_with_the_oracle(case: Case, context: Context) -> None:
    call = context.call(case)
    seen = list(context.judge(case, context.run(case, call), call))
    assert seen
    assert all(item.ok for item in seen), [item.message for item in seen]


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "v_first", "gate_in_kernel": True, "beta_sigmoid": True, "dtype": "bfloat16"},
        {"seqlens": (5, 0, 33), "tail": 3, "chunk_size": 16, "scale": 0.4, "dtype": "bfloat16"},
        {"normalize": False, "H": 1, "dtype": "float16", "T": 20},
    ],
    ids=["options", "packed", "plain"],
)
def test_its_gradients_agree_with_the_oracle(form: str, changes: dict[str, object], context: Context) -> None:
    case = Case(form, T=35, K=20, V=36).but(**changes)
    call, clean = context.call(case), context.call(case)
    leaves = {name: getattr(call, name) for name in GRADIENT_INPUTS if getattr(call, name) is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    o, final = getattr(ModelBackend(), form)(call)
    generator = torch.Generator().manual_seed(3)
    flows = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (o, final)]
    grads = torch.autograd.grad([o, final], list(leaves.values()), flows)
    want = context.reference.gradients(clean, *flows, chunked=form == "chunk")
    seen = [compare(grad, want[name]) for name, grad in zip(leaves, grads, strict=True)]
    assert all(item.ok for item in seen), [item.message for item in seen]


@pytest.mark.parametrize("form", FORMS[:2])
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(form: str) -> None:
    call = build(Case(form, B=4, T=35, K=20, V=36), 0)
    o, final = getattr(ModelBackend(), form)(call)
    names = ("q", "k", "v", "g", "beta", "initial_state")
    for picked in ([2], [3, 2], [0, 2, 1]):
        part = replace(call, **{name: getattr(call, name)[picked].clone() for name in names})
        got, last = getattr(ModelBackend(), form)(part)
        assert torch.equal(got, o[picked])
        assert torch.equal(last, final[picked])


def test_a_state_in_the_other_layout_is_refused() -> None:
    call = build(Case("recurrent", T=3, K=20, V=36), 0)
    with pytest.raises(ContractError, match="initial_state"):
        ModelBackend().recurrent(replace(call, initial_state=call.initial_state.mT.contiguous()))
