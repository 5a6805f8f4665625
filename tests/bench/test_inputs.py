"""Input sets: enough of them, within the contract, the same every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltaproof.bench.gates import GATES
from deltaproof.bench.inputs import call_bytes, decode_sets, dense_call, sequence_sets
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload
from deltaproof.ops.common.pool_checks import check_call
from deltaproof.ops.kda.gate import log_gate
from deltaproof.ops.registry import operators

RULE = "gated_delta_rule"
PACK = SequenceWorkload(heads=(2, 4), lengths=(20, 0, 13), K=16, V=8)
POOL = DecodeWorkload(heads=(2, 4), rows=5, K=16, V=8, slot_padding=24)


def test_sets_differ_exceed_twice_the_cache_and_share_their_bounds():
    first, *more = sets = sequence_sets(RULE, PACK, torch.bfloat16, "cpu", 100_000)
    assert sum(map(call_bytes, sets)) > 200_000
    assert first.cu_seqlens.tolist() == [0, 20, 20, 33]
    for call in more:
        assert call.cu_seqlens is first.cu_seqlens
        assert not torch.equal(call.q, first.q) and not torch.equal(call.initial_state, first.initial_state)


def test_sequences_are_drawn_within_the_contract_and_the_same_again():
    call, again = (sequence_sets(RULE, PACK, torch.bfloat16, "cpu", 0)[0] for _ in range(2))
    assert call.q.shape == (1, 33, 2, 16) and call.v.shape == (1, 33, 4, 8)
    assert call.initial_state.shape == (3, 4, 16, 8) and call.output_final_state
    assert call.g.dtype == torch.float32 and call.g.max() <= 0 and call.g.min() >= -0.1
    assert torch.allclose(call.k.float().norm(dim=-1), torch.ones(1, 33, 2), atol=1e-2)
    assert torch.equal(call.v, again.v) and torch.equal(call.g, again.g)


def test_a_single_sequence_is_no_pack():
    workload = SequenceWorkload(heads=(1, 1), lengths=(9,), K=8, V=8)
    (call, *_) = sequence_sets(RULE, workload, torch.float32, "cpu", 0)
    assert call.cu_seqlens is None and call.sequences == 1


def test_a_set_is_a_layer_of_one_step():
    first, *more = sets = decode_sets(RULE, POOL, torch.bfloat16, "cpu", 50_000)
    assert more and sum(map(call_bytes, sets)) > 100_000
    named, pool = first.read_index, first.pool
    assert named.unique().numel() == named.numel() == 5 < pool.shape[0]
    assert not torch.equal(named.sort().values, named)
    for call in more:
        assert call.read_index is named
        for own in ("q", "pool", "A_log", "dt_bias", "out"):
            assert getattr(call, own).data_ptr() != getattr(first, own).data_ptr(), own
        assert not torch.equal(call.pool, pool) and not torch.equal(call.dt_bias, first.dt_bias)


def test_the_slots_of_a_pool_lie_apart_and_the_kernel_does_what_comes_before_the_rule():
    call = decode_sets(RULE, POOL, torch.bfloat16, "cpu", 0)[0]
    assert call.pool.shape[1:] == (4, 8, 16) and call.pool.dtype == torch.float32
    assert call.pool.stride() == (4 * 8 * 16 + 24, 8 * 16, 16, 1)
    assert call.options.normalize_qk and call.options.gate_in_kernel and call.options.beta_sigmoid


def test_the_layers_of_a_speculative_step_share_its_counts_and_not_its_drafts():
    first, second, *_ = decode_sets(RULE, replace(POOL, drafts=3), torch.bfloat16, "cpu", 0)
    assert first.accepted is second.accepted and first.accepted.tolist() == [3] * first.pool.shape[0]
    assert first.draft_half is second.draft_half
    assert first.drafts.k.shape == (first.pool.shape[0], 2, 3, 2, 16)
    assert not torch.equal(first.drafts.v, second.drafts.v)


@pytest.mark.parametrize("layout", ["v_first", "k_first"])
def test_the_dense_call_has_the_states_of_the_rows(layout):
    workload = DecodeWorkload(heads=(2, 4), rows=5, K=16, V=8, layout=layout)
    call = decode_sets(RULE, workload, torch.bfloat16, "cpu", 0)[1]
    dense = dense_call(call)
    assert dense.initial_state.shape == (5, 4, *((8, 16) if layout == "v_first" else (16, 8)))
    assert torch.equal(dense.initial_state[3], call.pool[int(call.read_index[3])])
    assert dense.initial_state.is_contiguous() and dense.output_final_state and dense.cu_seqlens is None


@pytest.mark.parametrize("form", ["chunk", "decode"])
def test_kda_is_called_as_models_call_it_with_raw_tokens_and_a_gate_a_channel(form):
    if form == "chunk":
        call, (B, T) = sequence_sets("kda", PACK, torch.bfloat16, "cpu", 0)[0], (1, 33)
    else:
        call, (B, T) = decode_sets("kda", POOL, torch.bfloat16, "cpu", 0)[0], (5, 1)
    options = call.options
    assert options.normalize_qk and options.gate_in_kernel and options.beta_sigmoid and options.lower_bound == -5
    assert options.safe_gate == (form == "chunk"), "decode has no such promise to make"
    assert call.g.shape == (B, T, 4, 16) and call.g.dtype == torch.bfloat16
    assert call.A_log.shape == (4,) and call.dt_bias.shape == (4, 16) and call.dt_bias.dtype == torch.float32
    check_call(operators()["kda"], call, True)


def test_some_channels_of_kda_forget_at_once_and_some_remember_long():
    workload = SequenceWorkload(heads=(4, 4), lengths=(64,), K=64, V=8)
    gates = log_gate(sequence_sets("kda", workload, torch.bfloat16, "cpu", 0)[0], torch.float32)
    assert -5 <= gates.min() < -1 and gates.max() > -0.001
    # what a token wrote is there 64 tokens later, in part
    assert 0.05 < gates.sum(1).exp().mean() < 0.9


def test_drafts_of_kda_hold_a_gate_a_channel():
    call = decode_sets("kda", replace(POOL, drafts=3), torch.bfloat16, "cpu", 0)[0]
    assert call.drafts.g.shape == (call.pool.shape[0], 2, 3, 4, 16)
    assert call.drafts.beta.shape == (call.pool.shape[0], 2, 3, 4)


def test_kdas_gates_count_among_what_a_call_reads():
    workload = replace(POOL, rows=1)
    call = decode_sets("kda", workload, torch.bfloat16, "cpu", 0)[0]
    tokens = 2 * (2 * 2 * 16 + 4 * 8 + 4 * 16 + 4)
    assert call_bytes(call) == tokens + call.pool[0].nbytes


@pytest.mark.parametrize("operator", GATES)
def test_pools_exceed_twice_the_cache_together(operator):
    sets = decode_sets(operator, POOL, torch.bfloat16, "cpu", 50_000)
    assert sum(map(call_bytes, sets)) > 100_000 > sum(map(call_bytes, sets[2:]))
