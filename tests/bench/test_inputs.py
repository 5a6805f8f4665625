"""Input sets: enough of them, within the contract, the same every time."""

from __future__ import annotations

import pytest
import torch

from deltaproof.bench.inputs import call_bytes, decode_sets, dense_call, sequence_sets
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload

PACK = SequenceWorkload(heads=(2, 4), lengths=(20, 0, 13), K=16, V=8)
POOL = DecodeWorkload(heads=(2, 4), rows=5, K=16, V=8, slot_padding=24)


def test_sets_differ_exceed_twice_the_cache_and_share_their_bounds():
    first, *more = sets = sequence_sets(PACK, torch.bfloat16, "cpu", 100_000)
    assert sum(map(call_bytes, sets)) > 200_000
    assert first.cu_seqlens.tolist() == [0, 20, 20, 33]
    for call in more:
        assert call.cu_seqlens is first.cu_seqlens
        assert not torch.equal(call.q, first.q) and not torch.equal(call.initial_state, first.initial_state)


def test_sequences_are_drawn_within_the_contract_and_the_same_again():
    call, again = (sequence_sets(PACK, torch.bfloat16, "cpu", 0)[0] for _ in range(2))
    assert call.q.shape == (1, 33, 2, 16) and call.v.shape == (1, 33, 4, 8)
    assert call.initial_state.shape == (3, 4, 16, 8) and call.output_final_state
    assert call.g.dtype == torch.float32 and call.g.max() <= 0 and call.g.min() >= -0.1
    assert torch.allclose(call.k.float().norm(dim=-1), torch.ones(1, 33, 2), atol=1e-2)
    assert torch.equal(call.v, again.v) and torch.equal(call.g, again.g)


def test_a_single_sequence_is_no_pack():
    (call, *_) = sequence_sets(SequenceWorkload(heads=(1, 1), lengths=(9,), K=8, V=8), torch.float32, "cpu", 0)
    assert call.cu_seqlens is None and call.sequences == 1


def test_a_slot_is_named_once_over_all_sets_and_slots_lie_apart():
    sets = decode_sets(POOL, torch.bfloat16, "cpu", 50_000)
    assert sum(map(call_bytes, sets)) > 100_000
    pool = sets[0].pool
    assert all(call.pool is pool for call in sets)
    named = torch.cat([call.read_index for call in sets])
    assert named.unique().numel() == named.numel() == 5 * len(sets) < pool.shape[0]
    assert not torch.equal(named.sort().values, named)
    assert pool.shape[1:] == (4, 8, 16) and pool.dtype == torch.float32
    assert pool.stride() == (4 * 8 * 16 + 24, 8 * 16, 16, 1)
    options = sets[0].options
    assert options.normalize_qk and options.gate_in_kernel and options.beta_sigmoid


@pytest.mark.parametrize("layout", ["v_first", "k_first"])
def test_the_dense_call_has_the_states_of_the_rows(layout):
    workload = DecodeWorkload(heads=(2, 4), rows=5, K=16, V=8, layout=layout)
    call = decode_sets(workload, torch.bfloat16, "cpu", 0)[1]
    dense = dense_call(call)
    assert dense.initial_state.shape == (5, 4, *((8, 16) if layout == "v_first" else (16, 8)))
    assert torch.equal(dense.initial_state[3], call.pool[int(call.read_index[3])])
    assert dense.initial_state.is_contiguous() and dense.output_final_state and dense.cu_seqlens is None
