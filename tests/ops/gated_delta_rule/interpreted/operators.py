"""The Triton forms as torch custom operators: opcheck, fake results, torch.compile and autocast.

``test_triton_interpreted.py`` runs this file: on the CPU in Triton's interpreter, on a GPU as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import deltaproof
from deltaproof.ops.common.allocation import Allocator
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.triton_ops import flat
from deltaproof.ops.gated_delta_rule.triton_ops import OPERATORS
from tests.ops.gated_delta_rule.cases import V_FIRST, normal, pool_call, sequence_call
from tests.ops.triton_calls import (
    DEVICE,
    arguments,
    arriving,
    assert_nothing_is_different_without_gradients,
    assert_same,
    compiling,
    differentiated,
    faked,
    looks,
    placed,
    public,
    requiring,
)

SMALL: dict[str, Any] = {"H": 1, "HV": 2, "K": 8, "V": 4}
IN_KERNEL: dict[str, Any] = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True, "normalize_qk": True}
FORWARD = {"chunk": OPERATORS.chunk_op, "recurrent": OPERATORS.recurrent_op}
BACKWARD = {"chunk": OPERATORS.chunk_backward_op, "recurrent": OPERATORS.recurrent_backward_op}


def dense(**changes: Any) -> SequenceCall:
    return placed(sequence_call(B=1, T=5, chunk_size=16, **SMALL).with_(**changes))


def packed(**changes: Any) -> SequenceCall:
    """Return a pack with an empty sequence, a tail, no initial state and all that happens to inputs in the kernel."""
    call = sequence_call(
        B=1, T=7, cu_seqlens=[0, 3, 3, 5], state=None, layout=V_FIRST, chunk_size=16, **IN_KERNEL, **SMALL
    )
    return placed(call.with_(**changes))


def full_decode() -> DecodeCall:
    call = pool_call(
        "decode", T=2, read_index=[2, -1, 4], write_index=[[1, 3], [0, 5], [-1, 4]], num_tokens=[2, 2, 1],
        has_initial_state=[True, True, False], layout=V_FIRST, options=IN_KERNEL, dtype=torch.bfloat16, **SMALL,
    )  # fmt: skip
    return placed(call.with_(A_log=normal(5, 2), dt_bias=normal(6, 2)))


def full_prefill() -> PrefillCall:
    call = pool_call(
        "prefill", B=1, T=21, read_index=[2, 9, 4], write_index=[1, 0, 5], cu_seqlens=[0, 17, 17, 20],
        has_initial_state=[True, True, False], checkpoint_every=16, checkpoint_index=[[3], [3], [6]], layout=V_FIRST,
        options=IN_KERNEL, pool=torch.bfloat16, **SMALL,
    )  # fmt: skip
    return placed(call.with_(A_log=normal(5, 2), dt_bias=normal(6, 2)))


def plain_pool(form: str) -> Any:
    return placed(pool_call(form, T=2, read_index=[2, -1], **SMALL))


def backward_arguments(form: str, call: SequenceCall, *, final: bool = True) -> tuple[Any, ...]:
    saved = FORWARD[form](*flat(call))[2:]
    return *arriving(call, final=final), *saved, *flat(call)


SEQUENCES = {"dense": dense, "packed": packed}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("form", FORWARD)
class TestSequenceOperators:
    # a workspace that an operator returns has places no sequence owns; opcheck compares those too
    ALLOCATE = Allocator("zeros")

    def test_forward_passes_opcheck(self, form, kind):
        call = requiring(SEQUENCES[kind](allocate=self.ALLOCATE))
        torch.library.opcheck(FORWARD[form], flat(call))

    def test_backward_passes_opcheck(self, form, kind):
        call = SEQUENCES[kind](allocate=self.ALLOCATE)
        torch.library.opcheck(BACKWARD[form], backward_arguments(form, call, final=kind == "dense"))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_the_operator_without_gradients_passes_opcheck_and_gives_the_same(kind):
    call = SEQUENCES[kind](allocate=TestSequenceOperators.ALLOCATE)
    assert_nothing_is_different_without_gradients(OPERATORS, call)


@pytest.mark.parametrize(
    ("operator", "call"),
    [
        (OPERATORS.decode_op, lambda: plain_pool("decode")),
        (OPERATORS.decode_op, full_decode),
        (OPERATORS.prefill_op, full_prefill),
    ],
    ids=["decode", "decode-everything", "prefill-everything"],
)
def test_pool_operators_pass_opcheck(operator, call):
    torch.library.opcheck(operator, arguments(call()))


VARIANTS = {
    "dense": dense,
    "packed": packed,
    "no-final-state": lambda: dense(output_final_state=False),
    "no-state-at-all": lambda: dense(initial_state=None, output_final_state=False),
    "no-dt-bias": lambda: packed(dt_bias=None),
    "bf16-state": lambda: dense(initial_state=dense().initial_state.bfloat16()),
    "mixed": lambda: dense(
        q=dense().q.half(), k=dense().k.bfloat16(), g=dense().g.half(), beta=dense().beta.bfloat16()
    ),
    "bf16-values": lambda: packed(v=packed().v.bfloat16(), A_log=packed().A_log.half()),
    "no-tokens": lambda: placed(sequence_call(B=2, T=0, chunk_size=16, **SMALL)),
    "no-rows": lambda: placed(sequence_call(B=0, T=3, chunk_size=16, **SMALL)),
    "no-sequences": lambda: placed(sequence_call(B=1, T=3, cu_seqlens=[0], chunk_size=16, **SMALL)),
    "strided": lambda: dense(
        q=normal(0, 1, 5, 1, 16).to(DEVICE)[..., ::2], k=normal(1, 1, 1, 1, 8).to(DEVICE).expand(1, 5, 1, 8)
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORWARD)
def test_fake_results_look_like_real_ones(form, variant):
    call = VARIANTS[variant]()
    given = flat(call)
    real = FORWARD[form](*given)
    assert looks(faked(FORWARD[form], given)) == looks(real)
    given = (*arriving(call, final=call.output_final_state), *real[2:], *given)
    assert looks(faked(BACKWARD[form], given)) == looks(BACKWARD[form](*given))


PUBLIC = {
    "chunk": (deltaproof.chunk_gated_delta_rule, {"chunk_size": 16}),
    "recurrent": (deltaproof.fused_recurrent_gated_delta_rule, {}),
}


@pytest.fixture
def compiled():
    yield from compiling()


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("form", PUBLIC)
def test_compiling_a_public_sequence_form_changes_nothing(form, kind, compiled):
    function, changes = PUBLIC[form]
    want = differentiated(function, SEQUENCES[kind](), **changes)
    assert_same(differentiated(compiled(function), SEQUENCES[kind](), **changes), want)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (deltaproof.gated_delta_rule_decode, lambda: plain_pool("decode")),
        (deltaproof.gated_delta_rule_decode, full_decode),
        (deltaproof.gated_delta_rule_prefill, full_prefill),
    ],
    ids=["decode", "decode-everything", "prefill-everything"],
)
def test_compiling_a_public_pool_form_changes_nothing(function, call, compiled):
    changes = {"chunk_size": 16} if function is deltaproof.gated_delta_rule_prefill else {}
    first, second = call(), call()
    want = function(**public(first, **changes))
    got = compiled(function)(**public(second, **changes))
    assert_same({"o": got, "pool": second.pool}, {"o": want, "pool": first.pool})
    assert not torch.equal(first.pool, call().pool)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_compiling_a_call_without_gradients_changes_nothing(kind, compiled):
    function, changes = PUBLIC["chunk"]
    given = public(SEQUENCES[kind](), **changes)
    want, got = function(**given), compiled(function)(**given)
    assert not want[0].requires_grad
    assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def test_gradients_that_no_input_says_it_requires_are_an_error():
    call = requiring(dense())
    o, _ = OPERATORS.chunk_inference_op(*flat(call))
    with pytest.raises(RuntimeError, match="did not look as if they would be"):
        o.sum().backward()


def test_gradients_come_through_vmap():
    # under it no tensor says that it requires a gradient
    function, changes = PUBLIC["chunk"]
    given = public(dense(), **changes)
    scales = torch.tensor([1.0, 2.0], device=DEVICE)
    found = []
    for each in (torch.vmap, lambda f: lambda x: torch.stack([f(one) for one in x])):
        v = given["v"].clone().requires_grad_()
        o = each(lambda scale, v=v: function(**given | {"v": v * scale, "validate": "shapes"})[0])(scales)
        found.append((o.detach(), *torch.autograd.grad(o.sum(), v)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][1].abs().max() > 0


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("form", PUBLIC)
def test_autocast_touches_no_sequence_form(form, kind):
    function, changes = PUBLIC[form]
    want = differentiated(function, SEQUENCES[kind](), **changes)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = differentiated(function, SEQUENCES[kind](), **changes)
    assert_same(got, want)


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_autocast_touches_no_pool_form(form):
    function = getattr(deltaproof, f"gated_delta_rule_{form}")
    changes = {"chunk_size": 16} if form == "prefill" else {}
    first, second = plain_pool(form), plain_pool(form)
    want = function(**public(first, **changes))
    with torch.autocast(DEVICE, torch.bfloat16):
        got = function(**public(second, **changes))
    assert_same({"o": got, "pool": second.pool}, {"o": want, "pool": first.pool})
