"""The sequence forms of the torch backend against the oracle: values, dtypes, memory and gradients.

The bound is ``cases.bound``: a number of float32 roundings of the largest state, and a result of another dtype may
differ by that dtype's rounding too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import deltaproof
from deltaproof.ops.common.allocation import Allocator, forced_init
from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from deltaproof.ops.gated_delta_rule import oracle
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from tests.ops.gated_delta_rule.cases import K_FIRST, V_FIRST, bound, normal, sequence_call

Result = tuple[torch.Tensor, torch.Tensor]
INSIDE = {"normalize_qk": True, "gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True}
DIFFERENTIABLE = ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias")

either_form = pytest.mark.parametrize("form", ["chunk", "recurrent"])


def run(form: str, call: SequenceCall) -> Result:
    o, final = getattr(TorchBackend(), form)(call)
    assert final is not None
    return o, final


def check(form: str, call: SequenceCall, *, aligned: bool = False) -> Result:
    """Run a call, hold both results to the bound and return them."""
    o, final = run(form, call)
    exact_o, exact_final = oracle.sequence(call)
    limit = bound(call, aligned=aligned)
    limit.check(o, exact_o)
    limit.check(final, exact_final, state=True)
    return o, final


SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"T": 1},
    "a token less than a chunk": {"T": 63},
    "a chunk and a token": {"T": 65},
    "no initial state": {"T": 70, "state": None},
    "layout v_first": {"T": 70, "layout": V_FIRST},
    "chunks of 16": {"T": 33, "chunk_size": 16},
    "chunks of 32": {"T": 47, "chunk_size": 32},
    "one value head a query head": {"T": 20, "H": 3, "HV": 3},
    "six value heads on two query heads": {"T": 20, "H": 2, "HV": 6},
    "sizes of 1": {"T": 20, "K": 1, "V": 1},
    "sizes that are no powers of two": {"T": 20, "K": 40, "V": 96},
    "the largest K": {"T": 5, "K": 256, "V": 8, "layout": V_FIRST},
    "the largest V": {"T": 5, "K": 8, "V": 256},
    "another scale": {"T": 20, "scale": 3.0},
    "normalisation": {"T": 70, "normalize_qk": True},
    "the gate in the kernel": {"T": 70, "gate_in_kernel": True},
    "the sigmoid of beta": {"T": 70, "beta_sigmoid": True},
    "all of it in the kernel": {"T": 70, **INSIDE},
    "a pack": {"B": 1, "T": 75, "cu_seqlens": [0, 3, 3, 70, 71], "layout": V_FIRST},
    "a pack in any order of lengths": {"B": 1, "T": 97, "cu_seqlens": [0, 0, 17, 50, 51, 97, 97], "chunk_size": 16},
    "a pack of empty sequences": {"B": 1, "T": 5, "cu_seqlens": [0, 0, 0]},
}


@either_form
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_agrees_with_the_oracle(form, shape):
    check(form, sequence_call(11, **shape))


@either_form
def test_the_two_tokens_worked_by_hand(form):
    """The example of the operator's README, which works it both ways."""
    tokens = {
        "q": torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2),
        "k": torch.tensor([[1.0, 0.0], [0.6, 0.8]]).view(1, 2, 1, 2),
        "v": torch.tensor([4.0, 1.0]).view(1, 2, 1, 1),
        "g": torch.tensor([0.5, 1.0]).log().view(1, 2, 1),
        "beta": torch.tensor([0.5, 1.0]).view(1, 2, 1),
    }
    state = torch.tensor([2.0, 1.0]).view(1, 1, 2, 1)
    call = SequenceCall(**tokens, options=DeltaRuleOptions(scale=1.0), initial_state=state, output_final_state=True)
    o, final = run(form, call)
    bound(call).check(o, torch.tensor([3.0, -0.22]).double().view(1, 2, 1, 1))
    bound(call).check(final, torch.tensor([1.96, -0.22]).double().view(1, 1, 2, 1), state=True)


@either_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_follow_the_values_and_the_initial_state(form, dtype, state):
    call = sequence_call(12, T=20, dtype=dtype, state=state)
    call = call.with_(g=call.g.to(torch.bfloat16), beta=call.beta.to(torch.float16))
    o, final = check(form, call)
    assert o.dtype is dtype
    assert final.dtype is (state or torch.float32)


