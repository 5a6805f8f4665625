"""The launch tables that operators share: functions of head sizes, layout and dtype, whose tiles cover every size."""

from __future__ import annotations

import inspect
from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common import triton_tables
from deltaproof.ops.common.triton_tables import Launch, ahead, recurrence, recurrence_backward, speculation

POOLS = (None, torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 72, 100, 127, 128, 129, 136, 160, 192, 255, 256)
SHAPES = list(product(SIZES, SIZES))


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def launches(K: int, V: int) -> list[Launch]:
    """Return every configuration of the kernels that go token by token."""
    forward = [recurrence(K, V, layout, pool) for layout in StateLayout for pool in POOLS]
    return [*forward, *(speculation(K, V, layout) for layout in StateLayout), recurrence_backward(K, V)]


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        (recurrence, {"K", "V", "layout", "pool"}),
        (ahead, {"K", "layout", "pool"}),
        (speculation, {"K", "V", "layout"}),
        (recurrence_backward, {"K", "V"}),
    ],
)
def test_a_table_knows_neither_the_number_of_tokens_nor_of_sequences(table, keys):
    assert set(inspect.signature(table).parameters) == keys


def test_a_table_says_the_same_every_time():
    for K, V in SHAPES[::17]:
        assert launches(K, V) == launches(K, V)


def test_the_kernels_hold_all_keys_of_a_state():
    for K, V in SHAPES:
        assert all(launch.BK >= K for launch in launches(K, V)), (K, V)


def test_the_kernels_hold_states_that_fit_into_registers():
    for K, V in SHAPES:
        for launch in launches(K, V):
            assert power_of_two(launch.BK) and power_of_two(launch.BV), (K, V, launch)
            assert launch.BV < 2 * V and launch.BK * launch.BV <= 8192, (K, V, launch)
            assert launch.warps in (1, 2, 4, 8) and launch.stages >= 1, (K, V, launch)


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
