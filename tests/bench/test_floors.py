"""The floors, against figures worked out by hand and against the sizes of tensors that a call really has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltaproof.backends.registry import load
from deltaproof.bench.floors import FLOORS, Work
from deltaproof.bench.gradients import leaves
from deltaproof.bench.inputs import decode_sets, output_gradients, sequence_sets
from deltaproof.bench.sets import find
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload

RULE, KDA = FLOORS["gated_delta_rule"], FLOORS["kda"]
PUBLISHED = {
    "2/8 2048": 0.003, "2/8 8192": 0.010, "2/8 32768": 0.040, "2/8 1024x8": 0.012, "4/16 8192": 0.020,
    "4/16 1024x8": 0.024, "16/32 2048": 0.013, "16/32 8192": 0.048, "16/32 32768": 0.190, "16/32 1024x8": 0.055,
    "16/64 8192": 0.081, "16/64 32768": 0.317, "16/64 1024x8": 0.094, "16/64 4096x8": 0.331,
}  # fmt: skip
"""Memory floors at 4.3 TB/s of bf16 prefill, in ms, as others publish them."""


def test_prefill_bytes_give_the_published_memory_floors():
    workloads = find("gated_delta_rule", "prefill", "peers")
    found = {w.name: RULE.prefill(w, "bfloat16").bytes / 4.3e12 * 1e3 for w in workloads}
    assert found == pytest.approx(PUBLISHED, abs=0.0011)


def bias_bytes(call):
    """Return the bytes of what the gate adds, where that is more than a number a head."""
    return call.dt_bias.nbytes if call.dt_bias is not None and call.dt_bias.dim() == 2 else 0


@pytest.mark.parametrize("operator", FLOORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_are_those_of_the_arguments_and_the_results(operator, dtype):
    workload = SequenceWorkload(heads=(2, 4), lengths=(40, 30), K=32, V=16, state_dtype="float16")
    call = sequence_sets(operator, workload, getattr(torch, dtype), "cpu", 0)[0]
    o, final = load("torch", operator).chunk(call)
    inputs = sum(x.nbytes for x in [call.q, call.k, call.v, call.g, call.beta, call.initial_state]) + bias_bytes(call)
    floors = FLOORS[operator]
    assert floors.prefill(workload, dtype).bytes == inputs + o.nbytes + final.nbytes
    assert floors.backward(workload, dtype).bytes == 2 * inputs + sum(x.nbytes for x in output_gradients(call))


def test_kda_counts_every_input_that_has_a_gradient_but_for_a_number_a_head():
    workload = SequenceWorkload(heads=(2, 2), lengths=(40,), K=32, V=16)
    call = sequence_sets("kda", workload, torch.bfloat16, "cpu", 0)[0]
    inputs = sum(x.nbytes for x in leaves(call)) - call.A_log.nbytes
    assert KDA.prefill(workload, "bfloat16").bytes == inputs + call.v.nbytes + call.initial_state.nbytes


@pytest.mark.parametrize("operator", FLOORS)
def test_decode_moves_each_rows_state_twice(operator):
    workload = DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16)
    call = decode_sets(operator, workload, torch.bfloat16, "cpu", 0)[0]
    tokens = sum(x.nbytes for x in (call.q, call.k, call.v, call.g, call.beta, call.out)) + bias_bytes(call)
    assert FLOORS[operator].decode(workload, "bfloat16").bytes == tokens + 2 * 3 * call.pool[0].nbytes


@pytest.mark.parametrize("operator", FLOORS)
def test_a_speculative_step_reads_its_drafts_and_writes_new_ones(operator):
    plain = DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16)
    workload = replace(plain, drafts=2)
    call = decode_sets(operator, workload, torch.bfloat16, "cpu", 0)[0]
    tokens = sum(x.nbytes for x in (call.q, call.k, call.v, call.g, call.beta, call.out)) + bias_bytes(call)
    drafts = sum(x[:3].nbytes for x in call.drafts)  # both halves of three slots
    found = FLOORS[operator].decode(workload, "bfloat16")
    assert found.bytes == tokens + drafts + 2 * 3 * call.pool[0].nbytes
    # two tokens, and two that are taken in without an output
    assert found.flops == 3 * 4 * (2 * 7 + 2 * 5) * 32 * 16


@pytest.mark.parametrize("floors", [RULE, KDA], ids=FLOORS)
def test_operations_of_one_chunk_as_counted_by_hand(floors):
    one = SequenceWorkload(heads=(1, 1), lengths=(64,))
    # 3 products with the state of 2·64·128·128, 4 triangles of 64·64·128, and 64³ / 3
    assert floors.prefill(one, "bfloat16").flops == 3 * 2097152 + 4 * 524288 + 87381
    # 8 products with the state and 11 triangles
    assert floors.backward(one, "bfloat16").flops == 8 * 2097152 + 11 * 524288 + 87381


@pytest.mark.parametrize("floors", [RULE, KDA], ids=FLOORS)
def test_operations_grow_with_chunks_and_heads(floors):
    one = floors.prefill(SequenceWorkload(heads=(1, 1), lengths=(64,)), "bfloat16").flops
    many = floors.prefill(SequenceWorkload(heads=(3, 3), lengths=(128, 64)), "bfloat16").flops
    assert many == pytest.approx(9 * one, rel=1e-6)


def test_value_heads_share_the_products_of_keys_unless_their_decays_stand_inside():
    def flops(floors, verb, heads):
        return getattr(floors, verb)(SequenceWorkload(heads=heads, lengths=(64,)), "bfloat16").flops

    triangle = 64 * 64 * 128
    for verb, triangles in (("prefill", 2), ("backward", 6)):
        assert 4 * flops(RULE, verb, (1, 1)) - flops(RULE, verb, (1, 4)) == pytest.approx(
            3 * triangles * triangle, abs=4
        )
        assert flops(KDA, verb, (1, 4)) == flops(KDA, verb, (4, 4))


@pytest.mark.parametrize("floors", [RULE, KDA], ids=FLOORS)
def test_a_short_last_chunk_counts_as_long_as_it_is(floors):
    def flops(*lengths):
        return floors.prefill(SequenceWorkload(heads=(1, 1), lengths=lengths), "bfloat16").flops

    assert flops(70) == pytest.approx(flops(64) + flops(6), abs=2)
    assert flops(64, 0) == flops(64)


def test_a_floor_is_the_larger_of_the_two_times():
    work = Work(bytes=2_000, flops=30_000)
    assert work.floor_ms(1e6, 1e9) == 2.0 and work.bound_by(1e6, 1e9) == "memory"
    assert work.floor_ms(1e9, 1e6) == 30.0 and work.bound_by(1e9, 1e6) == "matmul"