@either_form
def test_the_output_has_the_dtype_of_v_alone(form):
    call = sequence_call(12, T=20)
    o, _ = check(form, call.with_(q=call.q.half(), k=call.k.bfloat16()))
    assert o.dtype is torch.float32


@either_form
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds_may_be_32_or_64_bits_wide(form, dtype):
    call = sequence_call(13, B=1, T=9, cu_seqlens=[0, 4, 8])
    check(form, call.with_(cu_seqlens=call.cu_seqlens.to(dtype)))


@either_form
def test_rows_past_the_last_sequence_may_hold_nan_and_give_zero(form):
    call = sequence_call(14, B=1, T=20, cu_seqlens=[0, 7, 7, 16])
    clean = run(form, call)
    dirty = {name: getattr(call, name).clone() for name in ("q", "k", "v", "g", "beta")}
    for x in dirty.values():
        x[:, 16:] = float("nan")
    o, final = run(form, call.with_(**dirty))
    assert torch.equal(o, clean[0]) and torch.equal(final, clean[1])
    assert bool(o[:, :16].all()) and not bool(o[:, 16:].any())
    assert torch.equal(final[1], call.initial_state[1]), "an empty sequence keeps its state"


@either_form
@pytest.mark.parametrize("layout", [K_FIRST, V_FIRST])
@pytest.mark.parametrize(
    ("sizes", "output", "states"),
    [
        ({"T": 0}, (2, 0, 4, 16), 2),
        ({"B": 0, "T": 5}, (0, 5, 4, 16), 0),
        ({"B": 0, "T": 0}, (0, 0, 4, 16), 0),
        ({"B": 1, "T": 5, "cu_seqlens": [0]}, (1, 5, 4, 16), 0),
        ({"B": 1, "T": 0, "cu_seqlens": [0, 0, 0]}, (1, 0, 4, 16), 2),
    ],
    ids=["no tokens", "no batch", "neither", "no sequences", "a pack without tokens"],
)
def test_nothing_to_do_is_legal(form, layout, sizes, output, states):
    call = sequence_call(15, layout=layout, **sizes)
    o, final = run(form, call)
    assert o.shape == output and not bool(o.any())
    assert final.shape == (states, 4, *layout.inner_shape(24, 16))
    assert torch.equal(final, call.initial_state)
    _, zero = run(form, call.with_(initial_state=None))
    assert zero.shape == final.shape and not bool(zero.any())


def tensors(call: SequenceCall) -> dict[str, torch.Tensor]:
    return {name: x for name, x in vars(call).items() if isinstance(x, torch.Tensor)}


@either_form
@pytest.mark.parametrize("layout", [K_FIRST, V_FIRST])
@pytest.mark.parametrize("T", [0, 20])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 0]], ids=["dense", "an empty sequence"])
def test_inputs_stay_as_they_were_and_the_final_state_owns_its_memory(form, layout, T, cu_seqlens):
    call = sequence_call(16, B=1, T=T, layout=layout, cu_seqlens=cu_seqlens, gate_in_kernel=True)
    before = {name: x.clone() for name, x in tensors(call).items()}
    o, final = run(form, call)
    final.zero_()
    o.zero_()
    assert all(torch.equal(x, before[name]) for name, x in tensors(call).items())
    assert final.is_contiguous()
    assert final.untyped_storage().nbytes() == final.numel() * 4, "no view of a larger workspace"


@either_form
def test_strides_of_inputs_are_honoured(form):
    call = sequence_call(17, T=20)
    turned = {name: getattr(call, name).transpose(1, 2).contiguous().transpose(1, 2) for name in ("q", "k", "v", "g")}
    gaps = torch.stack([call.beta, torch.full_like(call.beta, float("nan"))], -1)[..., 0]
    state = call.initial_state.mT.contiguous().mT
    strided = call.with_(**turned, beta=gaps, initial_state=state)
    assert not any(x.is_contiguous() for x in (strided.q, strided.g, strided.beta, strided.initial_state))
    check(form, strided)


