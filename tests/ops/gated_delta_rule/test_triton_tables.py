"""The launch tables: a function of head sizes, head counts, dtype and layout, whose tiles cover every legal size."""

from __future__ import annotations

import inspect
from dataclasses import astuple, fields
from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.gated_delta_rule import triton_tables
from deltaproof.ops.gated_delta_rule.triton_tables import (
    ChunkTable,
    Launch,
    ahead,
    recurrence,
    recurrence_backward,
    speculation,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 72, 100, 127, 128, 129, 136, 160, 192, 255, 256)
SHAPES = list(product(SIZES, SIZES, DTYPES))
TRUSTED = [(64, 64), (64, 128), (128, 64), (128, 128), (256, 256), (96, 160)]


def launches(table: ChunkTable) -> dict[str, Launch]:
    return {item.name: getattr(table, item.name) for item in fields(table)}


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        (ChunkTable.of, {"K", "V", "HV", "dtype"}),
        (recurrence, {"K", "V", "layout", "pool"}),
        (ahead, {"K", "layout", "pool"}),
        (speculation, {"K", "V", "layout"}),
        (recurrence_backward, {"K", "V"}),
    ],
)
def test_a_table_knows_neither_the_number_of_tokens_nor_of_sequences(table, keys):
    assert set(inspect.signature(table).parameters) == keys


def test_a_table_says_the_same_every_time():
    for K, V, dtype in SHAPES[::17]:
        assert astuple(ChunkTable.of(K, V, 4, dtype)) == astuple(ChunkTable.of(K, V, 4, dtype))
        assert recurrence(K, V, StateLayout.V_FIRST, dtype) == recurrence(K, V, StateLayout.V_FIRST, dtype)


@pytest.mark.parametrize("HV", [1, 16, 17, 64])
def test_tiles_of_the_chunk_kernels_are_what_matmuls_take(HV):
    for K, V, dtype in SHAPES:
        for name, launch in launches(ChunkTable.of(K, V, HV, dtype)).items():
            where = (K, V, dtype, name, launch)
            assert power_of_two(launch.BK) and power_of_two(launch.BV), where
            assert 16 <= launch.BK <= 256 and 16 <= launch.BV <= 256, where
            assert launch.warps in (1, 2, 4, 8) and launch.stages >= 1 and launch.unroll >= 1, where


def test_the_kernels_that_carry_a_state_hold_all_of_its_keys():
    for K, V, dtype in SHAPES:
        table = ChunkTable.of(K, V, 4, dtype)
        assert table.states.BK >= K and table.reverse.BK >= K, (K, V, dtype)
        assert recurrence_backward(K, V).BK >= K
        for layout in StateLayout:
            assert recurrence(K, V, layout, dtype).BK >= K


def test_the_recurrent_kernels_hold_states_that_fit_into_registers():
    for K, V, dtype in SHAPES:
        for launch in (*(recurrence(K, V, layout, dtype) for layout in StateLayout), recurrence_backward(K, V)):
            assert power_of_two(launch.BK) and power_of_two(launch.BV), (K, V, launch)
            assert launch.BV < 2 * V and launch.BK * launch.BV <= 8192, (K, V, launch)


def test_warpgroup_matmuls_are_kept_from_shapes_they_are_wrong_for():
    """Four warps and more use them: whole rows of 16 bytes, and tiles of 64 columns at least."""
    for K, V, dtype in SHAPES:
        ragged = K * dtype.itemsize % 16 or V * dtype.itemsize % 16
        if ragged or min(K, V) <= 32:
            for name, launch in launches(ChunkTable.of(K, V, 4, dtype)).items():
                # the products of these two are fp64, for which there are none
                if dtype != torch.float32 or name not in ("prepare", "transform"):
                    assert launch.warps <= 2, (K, V, dtype, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "V"), TRUSTED)
def test_shapes_they_are_right_for_get_them(K, V, dtype):
    table = ChunkTable.of(K, V, 4, dtype)
    assert table.states.warps >= 4 and table.outputs.warps >= 4


def test_a_launch_names_its_constants_as_kernels_do():
    launch = Launch(64, 32, 4, stages=3, unroll=2)
    assert launch.tiles == {"BK": 64, "BV": 32, "UNROLL": 2}
    assert launch.options == {"num_warps": 4, "num_stages": 3}


@pytest.mark.parametrize(
    ("K", "layout", "pool", "interpreted", "rows"),
    [
        (128, StateLayout.V_FIRST, torch.float32, False, 8),
        (64, StateLayout.V_FIRST, torch.float32, False, 0),
        (128, StateLayout.K_FIRST, torch.float32, False, 0),
        (128, StateLayout.V_FIRST, torch.bfloat16, False, 0),
        (128, StateLayout.V_FIRST, torch.float32, True, 0),
    ],
)
def test_a_slot_is_asked_for_early_where_that_was_faster(monkeypatch, K, layout, pool, interpreted, rows):
    monkeypatch.setattr(triton_tables, "INTERPRETED", interpreted)
    assert ahead(K, layout, pool) == rows
