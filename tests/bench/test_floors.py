"""The floors, against figures worked out by hand and against the sizes of tensors that a call really has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltaproof.bench import floors
from deltaproof.bench.inputs import decode_sets, output_gradients, sequence_sets
from deltaproof.bench.workload import DecodeWorkload, SequenceWorkload, find
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

PUBLISHED = {
    "2/8 2048": 0.003, "2/8 8192": 0.010, "2/8 32768": 0.040, "2/8 1024x8": 0.012, "4/16 8192": 0.020,
    "4/16 1024x8": 0.024, "16/32 2048": 0.013, "16/32 8192": 0.048, "16/32 32768": 0.190, "16/32 1024x8": 0.055,
    "16/64 8192": 0.081, "16/64 32768": 0.317, "16/64 1024x8": 0.094, "16/64 4096x8": 0.331,
}  # fmt: skip
"""Memory floors at 4.3 TB/s of bf16 prefill, in ms, as others publish them."""


def test_prefill_bytes_give_the_published_memory_floors():
    found = {w.name: floors.prefill(w, "bfloat16").bytes / 4.3e12 * 1e3 for w in find("prefill", "peers")}
    assert found == pytest.approx(PUBLISHED, abs=0.0011)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_are_those_of_the_arguments_and_the_results(dtype):
    workload = SequenceWorkload(heads=(2, 4), lengths=(40, 30), K=32, V=16, state_dtype="float16")
    call = sequence_sets(workload, getattr(torch, dtype), "cpu", 0)[0]
    o, final = TorchBackend().chunk(call)
    inputs = [call.q, call.k, call.v, call.g, call.beta, call.initial_state]
    assert floors.prefill(workload, dtype).bytes == sum(x.nbytes for x in [*inputs, o, final])
    assert floors.backward(workload, dtype).bytes == sum(x.nbytes for x in [*inputs, *inputs, *output_gradients(call)])


def test_decode_moves_each_rows_state_twice():
    workload = DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16)
    call = decode_sets(workload, torch.bfloat16, "cpu", 0)[0]
    tokens = sum(x.nbytes for x in (call.q, call.k, call.v, call.g, call.beta, call.out))
    assert floors.decode(workload, "bfloat16").bytes == tokens + 2 * 3 * call.pool[0].nbytes


def test_a_speculative_step_reads_its_drafts_and_writes_new_ones():
    plain = DecodeWorkload(heads=(2, 4), rows=3, K=32, V=16)
    workload = replace(plain, drafts=2)
    call = decode_sets(workload, torch.bfloat16, "cpu", 0)[0]
    tokens = sum(x.nbytes for x in (call.q, call.k, call.v, call.g, call.beta, call.out))
    drafts = sum(x[:3].nbytes for x in call.drafts)  # both halves of three slots
    assert floors.decode(workload, "bfloat16").bytes == tokens + drafts + 2 * 3 * call.pool[0].nbytes
    # two tokens, and two that are taken in without an output
    assert floors.decode(workload, "bfloat16").flops == 3 * 4 * (2 * 7 + 2 * 5) * 32 * 16


def test_operations_of_one_chunk_as_counted_by_hand():
    one = SequenceWorkload(heads=(1, 1), lengths=(64,))
    # 3 products with the state of 2·64·128·128, 4 triangles of 64·64·128, and 64³ / 3
    assert floors.prefill(one, "bfloat16").flops == 3 * 2097152 + 4 * 524288 + 87381
    # 8 products with the state and 11 triangles
    assert floors.backward(one, "bfloat16").flops == 8 * 2097152 + 11 * 524288 + 87381


def test_operations_grow_with_chunks_and_value_heads_and_share_the_key_products():
    one = floors.prefill(SequenceWorkload(heads=(1, 1), lengths=(64,)), "bfloat16").flops
    many = floors.prefill(SequenceWorkload(heads=(3, 3), lengths=(128, 64)), "bfloat16").flops
    assert many == pytest.approx(9 * one, rel=1e-6)
    shared = floors.prefill(SequenceWorkload(heads=(1, 4), lengths=(64,)), "bfloat16").flops
    assert 4 * one - shared == pytest.approx(3 * 2 * 64 * 64 * 128, abs=4)


def test_a_short_last_chunk_counts_as_long_as_it_is():
    def flops(*lengths):
        return floors.prefill(SequenceWorkload(heads=(1, 1), lengths=lengths), "bfloat16").flops

    assert flops(70) == pytest.approx(flops(64) + flops(6), abs=2)
    assert flops(64, 0) == flops(64)


def test_a_floor_is_the_larger_of_the_two_times():
    work = floors.Work(bytes=2_000, flops=30_000)
    assert work.floor_ms(1e6, 1e9) == 2.0 and work.bound_by(1e6, 1e9) == "memory"
    assert work.floor_ms(1e9, 1e6) == 30.0 and work.bound_by(1e9, 1e6) == "matmul"
