"""The table of the chunk kernels: a function of head sizes, head count and dtype, whose tiles cover every size."""

from __future__ import annotations

import inspect
from dataclasses import astuple, fields
from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from deltaproof.ops.common.triton_tables import Launch
from deltaproof.ops.kda.triton_tables import ChunkTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 72, 100, 127, 128, 129, 136, 160, 192, 255, 256)
SHAPES = list(product(SIZES, SIZES, DTYPES))
TRUSTED = [(64, 64), (64, 128), (128, 64), (128, 128), (256, 256), (96, 160)]


def launches(table: ChunkTable) -> dict[str, Launch]:
    return {item.name: getattr(table, item.name) for item in fields(table)}


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def test_the_table_knows_neither_the_number_of_tokens_nor_of_sequences():
    assert set(inspect.signature(ChunkTable.of).parameters) == {"K", "V", "HV", "dtype"}


def test_the_table_says_the_same_every_time():
    for K, V, dtype in SHAPES[::17]:
        assert astuple(ChunkTable.of(K, V, 4, dtype)) == astuple(ChunkTable.of(K, V, 4, dtype))


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


def trusted(K: int, V: int, dtype: torch.dtype) -> bool:
    """Return whether the rows of a shape are whole 16 bytes, and its tiles 64 columns at least."""
    return not (K * dtype.itemsize % 16 or V * dtype.itemsize % 16) and min(K, V) > 32


def test_warpgroup_matmuls_are_kept_from_shapes_they_are_wrong_for():
    """Four warps and more use them, where operands come from memory as they are; in fp64 there are none."""
    for K, V, dtype in SHAPES:
        computed = {"decay", "scores"} | ({"transform"} if dtype == torch.float32 else set())
        if not trusted(K, V, dtype):
            for name, launch in launches(ChunkTable.of(K, V, 4, dtype)).items():
                assert launch.warps <= 2 or name in computed, (K, V, dtype, name)


def test_kernels_whose_operands_are_computed_have_many_warps_for_every_shape():
    for K, V, dtype in SHAPES:
        table = ChunkTable.of(K, V, 4, dtype)
        assert table.decay.warps >= 4 and table.scores.warps >= 4, (K, V, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "V"), TRUSTED)
def test_shapes_they_are_right_for_get_them(K, V, dtype):
    table = ChunkTable.of(K, V, 4, dtype)
    assert table.states.warps >= 4 and table.outputs.warps >= 4
