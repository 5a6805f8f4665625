"""The oracle is the definition; here it is held to what is known without it."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from deltaproof.ops.gated_delta_rule import oracle
from tests.ops.gated_delta_rule.cases import K_FIRST, V_FIRST, bound, pool_call, sequence_call

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, some hundred operations


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, **EXACT)


def double(call: SequenceCall, **changes: torch.Tensor | None) -> SequenceCall:
    """Return the call with its tensors in float64, so that identities hold to its rounding."""
    names = ("q", "k", "v", "g", "beta", "initial_state")
    return call.with_(**({name: getattr(call, name).double() for name in names} | changes))


def test_two_tokens_worked_by_hand():
    """The example of the operator's README: K = 2, V = 1, one head, scale 1."""
    half = -math.log(2)
    call = SequenceCall(
        q=torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2),
        k=torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64).view(1, 2, 1, 2),
        v=torch.tensor([4.0, 1.0]).view(1, 2, 1, 1),
        g=torch.tensor([half, 0.0], dtype=torch.float64).view(1, 2, 1),
        beta=torch.tensor([0.5, 1.0]).view(1, 2, 1),
        options=DeltaRuleOptions(scale=1.0),
        initial_state=torch.tensor([2.0, 1.0]).view(1, 1, 2, 1),
    )
    o, final = oracle.sequence(call)
    close(o.flatten(), torch.tensor([3.0, -0.22], dtype=torch.float64))
    close(final.flatten(), torch.tensor([1.96, -0.22], dtype=torch.float64))
    parts = (x[0] for x in (call.q.double(), call.k, call.v.double(), call.g, call.beta.double()))
    _, states = oracle.recurrence(*parts, state=call.initial_state[0].double(), scale=1.0)
    close(states[1].flatten(), torch.tensor([2.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("layout", [K_FIRST, V_FIRST])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 1, 1, 3]], ids=["dense", "packed"])
