"""The emulated memory: what a load and a store reach, and where the emulation ends."""

from __future__ import annotations

import pytest
import torch

from deltaproof.verify.mutants.model.pointer import Pointer, block


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.arange(10.0)


def offsets(*places: int) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64)


def test_a_load_counts_from_the_tensors_first_element(memory: torch.Tensor) -> None:
    assert Pointer(memory[4:7]).load(offsets(0, 2)).tolist() == [4.0, 6.0]


def test_a_load_outside_the_tensor_reaches_the_allocation_around_it(memory: torch.Tensor) -> None:
    assert Pointer(memory[4:7]).load(offsets(-1, 3)).tolist() == [3.0, 7.0]


def test_a_load_outside_the_allocation_takes_its_nearest_element(memory: torch.Tensor) -> None:
    assert Pointer(memory[4:7]).load(offsets(-100, 100)).tolist() == [0.0, 9.0]


def test_a_masked_lane_gives_the_other_value_even_over_nan() -> None:
    x = torch.tensor([1.0, float("nan")])
    assert Pointer(x).load(offsets(0, 1), torch.tensor([True, False]), 5.0).tolist() == [1.0, 5.0]


def test_half_precision_is_loaded_as_float32() -> None:
    assert Pointer(torch.ones(3, dtype=torch.bfloat16)).load(offsets(0)).dtype == torch.float32


def test_a_load_from_no_memory_gives_zeros() -> None:
    assert Pointer(torch.empty(0)).load(offsets(0, 1)).tolist() == [0.0, 0.0]


def test_a_store_outside_the_tensor_lands_in_the_allocation_around_it(memory: torch.Tensor) -> None:
    Pointer(memory[4:7]).store(offsets(-2, 1), torch.tensor([-1.0, -2.0]))
    assert memory.tolist() == [0, 1, -1, 3, 4, -2, 6, 7, 8, 9]


def test_a_masked_store_and_one_outside_the_allocation_change_nothing(memory: torch.Tensor) -> None:
    before = memory.clone()
    Pointer(memory).store(offsets(3, 10, -1), torch.full((3,), -1.0), torch.tensor([False, True, True]))
    assert torch.equal(memory, before)


def test_a_store_rounds_to_the_memorys_dtype() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16)
    Pointer(x).store(offsets(0), torch.tensor([1.005859375]))
    assert x.item() == 1.0078125


@pytest.mark.parametrize(("size", "extent"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (256, 256)])
def test_a_block_is_the_next_power_of_two_from_16_on(size: int, extent: int) -> None:
    assert block(size) == extent
