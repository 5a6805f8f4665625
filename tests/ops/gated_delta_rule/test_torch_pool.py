"""Decode and prefill of the torch backend against the oracle: outputs, and every byte of the pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import deltaproof
from deltaproof.ops.common.allocation import Allocator
from deltaproof.ops.common.calls import DecodeCall, PrefillCall
from deltaproof.ops.gated_delta_rule import oracle
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from tests.ops.gated_delta_rule.cases import K_FIRST, V_FIRST, bound, pool_call, sequence_call

INSIDE = {"normalize_qk": True, "beta_sigmoid": True}

either_layout = pytest.mark.parametrize("layout", [K_FIRST, V_FIRST])
either_form = pytest.mark.parametrize("form", ["decode", "prefill"])


def run(call: DecodeCall | PrefillCall) -> torch.Tensor:
    return TorchBackend().decode(call) if isinstance(call, DecodeCall) else TorchBackend().prefill(call)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def check(call: DecodeCall | PrefillCall) -> torch.Tensor:
    """Run a call; hold outputs and written slots to the bound and all other slots to their bits; return o."""
    exact = oracle.decode(call) if isinstance(call, DecodeCall) else oracle.prefill(call)
    before, limit = call.pool.clone(), bound(call)
    o = run(call)
    limit.check(o, exact.o)
    for slot in range(before.shape[0]):
        if slot in exact.writes:
            limit.check(call.pool[slot][None], exact.writes[slot][None], state=True)
        else:
            assert same_bits(call.pool[slot], before[slot]), f"slot {slot} changed"
    return o


DECODE: dict[str, dict[str, Any]] = {
    "in place": {"read_index": [5, 0, 3]},
    "one token": {"read_index": [5, 0], "T": 1},
    "sixteen tokens": {"read_index": [5, 0], "T": 16},
    "padding on both sides": {"read_index": [-1, 5, 7, -(2**31), 2**31 - 1]},
    "nothing but padding": {"read_index": [-1, 7]},
    "fresh rows": {"read_index": [5, 0, -1], "has_initial_state": [False, True, False]},
    "other slots to write": {"read_index": [5, 5, 3], "write_index": [1, 0, 3]},
    "states that are not kept": {"read_index": [5, 5, 3], "write_index": [-1, 7, 2]},
    "no state kept at all": {"read_index": [5, 5], "write_index": [-1, 7]},
    "a padding row with a valid write index": {"read_index": [-1, 5], "write_index": [2, 3]},
    "the state after each token": {"read_index": [5, 5], "write_index": [[0, 1, 2], [3, -1, 4]]},
    "ragged rows": {"read_index": [5, 0, 3, 1], "num_tokens": [3, 0, 1, 2]},
    "ragged rows with each token's state": {
        "read_index": [5, 5, -1],
        "write_index": [[0, 1, 2], [3, 4, 4], [6, 6, 6]],
        "num_tokens": [3, 1, 2],
    },
    "a row of no tokens, fresh": {
        "read_index": [5, 4],
        "write_index": [1, 0],
        "num_tokens": [0, 0],
        "has_initial_state": [True, False],
    },
    "no rows": {"read_index": []},
    "all of it in the kernel": {"read_index": [5, 0], "options": INSIDE},
    "sizes of 1": {"read_index": [5, 0], "K": 1, "V": 1},
    "sizes that are no powers of two": {"read_index": [5, 0], "K": 40, "V": 96},
}

PREFILL: dict[str, dict[str, Any]] = {
    "dense, in place": {"read_index": [5, 0], "T": 37},
    "padding on both sides": {"read_index": [-1, 5, 7], "T": 20},
    "fresh rows": {"read_index": [5, 0, -1], "has_initial_state": [False, True, False], "T": 20},
    "other slots to write": {"read_index": [5, 5], "write_index": [1, 7], "T": 20},
    "a pack": {"read_index": [5, -1, 2, 0], "B": 1, "T": 60, "cu_seqlens": [0, 20, 37, 37, 55]},
    "a pack, longest last": {
        "read_index": [5, 3, 2],
        "write_index": [4, 0, 1],
        "B": 1,
        "T": 60,
        "cu_seqlens": [0, 1, 17, 60],
    },
    "checkpoints": {
        "read_index": [5, 4],
        "T": 40,
        "S": 9,
        "checkpoint_every": 16,
        "checkpoint_index": [[0, 1, 2], [3, -1, 2]],
    },
    "a checkpoint at the very end": {
        "read_index": [5, 4],
        "T": 32,
        "checkpoint_every": 16,
        "checkpoint_index": [[0, 1], [2, 3]],
    },
    "checkpoints of a pack": {
        "read_index": [5, 4, -1, 8],
        "write_index": [9, 10, 11, -1],
        "B": 1,
        "T": 130,
        "S": 12,
        "cu_seqlens": [0, 15, 63, 100, 128],
        "checkpoint_every": 16,
        "checkpoint_index": [[0, 0], [1, 2], [3, 3], [6, 12]],
    },
    "checkpoints wider than a chunk": {
        "read_index": [5],
        "T": 70,
        "checkpoint_every": 32,
        "checkpoint_index": [[0, 1, 2]],
    },
    "no checkpoints to keep": {"read_index": [5], "T": 20, "checkpoint_every": 16, "checkpoint_index": [[]]},
    "no tokens": {"read_index": [5, -1], "write_index": [0, 1], "T": 0},
    "no rows": {"read_index": [], "T": 5},
    "no sequences": {"read_index": [], "B": 1, "T": 5, "cu_seqlens": [0]},
    "all of it in the kernel": {"read_index": [5, 0], "T": 20, "options": INSIDE},
}


@either_layout
@pytest.mark.parametrize("given", DECODE.values(), ids=DECODE)
def test_decode_agrees_with_the_oracle(layout, given):
    check(pool_call("decode", 31, layout=layout, **given))


@either_layout
@pytest.mark.parametrize("given", PREFILL.values(), ids=PREFILL)
def test_prefill_agrees_with_the_oracle(layout, given):
    check(pool_call("prefill", 32, layout=layout, **given))


@either_form
@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_kept_in_the_pool_s_dtype_and_outputs_in_that_of_v(form, pool, dtype):
    call = pool_call(form, 33, read_index=[5, -1, 0], dtype=dtype, pool=pool)
    assert check(call).dtype is dtype
    assert call.pool.dtype is pool


@either_form
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_indices_may_be_32_or_64_bits_wide(form, index):
    call = pool_call(form, 34, read_index=[5, -1, 0], write_index=[1, 2, 7])
    check(call.with_(read_index=call.read_index.to(index), write_index=call.write_index.to(index)))


@either_form
@either_layout
def test_a_pool_of_any_slot_and_head_stride_is_updated_and_its_gaps_are_not_touched(form, layout):
    call = pool_call(form, 35, read_index=[5, -1, 0], layout=layout)
    S, HV, *inner = call.pool.shape
    memory = torch.full((HV, S, 2, *inner), float("nan"))
    pool = memory.transpose(0, 1)[:, :, 1]
    pool.copy_(call.pool)
    check(call.with_(pool=pool))
    run(call)
    assert same_bits(pool, call.pool), "strides change where a state lies, not what it is"
    assert bool(memory[:, :, 0].isnan().all())


@either_form
def test_slots_nobody_reads_may_hold_nan(form):
    """What a fresh row's slot, a padding row's clamped slot or an unread slot holds reaches no result."""
    call = pool_call(form, 36, read_index=[5, -1, 2, 9], has_initial_state=[True, True, False, True])
    clean = check(call.with_(pool=call.pool.clone()))
    call.pool[[0, 1, 2, 3, 4, 6]] = float("nan")
    before = call.pool.clone()
    o = run(call)
    assert torch.equal(o, clean)
    assert bool(call.pool[[2, 5]].isfinite().all())
    assert same_bits(call.pool[[0, 1, 3, 4, 6]], before[[0, 1, 3, 4, 6]]), "NaN payloads too"


@either_form
def test_tokens_of_padding_rows_may_hold_nan(form):
    call = pool_call(form, 37, read_index=[5, -1, 0])
    clean = run(call.with_(pool=call.pool.clone()))
    for x in (call.q, call.k, call.v, call.g, call.beta):
        x[1] = float("nan")
    o = check(call)
    assert torch.equal(o, clean) and not bool(o[1].any())


def test_tokens_past_num_tokens_may_hold_nan():
    call = pool_call("decode", 38, read_index=[5, 0, 3], num_tokens=[2, 0, 3])
    unused = torch.tensor([[False, False, True], [True, True, True], [False, False, False]])
    for x in (call.q, call.k, call.v, call.g, call.beta):
        x[unused] = float("nan")
    pool = call.pool.clone()
    o = run(call)
    assert bool(o.isfinite().all() and call.pool.isfinite().all())
    assert not bool(o[unused].any()) and bool(o[~unused].all())
    assert same_bits(call.pool[0], pool[0]), "no tokens: the row writes the state it started from"


def test_tokens_past_the_last_sequence_may_hold_nan_in_prefill():
    call = pool_call("prefill", 39, read_index=[5, 0], B=1, T=30, cu_seqlens=[0, 17, 21])
    for x in (call.q, call.k, call.v, call.g, call.beta):
        x[:, 21:] = float("nan")
    o = check(call)
    assert not bool(o[:, 21:].any())


@pytest.mark.parametrize("number", [-5, 99])
def test_an_unchecked_number_of_tokens_is_clamped(number):
    call = pool_call("decode", 40, read_index=[5], num_tokens=[number])
    clamped = call.with_(pool=call.pool.clone(), num_tokens=call.num_tokens.clamp(0, 3))
    assert torch.equal(run(call), run(clamped)) and same_bits(call.pool, clamped.pool)


@either_form
def test_a_pool_without_slots_makes_every_row_padding(form):
    call = pool_call(form, 41, read_index=[0, -1, 5], S=0)
    o = run(call)
    assert o.shape == (3, 3, 4, 16) and not bool(o.any())


@either_form
def test_inputs_other_than_the_pool_stay_as_they_were(form):
    call = pool_call(form, 42, read_index=[5, -1, 0], write_index=[1, 2, 7], has_initial_state=[True, False, True])
    before = {name: x.clone() for name, x in vars(call).items() if isinstance(x, torch.Tensor) and name != "pool"}
    run(call)
    assert len(before) == 8
    assert all(same_bits(getattr(call, name), x) for name, x in before.items())


@either_form
def test_no_output_depends_on_what_its_memory_held(form):
    call = pool_call(form, 43, read_index=[5, -1, 0], T=20 if form == "prefill" else 3)
    fresh = [call.with_(pool=call.pool.clone(), allocate=Allocator(init)) for init in ("zeros", "poison")]
    zeros, poison = (run(one) for one in fresh)
    assert torch.equal(zeros, poison) and same_bits(fresh[0].pool, fresh[1].pool)


def test_decode_fills_and_returns_the_output_it_is_given():
    call = pool_call("decode", 44, read_index=[5, -1, 0], num_tokens=[1, 3, 3])
    expected = run(call.with_(pool=call.pool.clone()))
    out = torch.full((3, 3, 4, 16), float("nan"))
    assert run(call.with_(out=out)) is out
    assert torch.equal(out, expected)


def test_the_gate_in_the_kernel_is_that_of_the_oracle():
    A_log, dt_bias = torch.tensor([0.5, -1.0, 0.0, 1.0]), torch.tensor([0.1, 0.2, -0.3, 2.0])
    for form in ("decode", "prefill"):
        call = pool_call(form, 45, read_index=[5, 0], options={**INSIDE, "gate_in_kernel": True, "neg_eigval": True})
        check(call.with_(A_log=A_log, dt_bias=dt_bias))


@either_layout
def test_prefill_then_decode_gives_what_one_sequence_gives(layout):
    """Clause T3 over all forms: 40 tokens prefilled, two decoded together, three one by one."""
    whole = sequence_call(46, B=2, T=45, layout=layout)
    exact, final = oracle.sequence(whole)
    pool = torch.full((4, 4, *layout.inner_shape(24, 16)), 7.0)
    pool[1:3] = whole.initial_state
    options = {"pool": pool, "read_index": torch.tensor([1, 2]), "state_layout": layout}
    parts, spans = [], [slice(0, 40), slice(40, 42), slice(42, 43), slice(43, 44), slice(44, 45)]
    for span in spans:
        tokens = {name: getattr(whole, name)[:, span] for name in ("q", "k", "v", "g", "beta")}
        form = deltaproof.gated_delta_rule_prefill if span.start == 0 else deltaproof.gated_delta_rule_decode
        parts.append(form(**tokens, **options))
    bound(whole).check(torch.cat(parts, 1), exact)
    bound(whole).check(pool[1:3], final, state=True)
    assert bool((pool[[0, 3]] == 7).all())


def test_a_rejected_draft_costs_nothing_to_undo():
    """Each token's state in a slot of its own: going on from the accepted one equals never having drafted more."""
    call = pool_call("decode", 47, read_index=[5], write_index=[[0, 1, 2]])
    run(call)
    after = call.with_(read_index=torch.tensor([0]), write_index=torch.tensor([3]))
    run(after)
    plain = pool_call("decode", 47, read_index=[5], write_index=[4], num_tokens=[1])
    run(plain)
    run(plain.with_(read_index=torch.tensor([4]), write_index=torch.tensor([3]), num_tokens=None))
    assert same_bits(call.pool[3], plain.pool[3])