@pytest.mark.parametrize("inside", [False, True], ids=["plain", "gate-norm-sigmoid"])
def test_its_gradients_are_those_of_finite_differences(layout, cu_seqlens, inside):
    options = {"normalize_qk": True, "gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True} if inside else {}
    call = sequence_call(B=1, T=4, H=1, HV=2, K=2, V=3, layout=layout, cu_seqlens=cu_seqlens, **options)
    names = ["q", "k", "v", "g", "beta", "initial_state", *(["A_log", "dt_bias"] if inside else [])]
    inputs = [getattr(call, name).double().requires_grad_() for name in names]

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return oracle.sequence(call.with_(**dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def transformers_functions():
    """Return transformers' own torch functions, without what would replace them by a kernel."""
    from transformers.models.qwen3_next import modeling_qwen3_next as model

    found = (model.torch_recurrent_gated_delta_rule, model.torch_chunk_gated_delta_rule)
    functions = [inspect.unwrap(function) for function in found]
    assert all(inspect.getsourcefile(function) == inspect.getsourcefile(model) for function in functions)
    return functions


@pytest.mark.parametrize("which", [0, 1], ids=["recurrent", "chunk"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("state", [None, torch.float32], ids=["from-zero", "from-a-state"])
def test_transformers_computes_the_same_up_to_float32_rounding(transformers_functions, which, normalize, state):
    call = sequence_call(3, T=70, H=3, HV=3, K=16, V=8, state=state, normalize_qk=normalize)
    o, final = transformers_functions[which](
        call.q, call.k, call.v, g=call.g, beta=call.beta, initial_state=call.initial_state,
        output_final_state=True, use_qk_l2norm_in_kernel=normalize,
    )  # fmt: skip
    exact_o, exact_final = oracle.sequence(call)
    worst = max(bound(call).check(o, exact_o), bound(call).check(final, exact_final, state=True))
    assert worst > 1e-2, "a bound so wide would let anything pass"


def test_with_beta_zero_the_state_only_decays():
    call = sequence_call(T=9)
    call = double(call, beta=torch.zeros_like(call.beta))
    o, final = oracle.sequence(call)
    decay = call.g.cumsum(1).exp()
    read = torch.einsum("bthk,bhkv->bthv", call.q.repeat_interleave(2, 2), call.initial_state)
    close(o, call.options.scale * decay[..., None] * read)
    close(final, decay[:, -1, :, None, None] * call.initial_state)


@pytest.mark.parametrize("gate", [-1e4, float("-inf")])
def test_a_gate_of_minus_ten_thousand_forgets_all_before_it(gate):
    call = double(sequence_call(T=9))
    g = call.g.clone()
    g[:, 4] = gate
    o, final = oracle.sequence(call.with_(g=g))
    later = {name: getattr(call, name)[:, 4:] for name in ("q", "k", "v", "g", "beta")}
    from_zero = oracle.sequence(call.with_(**later, initial_state=None))
    assert torch.equal(o[:, 4:], from_zero[0]) and torch.equal(final, from_zero[1])
    assert torch.equal(o[:, :4], oracle.sequence(call)[0][:, :4])


@pytest.mark.parametrize("at", [0, 1, 4, 8, 9])
def test_a_sequence_may_be_split_anywhere(at):
    call = double(sequence_call(T=9))
    o, final = oracle.sequence(call)
    state, parts = call.initial_state, []
    for span in (slice(0, at), slice(at, 9)):
        tokens = {name: getattr(call, name)[:, span] for name in ("q", "k", "v", "g", "beta")}
        part, state = oracle.sequence(call.with_(**tokens, initial_state=state))
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), o) and torch.equal(state, final)


def test_a_pack_is_its_sequences_one_by_one():
    bounds = [0, 3, 3, 8]
    call = double(sequence_call(B=1, T=10, cu_seqlens=bounds))
    o, final = oracle.sequence(call)
    for n, (a, b) in enumerate(pairwise(bounds)):
        tokens = {name: getattr(call, name)[:, a:b] for name in ("q", "k", "v", "g", "beta")}
        alone = oracle.sequence(call.with_(**tokens, cu_seqlens=None, initial_state=call.initial_state[n : n + 1]))
        assert torch.equal(o[:, a:b], alone[0]) and torch.equal(final[n], alone[1][0])
    assert torch.equal(final[1], call.initial_state[1]), "an empty sequence keeps its state"
    assert torch.equal(o[:, 8:], torch.zeros(1, 2, 4, 16, dtype=torch.float64))


def test_both_layouts_hold_the_same_state():
    call = double(sequence_call(T=5))
    o, final = oracle.sequence(call)
    turned = call.with_(initial_state=call.initial_state.mT, options=replace(call.options, layout=V_FIRST))
    other_o, other_final = oracle.sequence(turned)
    assert torch.equal(o, other_o) and torch.equal(final, other_final.mT)
    assert other_final.shape == (2, 4, 16, 24)


def test_grouped_values_are_repeated_query_and_key_heads():
    call = double(sequence_call(T=5, H=2, HV=6))
    repeated = {name: getattr(call, name)[:, :, [0, 0, 0, 1, 1, 1]] for name in ("q", "k")}
    assert all(
        torch.equal(a, b) for a, b in zip(oracle.sequence(call), oracle.sequence(call.with_(**repeated)), strict=True)
    )


def test_the_output_is_linear_in_q_and_scale_and_the_state_knows_neither():
    call = double(sequence_call(T=5))
    o, final = oracle.sequence(call)
    for other in (call.with_(q=4 * call.q), call.with_(options=replace(call.options, scale=4 * call.options.scale))):
        scaled_o, same_final = oracle.sequence(other)
        assert torch.equal(scaled_o, 4 * o) and torch.equal(same_final, final)


def test_the_result_is_linear_in_values_and_state_together():
    call = double(sequence_call(T=5))
    doubled = call.with_(v=2 * call.v, initial_state=2 * call.initial_state)
    for once, twice in zip(oracle.sequence(call), oracle.sequence(doubled), strict=True):
        assert torch.equal(2 * once, twice)


def test_with_beta_one_and_a_unit_key_the_value_just_written_is_read_back():
    call = sequence_call(T=5, H=4)
    k = call.k.double()
    k = k / k.norm(dim=-1, keepdim=True)
    options = replace(call.options, scale=1.0)
    o, _ = oracle.sequence(double(call, beta=torch.ones_like(call.beta).double(), q=k, k=k).with_(options=options))
    close(o, call.v.double())


def test_every_option_is_the_formula_of_the_contract():
    inside = {"normalize_qk": True, "gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True}
    call = sequence_call(T=5, **inside)
    q, k = (x.double() / torch.sqrt((x.double() ** 2).sum(-1, keepdim=True) + 1e-6) for x in (call.q, call.k))
    A_log, dt_bias = call.A_log.double(), call.dt_bias.double()
    g = -torch.exp(A_log) * torch.log1p(torch.exp(call.g.double() + dt_bias))
    beta = 2 / (1 + torch.exp(-call.beta.double()))
    plain = {"q": q, "k": k, "g": g, "beta": beta, "A_log": None, "dt_bias": None}
    options = DeltaRuleOptions(scale=call.options.scale)
    for a, b in zip(oracle.sequence(call), oracle.sequence(call.with_(**plain, options=options)), strict=True):
        close(a, b)
    once = oracle.operands64(call.with_(options=replace(call.options, neg_eigval=False)))[4]
    close(2 * once, beta)
    unbiased = oracle.operands64(call.with_(dt_bias=None))[3]
    close(unbiased, -torch.exp(A_log) * torch.log1p(torch.exp(call.g.double())))


def test_a_zero_row_stays_zero_under_normalisation():
    call = sequence_call(T=3, normalize_qk=True)
    q, k, *_ = oracle.operands64(call.with_(q=torch.zeros_like(call.q), k=torch.zeros_like(call.k)))
    assert not bool(q.any()) and not bool(k.any())


def test_no_tokens_and_no_sequences_are_legal():
    o, final = oracle.sequence(empty := sequence_call(T=0))
    assert o.shape == (2, 0, 4, 16) and torch.equal(final, empty.initial_state.double())
    o, final = oracle.sequence(sequence_call(B=0, T=3, state=None))
    assert o.shape == (0, 3, 4, 16) and final.shape == (0, 4, 24, 16)
    o, final = oracle.sequence(sequence_call(B=1, T=3, cu_seqlens=[0], state=None))
    assert torch.equal(o, torch.zeros(1, 3, 4, 16).double()) and final.shape == (0, 4, 24, 16)


def row(call, n: int, span: slice, start: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run tokens of batch row ``n`` by the recurrence alone, query heads repeated by hand."""
    q, k = (torch.stack([x[n, span, hv // 2] for hv in range(4)], 1).double() for x in (call.q, call.k))
    v, g, beta = (x[n, span].double() for x in (call.v, call.g, call.beta))
    return oracle.recurrence(q, k, v, g, beta, state=start, scale=call.options.scale)


def test_decode_updates_in_place_skips_padding_and_starts_fresh_rows_from_zero():
    call = pool_call("decode", read_index=[5, -1, 7, 2, 0], has_initial_state=[True, True, True, False, True])
    result = oracle.decode(call)
    pool = call.pool.double()
    for n, start in ((0, pool[5]), (3, torch.zeros_like(pool[2])), (4, pool[0])):
        o, states = row(call, n, slice(0, 3), start)
        close(result.o[n], o)
        close(result.writes[int(call.read_index[n])], states[3])
    assert set(result.writes) == {5, 2, 0}
    assert not bool(result.o[[1, 2]].any()), "padding on both sides of the pool"


def test_decode_keeps_a_row_s_last_state_where_write_index_says():
    call = pool_call("decode", read_index=[5, 5, 3], write_index=[1, 7, -1])
    result = oracle.decode(call)
    expected = [row(call, n, slice(0, 3), call.pool[slot].double()) for n, slot in enumerate([5, 5, 3])]
    close(result.o, torch.stack([o for o, _ in expected]))
    assert set(result.writes) == {1}
    close(result.writes[1], expected[0][1][3])


def test_decode_keeps_the_state_after_each_token_and_counts_ragged_rows():
    index = [[1, -1, 2], [3, 4, 6], [0, 7, 7]]
    call = pool_call("decode", read_index=[5, 5, -3], write_index=index, num_tokens=[3, 1, 3])
    result = oracle.decode(call)
    start = call.pool[5].double()
    o, states = row(call, 0, slice(0, 3), start)
    close(result.o[0], o)
    close(result.writes[1], states[1])
    close(result.writes[2], states[3])
    o, states = row(call, 1, slice(0, 1), start)
    close(result.o[1, :1], o)
    close(result.writes[3], states[1])
    assert set(result.writes) == {1, 2, 3}, "neither tokens past num_tokens nor padding rows write"
    assert not bool(result.o[1, 1:].any()) and not bool(result.o[2].any())


def test_decode_with_no_tokens_writes_the_state_the_row_started_from():
    call = pool_call(
        "decode", read_index=[5, 4], write_index=[0, 1], num_tokens=[0, 0], has_initial_state=[True, False]
    )
    result = oracle.decode(call)
    assert torch.equal(result.writes[0], call.pool[5].double())
    assert not bool(result.writes[1].any()) and not bool(result.o.any())


def test_decode_in_v_first_writes_v_first():
    call = pool_call("decode", read_index=[5], layout=V_FIRST)
    o, states = row(call, 0, slice(0, 3), call.pool[5].double().mT)
    result = oracle.decode(call)
    close(result.o[0], o)
    close(result.writes[5], states[3].mT)


def test_prefill_packs_sequences_and_keeps_checkpoints_that_are_reached():
    bounds = [0, 40, 40, 72, 87]
    call = pool_call(
        "prefill", B=1, T=90, S=12, read_index=[5, 3, -1, 5], write_index=[0, 1, 2, 12], cu_seqlens=bounds,
        checkpoint_every=16, checkpoint_index=[[4, -1, 6], [7, 8, 9], [10, 11, 12], [7, 8, 9]],
        has_initial_state=[True, True, True, False],
    )  # fmt: skip
    result = oracle.prefill(call)
    pool = call.pool.double()
    o, states = row(call, 0, slice(0, 40), pool[5])
    close(result.o[0, :40], o)
    close(result.writes[0], states[40])
    close(result.writes[4], states[16])  # the one after 32 is not kept, the one after 48 is not reached
    assert torch.equal(result.writes[1], pool[3]), "an empty sequence ends where it starts"
    assert not bool(result.o[0, 40:72].any()), "padding"
    o, _ = row(call, 0, slice(72, 87), torch.zeros_like(pool[5]))
    close(result.o[0, 72:87], o)
    assert not bool(result.o[0, 87:].any())
    assert set(result.writes) == {0, 1, 4}


def test_prefill_of_a_dense_batch_writes_in_place_and_a_checkpoint_at_the_very_end():
    call = pool_call("prefill", T=32, read_index=[6, 2], checkpoint_every=16, checkpoint_index=[[0, 1], [3, 4]])
    result = oracle.prefill(call)
    for n, (slot, first, last) in enumerate([(6, 0, 1), (2, 3, 4)]):
        o, states = row(call, n, slice(0, 32), call.pool[slot].double())
        close(result.o[n], o)
        close(result.writes[first], states[16])
        close(result.writes[last], states[32])
        close(result.writes[slot], states[32])
    assert set(result.writes) == {6, 2, 0, 1, 3, 4}


def test_the_oracle_leaves_the_pool_and_the_initial_state_as_they_were():
    call = pool_call("decode", read_index=[5])
    before = call.pool.clone()
    oracle.decode(call).writes[5].zero_()
    assert torch.equal(call.pool, before)
    sequence = double(sequence_call(T=0))
    before = sequence.initial_state.clone()
    oracle.sequence(sequence)[1].zero_()
    assert torch.equal(sequence.initial_state, before)


def test_the_bound_sees_one_slightly_wrong_token():
    """The control of every comparison made with the bound: one beta of 560, changed by 1e-3, lies outside of it."""
    call = sequence_call(T=70)
    exact = oracle.sequence(call)
    beta = call.beta.clone()
    beta[0, 66, 1] -= 1e-3
    off = oracle.sequence(call.with_(beta=beta))
    with pytest.raises(AssertionError, match="times its bound"):
        bound(call).check(off[0].float(), exact[0])
    with pytest.raises(AssertionError, match="times its bound"):
        bound(call).check(off[1].float(), exact[1], state=True)
    assert bound(call).check(exact[0].float(), exact[0]) > 0


def test_identical_keys_with_beta_one_and_no_decay_stay_bounded():
    call = sequence_call(T=64, H=4, state=None)
    same = torch.zeros_like(call.k)
    same[..., 0] = 1.0
    ones = torch.ones_like(call.beta)
    o, final = oracle.sequence(call.with_(k=same, q=same, beta=ones, g=torch.zeros_like(call.g)))
    close(o, call.options.scale * call.v.double())
    close(final[:, :, 0], call.v[:, -1].double())
    assert not bool(final[:, :, 1:].any())