@either_form
def test_no_result_depends_on_what_the_memory_held(form):
    call = sequence_call(18, B=1, T=20, cu_seqlens=[0, 7, 7, 16])
    results = [run(form, call.with_(allocate=Allocator(init))) for init in ("zeros", "poison")]
    with forced_init("poison"):
        results.append(run(form, call))
    for o, final in results:
        assert torch.equal(o, results[0][0]) and torch.equal(final, results[0][1])
        assert bool(o.isfinite().all() and final.isfinite().all())


def test_no_final_state_unless_asked():
    call = sequence_call(T=5).with_(output_final_state=False)
    for form in ("chunk", "recurrent"):
        o, final = getattr(TorchBackend(), form)(call)
        assert final is None and torch.equal(o, run(form, sequence_call(T=5))[0])


@either_form
def test_zero_rows_under_normalisation_are_finite_forward_and_backward(form):
    call = sequence_call(19, T=20, normalize_qk=True)
    q, k = call.q.clone(), call.k.clone()
    q[:, 3], k[:, 5] = 0, 0
    call = call.with_(q=q, k=k)
    check(form, call)
    check_gradients(form, call)


@either_form
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_identical_keys_with_the_largest_strength_and_no_decay(form, strength):
    """The hardest case for the inverse inside a chunk: every token meets every other in full."""
    call = sequence_call(20, T=130)
    k = call.k[:, :1].expand_as(call.k)
    strong = {"k": k / k.norm(dim=-1, keepdim=True), "g": torch.zeros_like(call.g)}
    check(form, call.with_(**strong, beta=torch.full_like(call.beta, strength)), aligned=True)


def extreme() -> SequenceCall:
    """Return gates of -1e4, 0, -64 and small ones side by side, over more than two chunks."""
    call = sequence_call(21, T=140)
    g = call.g.clone()
    g[:, 1::7], g[:, 2::5], g[:, 3::11] = -1e4, 0.0, -64.0
    g[1, 60:70] = -1e4
    g[0, 64:128, 0] = 0.0
    return call.with_(g=g)


@either_form
def test_extreme_gates_give_finite_and_right_results(form):
    check(form, extreme())


@either_form
def test_extreme_gates_give_finite_and_right_gradients(form):
    gradients = check_gradients(form, extreme())
    assert not bool(gradients["g"][:, 1::7][extreme().g[:, 1::7] == -1e4].any()), "nothing is left to forget"


@either_form
def test_a_gate_of_minus_infinity_forgets_all(form):
    call = sequence_call(22, T=70)
    g = call.g.clone()
    g[:, 30] = float("-inf")
    got, exact = run(form, call.with_(g=g)), oracle.sequence(call.with_(g=g))
    limit = bound(call.with_(g=g.clamp(min=-1e4)))
    limit.check(got[0], exact[0])
    limit.check(got[1], exact[1], state=True)


