"""Where slots lie: what is no slot lands on a dead row, and blocks start on 16 bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state import ConvField, RecurrentField
from deltaproof.state.memory import ALIGNMENT, FieldMemory

CPU = torch.device("cpu")
FIELDS = [
    RecurrentField("s", 3, 5, 7, torch.bfloat16),
    RecurrentField("s", 2, 8, 4, torch.float32),
    RecurrentField("s", 1, 1, 1, torch.float16),
    ConvField("c", 5, 4, torch.bfloat16),
    ConvField("c", 3, 2, torch.float32, layout="time_first"),  # type: ignore[arg-type]
]


def address(x: torch.Tensor) -> int:
    return x.data_ptr()


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_every_wrong_index_lands_on_a_dead_row(field) -> None:
    memory = FieldMemory(field, layers=3, capacity=4, device=CPU)
    dead = {address(memory.all_rows[row]) for row in memory.dead_rows()}
    for layer in range(3):
        rows = memory.layer(layer)
        assert rows.shape == (6, *field.shape)
        step = rows.stride(0) * rows.element_size()
        for index in (-1, 0, 5):
            assert address(rows) + index * step in dead, f"index {index} as an address in layer {layer}"
        assert address(rows[-1]) in dead
        for slot in range(1, 5):
            assert address(rows[slot]) not in dead
            assert address(rows[slot]) == address(memory.slot(slot)[layer])


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_blocks_start_on_16_bytes_and_do_not_overlap(field) -> None:
    memory = FieldMemory(field, layers=2, capacity=3, device=CPU)
    blocks = memory.all_rows if len(field.shape) == 2 else memory.all_rows.flatten(0, 1)
    starts = sorted(address(block) for block in blocks)
    size = field.block * field.dtype.itemsize
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert all(second - first >= size for first, second in pairwise(starts))
    inner = blocks[0]
    assert inner.is_contiguous()


def test_bytes_count_gaps_and_dead_rows() -> None:
    memory = FieldMemory(RecurrentField("s", 3, 5, 7, torch.bfloat16), layers=2, capacity=4, device=CPU)
    assert memory.slot_bytes == 2 * 3 * 80, "35 elements of 2 bytes take 80"
    assert memory.nbytes == (1 + 2 * 6) * 3 * 80


def test_what_was_poisoned_and_written_since_is_found_gaps_too() -> None:
    memory = FieldMemory(RecurrentField("s", 3, 5, 7, torch.bfloat16), layers=1, capacity=2, device=CPU)
    rows = list(range(memory.all_rows.shape[0]))
    memory.poison(rows)
    assert memory.disturbed(rows) == []
    memory.all_rows[2, 1, 0, 0] = 1.0
    memory._flat[4, -1] = 0.0
    assert memory.disturbed(rows) == [2, 4]
    assert memory.disturbed([0, 1, 3]) == [] == memory.disturbed([])


@pytest.mark.parametrize("layer", [-1, 2, True, 0.0])
def test_a_layer_that_is_none_is_refused(layer) -> None:
    with pytest.raises(ContractError, match="layer: expected an int from 0 to 1"):
        FieldMemory(FIELDS[0], layers=2, capacity=1, device=CPU).layer(layer)
