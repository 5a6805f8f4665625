"""The named sets of workloads: every verb of every operator that has a bench has a default for a GPU and a CPU."""

from __future__ import annotations

import itertools

import pytest

from deltaproof.bench.gates import GATES
from deltaproof.bench.models import MODELS, model_heads
from deltaproof.bench.published import published
from deltaproof.bench.sets import SETS, VERBS, default_set, find, sets_of
from deltaproof.bench.workload import SequenceWorkload
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.registry import operators


@pytest.mark.parametrize(("operator", "verb"), list(itertools.product(SETS, VERBS)))
def test_every_set_has_names_of_its_own_and_every_verb_a_smoke_one(operator, verb):
    for workloads in sets_of(operator, verb).values():
        names = [workload.name for workload in workloads]
        assert len(set(names)) == len(names) > 0
    assert default_set(operator, verb, "cpu") == "smoke" in sets_of(operator, verb)
    assert default_set(operator, verb, "cuda") == ("pool" if verb == "decode" else "peers")


@pytest.mark.parametrize("operator", SETS)
def test_the_pool_set_spans_few_rows_and_many(operator):
    products = [workload.rows * workload.heads[1] for workload in find(operator, "decode", "pool")]
    assert products == sorted(products) and products[0] == 32 and products[-1] == 16384
    assert {workload.layout for workload in find(operator, "decode", "pool")} == {StateLayout.V_FIRST}


def test_the_gated_delta_rule_has_its_pool_in_the_other_layout_too():
    found = find("gated_delta_rule", "decode", "pool_k_first")
    assert {workload.layout for workload in found} == {StateLayout.K_FIRST}


@pytest.mark.parametrize("verb", ["prefill", "backward"])
def test_kda_is_timed_with_as_many_query_heads_as_value_heads_and_long_sequences_and_a_pack_of_each(verb):
    found = find("kda", verb, "peers")
    assert {(w.K, w.V, w.state_dtype, w.layout) for w in found} == {(128, 128, "float32", StateLayout.V_FIRST)}
    heads = {w.heads for w in found}
    assert heads == {(8, 8), (32, 32), (64, 64)}
    for own in heads:
        lengths = {w.lengths for w in found if w.heads == own}
        assert {(8192,), (32768,), (1024,) * 8} <= lengths


@pytest.mark.parametrize("operator", SETS)
def test_a_smoke_set_has_a_pack_with_shared_query_heads_and_both_layouts_somewhere(operator):
    smoke = [workload for verb in VERBS for workload in find(operator, verb, "smoke")]
    assert any(isinstance(w, SequenceWorkload) and len(w.lengths) > 1 and w.heads[0] < w.heads[1] for w in smoke)
    assert {w.layout for w in smoke} == set(StateLayout)


@pytest.mark.parametrize("operator", SETS)
def test_an_operator_with_sets_has_a_gate_of_the_shape_it_declares(operator):
    assert GATES[operator].per_channel == operators()[operator].gate_per_channel


@pytest.mark.parametrize("operator", ["causal_conv1d", "softmax"])
def test_an_operator_without_a_bench_is_told_those_that_have_one(operator):
    with pytest.raises(ContractError, match=f"--operator: .*gated_delta_rule, kda, got '{operator}'"):
        find(operator, "prefill", "smoke")


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(
        ContractError, match="peers, grid, published, models, ragged, smoke or a JSON file, got 'giant'"
    ):
        find("gated_delta_rule", "prefill", "giant")
    with pytest.raises(ContractError, match="pool, models, smoke or a JSON file, got 'speculative'"):
        find("kda", "decode", "speculative")


def test_a_file_takes_the_place_of_a_name(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"workloads": [{"heads": [2, 4], "lengths": [3, 0, 5]}]}')
    assert find("kda", "backward", str(path)) == (SequenceWorkload(heads=(2, 4), lengths=(3, 0, 5)),)


def test_the_published_shapes_are_171_prefills_and_32_backwards_each_once_with_its_times():
    for verb, count, kernels in (
        ("prefill", 171, {"flash_qla", "flashinfer", "fla"}),
        ("backward", 32, {"flash_qla", "fla"}),
    ):
        shapes = getattr(published(), verb)
        assert len(shapes) == count == len(set(find("gated_delta_rule", verb, "published")))
        assert all(set(shape.ms) == kernels and min(shape.ms.values()) > 0 for shape in shapes)


def test_a_published_shape_writes_one_sequence_the_other_way_round_than_many():
    forward = {(shape.heads, shape.lengths): shape.ms["flash_qla"] for shape in published().prefill}
    # "1x32768" and "1024x8" of the heads 2/8, and "4096x8" of 16/64
    assert forward[(2, 8), (32768,)] == 0.32
    assert forward[(2, 8), (1024,) * 8] == 0.061
    assert forward[(16, 64), (4096,) * 8] == 1.217
    assert {sum(lengths) for _, lengths in forward} == {2048, 4096, 8192, 16384, 32768}


def test_published_backwards_are_splits_of_8192_or_32768_tokens_into_1_2_4_and_8():
    found = [(sum(shape.lengths), len(shape.lengths)) for shape in published().backward]
    assert sorted(found) == sorted(list(itertools.product((8192, 32768), (1, 2, 4, 8))) * 4)


def test_the_grid_is_of_the_published_shapes_and_holds_every_shape_of_the_peers():
    grid = set(find("gated_delta_rule", "prefill", "grid"))
    assert len(grid) == 45 and grid <= set(find("gated_delta_rule", "prefill", "published"))
    assert set(find("gated_delta_rule", "prefill", "peers")) <= grid


@pytest.mark.parametrize("operator", SETS)
def test_the_models_have_the_heads_of_one_gpu_of_one_to_eight(operator):
    heads = model_heads(operator)
    assert len(set(heads)) == len(heads) == 4 * len(MODELS[operator])
    assert ((2, 8) in heads) if operator == "gated_delta_rule" else heads == [(32, 32), (16, 16), (8, 8), (4, 4)]
    for verb in VERBS:
        assert {workload.heads for workload in find(operator, verb, "models")} == set(heads)


@pytest.mark.parametrize("operator", SETS)
def test_ragged_packs_have_long_and_short_and_empty_sequences(operator):
    lengths = [length for workload in find(operator, "prefill", "ragged") for length in workload.lengths]
    assert min(lengths) == 0 and max(lengths) > 20000 and any(length % 64 for length in lengths)