def gradients(
    function: Callable[[SequenceCall], Result], call: SequenceCall, weights: Iterable[torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the gradient of sum(o * weight) + sum(final * weight) by every differentiable input there is."""
    names = [name for name in DIFFERENTIABLE if getattr(call, name) is not None]
    inputs = [getattr(call, name).detach().to(dtype).requires_grad_() for name in names]
    results = function(call.with_(**dict(zip(names, inputs, strict=True))))
    loss = sum((x.double() * weight).sum() for x, weight in zip(results, weights, strict=True))
    found = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def check_gradients(form: str, call: SequenceCall, of: str = "both") -> dict[str, torch.Tensor]:
    """Hold the gradient by every input to the bound and return all."""
    shapes = [x.shape for x in oracle.sequence(call)]
    weights = [normal(90, *shapes[0]).double() * (of != "final"), normal(91, *shapes[1]).double() * (of != "o")]
    exact = gradients(oracle.sequence, call, weights, torch.float64)
    got = gradients(lambda c: run(form, c), call, weights, torch.float32)
    limit = bound(call)
    for name, gradient in got.items():
        limit.check_gradient(gradient, exact[name])
    return got


GRADIENTS: dict[str, dict[str, Any]] = {
    "dense": {"T": 70},
    "layout v_first": {"T": 70, "layout": V_FIRST},
    "a last chunk of one token": {"T": 65, "K": 16, "V": 40},
    "no initial state": {"T": 20, "state": None},
    "chunks of 16": {"T": 40, "chunk_size": 16},
    "a pack": {"B": 1, "T": 75, "cu_seqlens": [0, 3, 3, 70, 71]},
    "a pack in layout v_first": {"B": 1, "T": 45, "cu_seqlens": [0, 20, 20, 37], "layout": V_FIRST, "chunk_size": 16},
    "one query head for all": {"T": 20, "H": 1, "HV": 4},
    "all of it in the kernel": {"T": 70, **INSIDE},
    "all of it in the kernel, packed": {"B": 1, "T": 45, "cu_seqlens": [0, 20, 20, 37], **INSIDE},
}


@either_form
@pytest.mark.parametrize("shape", GRADIENTS.values(), ids=GRADIENTS)
def test_every_gradient_agrees_with_autograd_through_the_oracle(form, shape):
    found = check_gradients(form, sequence_call(23, **shape))
    missing = set() if shape.get("gate_in_kernel") else {"A_log", "dt_bias"}
    missing |= {"initial_state"} if "state" in shape else set()
    assert set(found) == set(DIFFERENTIABLE) - missing
    assert all(bool(x.any()) for x in found.values())


@either_form
@pytest.mark.parametrize("layout", [K_FIRST, V_FIRST])
@pytest.mark.parametrize("of", ["o", "final"])
def test_a_gradient_of_the_output_or_of_the_final_state_alone_is_honoured(form, layout, of):
    found = check_gradients(form, sequence_call(24, T=40, layout=layout, chunk_size=16), of)
    assert bool(found["q"].any()) == (of == "o"), "the final state does not depend on q"


@either_form
@pytest.mark.parametrize("options", [{}, INSIDE], ids=["plain", "all of it in the kernel"])
def test_rows_past_the_last_sequence_have_zero_gradients_whatever_they_hold(form, options):
    call = sequence_call(25, B=1, T=20, cu_seqlens=[0, 7, 7, 16], **options)
    dirty = {name: getattr(call, name).clone() for name in ("q", "k", "v", "g", "beta")}
    for x in dirty.values():
        x[:, 16:] = float("nan")
    weights = [torch.ones(1, 20, 4, 16).double(), torch.ones(3, 4, 24, 16).double()]
    clean = gradients(lambda c: run(form, c), call, weights, torch.float32)
    found = gradients(lambda c: run(form, c), call.with_(**dirty), weights, torch.float32)
    for name in dirty:
        assert not bool(found[name][:, 16:].any())
    assert all(torch.equal(found[name], clean[name]) for name in found)


@either_form
def test_the_gradient_by_bfloat16_inputs_is_bfloat16(form):
    call = sequence_call(26, T=20, dtype=torch.bfloat16)
    q = call.q.clone().requires_grad_()
    o, _ = run(form, call.with_(q=q))
    o.float().sum().backward()
    assert q.grad is not None and q.grad.dtype is torch.bfloat16 and bool(q.grad.any())


def test_the_public_functions_run_these_forms_and_agree():
    call = sequence_call(27, T=70)
    given = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta", "initial_state")}
    pairs = {"chunk": deltaproof.chunk_gated_delta_rule, "recurrent": deltaproof.fused_recurrent_gated_delta_rule}
    exact_o, exact_final = oracle.sequence(call)
    for form, function in pairs.items():
        o, final = function(**given, output_final_state=True)
        assert torch.equal(o, run(form, call)[0]) and torch.equal(final, run(form, call)[1])
        bound(call).check(o, exact_o)
        bound(call).check(final, exact_final, state=True)


def test_recurrent_without_a_gate_or_beta_means_no_decay_and_full_strength():
    call = sequence_call(28, T=20)
    given = {name: getattr(call, name) for name in ("q", "k", "v", "initial_state")}
    plain = call.with_(g=torch.zeros_like(call.g), beta=torch.ones_like(call.beta))
    o, final = deltaproof.fused_recurrent_gated_delta_rule(**given, output_final_state=True)
    exact_o, exact_final = oracle.sequence(plain)
    bound(plain).check(o, exact_o)
    bound(plain).check(final, exact_final, state=True)
