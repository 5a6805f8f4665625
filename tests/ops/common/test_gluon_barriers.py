"""The interpreter of Gluon: descriptors, copies by TMA and barriers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", exc_type=ImportError)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from deltaproof.ops.common.gluon_interpreter import launch

TILE = gl.constexpr(gl.BlockedLayout([1, 8], [8, 4], [1, 1], [1, 0]))
SHARED = gl.constexpr(gl.NVMMASharedLayout(64, 16, 2))


@gluon.jit
def copied_kernel(
    x, y, row, column, EXPECTED: gl.constexpr, ARRIVALS: gl.constexpr, COPIES: gl.constexpr, WAITS: gl.constexpr,
):  # fmt: skip
    """Copy tiles one after another through one barrier, wait WAITS times, store, and wait for what is left."""
    tile = gl.allocate_shared_memory(x.dtype, [8, 32], SHARED)
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=1)
    at = gl.arange(0, 8, gl.SliceLayout(1, TILE))[:, None] * 32 + gl.arange(0, 32, gl.SliceLayout(0, TILE))[None, :]
    for _ in gl.static_range(ARRIVALS):
        mbarrier.expect(barrier, EXPECTED)
    for i in gl.static_range(COPIES):
        tma.async_copy_global_to_shared(x, [row + i, column], barrier, tile)
    for _ in gl.static_range(WAITS):
        mbarrier.wait(barrier, 0)
    gl.store(y + at, tile.load(TILE))
    mbarrier.wait(barrier, 0)


@gluon.jit
def walked_kernel(x, y, count, AHEAD: gl.constexpr, PHASE: gl.constexpr, LAST: gl.constexpr):
    """Copy tiles to two stages, AHEAD before they are stored; wait for all but LAST."""
    tiles = gl.allocate_shared_memory(x.dtype, [2, 8, 32], SHARED)
    barriers = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    at = gl.arange(0, 8, gl.SliceLayout(1, TILE))[:, None] * 32 + gl.arange(0, 32, gl.SliceLayout(0, TILE))[None, :]
    for stage in gl.static_range(2):
        mbarrier.init(barriers.index(stage), count=1)
    for c in range(count + AHEAD):
        mbarrier.expect(barriers.index(c % 2), 512, pred=c < count)
        tma.async_copy_global_to_shared(x, [c * 8, 0], barriers.index(c % 2), tiles.index(c % 2), pred=c < count)
        done = c - AHEAD
        if (done >= 0) & (done < count - LAST):
            mbarrier.wait(barriers.index(done % 2), (done // 2) & PHASE)
            gl.store(y + done * 256 + at, tiles.index(done % 2).load(TILE))


@gluon.jit
def asked_kernel(x, MADE: gl.constexpr, WIDE: gl.constexpr):
    """Copy a block to a tile [8, 32], of two bytes or of four, through a barrier that was made or not."""
    tile = gl.allocate_shared_memory(gl.float32 if WIDE else gl.bfloat16, [8, 32], SHARED)
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    if MADE:
        mbarrier.init(barrier, count=1)
    tma.async_copy_global_to_shared(x, [0, 0], barrier, tile)


@gluon.jit
def stored_kernel(y, row, column, LEFT: gl.constexpr, CLEARS: gl.constexpr, LAST: gl.constexpr):
    """Store two tiles, of 1 to 256 and of -1 to -256; wait for all but LEFT, clear or not; wait for all but LAST."""
    at = gl.arange(0, 8, gl.SliceLayout(1, TILE))[:, None] * 32 + gl.arange(0, 32, gl.SliceLayout(0, TILE))[None, :]
    tiles = gl.allocate_shared_memory(y.dtype, [2, 8, 32], SHARED)
    for i in gl.static_range(2):
        tiles.index(i).store(((at + 1) * (1 - 2 * i)).to(gl.bfloat16))
        tma.async_copy_shared_to_global(y, [row + 8 * i, column], tiles.index(i))
    tma.store_wait(LEFT)
    if CLEARS:
        for i in gl.static_range(2):
            tiles.index(i).store(gl.full([8, 32], 0, gl.bfloat16, TILE))
    tma.store_wait(LAST)


def described(x: torch.Tensor, block: tuple[int, int] = (8, 32)) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, list(block), SHARED.value)


def rows(count: int, width: int = 40) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)).bfloat16()


def copied(x: torch.Tensor, row: int = 0, column: int = 0, **constants: int) -> torch.Tensor:
    y = torch.empty(8, 32, dtype=x.dtype)
    usual = {"EXPECTED": 512, "ARRIVALS": 1, "COPIES": 1, "WAITS": 1}
    launch(copied_kernel, 1, (described(x), y, row, column), usual | constants)
    return y


def walked(count: int, **constants: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = rows(8 * count, 32)
    y = torch.zeros_like(x)
    launch(walked_kernel, 1, (described(x), y, count), {"AHEAD": 1, "PHASE": 1, "LAST": 0} | constants)
    return x, y


def test_a_block_comes_when_its_barrier_is_waited_for():
    x = rows(20)
    assert torch.equal(copied(x, 3, 8), x[3:11, 8:])
    assert bool(copied(x, 3, 8, WAITS=0).isnan().all())


def test_a_second_wait_for_a_phase_that_is_complete_returns():
    x = rows(20)
    assert torch.equal(copied(x, WAITS=3), x[:8, :32])


@pytest.mark.parametrize(
    ("row", "column"), [(15, 0), (20, 0), (-3, 0), (-8, 0), (-(2**24), 0), (2**30, 0), (2, 20), (2, -5), (17, 39)]
)
def test_what_lies_outside_the_tensor_is_zeros_and_what_lies_inside_is_what_is_there(row, column):
    # the descriptor's tensor ends before its memory does
    memory = rows(30)
    x = memory[:20]
    x[18] = float("nan")
    wide = torch.zeros(20 + 32, 40 + 64, dtype=x.dtype)
    wide[16:36, 32:72] = x
    expected = torch.zeros(8, 32, dtype=x.dtype)
    if -8 < row < 20:
        expected = wide[16 + row : 24 + row, 32 + column : 64 + column]
    assert torch.equal(copied(x, row, column).nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"EXPECTED": 256}, "expects 256 bytes, and 512 were asked for"),
        ({"EXPECTED": 1024}, "expects 1024 bytes, and 512 were asked for"),
        ({"ARRIVALS": 0}, "waits for 1 arrivals that nobody makes"),
        ({"ARRIVALS": 2, "EXPECTED": 256}, "has all its arrivals, and was not waited for"),
        ({"COPIES": 2, "EXPECTED": 1024}, "a tile was asked for twice"),
        ({"COPIES": 0}, "expects 512 bytes, and 0 were asked for"),
    ],
)
def test_what_would_hang_or_race_is_an_error(changes, message):
    with pytest.raises(AssertionError, match=message):
        copied(rows(20), **changes)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_phases_of_a_stage_take_turns(count):
    x, y = walked(count)
    assert torch.equal(x, y)


def test_a_stage_cannot_be_filled_before_it_was_waited_for():
    with pytest.raises(AssertionError, match="has all its arrivals, and was not waited for"):
        walked(3, AHEAD=2)


def test_who_waits_for_the_phase_before_gets_nothing():
    x, y = rows(32, 32), torch.zeros(32, 32, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="was never waited for"):
        launch(walked_kernel, 1, (described(x), y, 4), {"AHEAD": 1, "PHASE": 0, "LAST": 0})
    assert torch.equal(y[:16], x[:16])
    assert bool(y[16:].isnan().all())


def test_a_copy_that_nobody_waits_for_is_an_error():
    with pytest.raises(AssertionError, match="was never waited for"):
        walked(3, LAST=1)


def test_a_barrier_has_to_be_made():
    with pytest.raises(AssertionError, match="before it was made"):
        launch(asked_kernel, 1, (described(rows(20)),), {"MADE": False, "WIDE": False})


@pytest.mark.parametrize(
    ("block", "wide", "message"),
    [((16, 32), False, r"\[16, 32\]"), ((8, 16), False, r"\[8, 16\]"), ((8, 32), True, r"torch\.bfloat16")],
)
def test_a_tile_has_the_shape_and_the_dtype_of_the_block(block, wide, message):
    with pytest.raises(AssertionError, match=message):
        launch(asked_kernel, 1, (described(rows(20), block),), {"MADE": True, "WIDE": wide})


def stored(row: int = 0, column: int = 0, **constants: Any) -> torch.Tensor:
    memory = torch.full((30, 40), 300.0, dtype=torch.bfloat16)
    launch(stored_kernel, 1, (described(memory[:20]), row, column), {"LEFT": 0, "CLEARS": False, "LAST": 0} | constants)
    return memory


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 8), (-3, 0), (9, 20), (-9, -5), (30, 0), (-(2**24), 0)])
def test_a_tile_is_stored_where_the_tensor_is_and_nowhere_else(row, column):
    expected = torch.full((30, 40), 300.0, dtype=torch.bfloat16)
    tile = torch.arange(1, 257).view(8, 32)
    for i, values in enumerate(torch.cat([tile, -tile])):
        for j, value in enumerate(values):
            if 0 <= row + i < 20 and 0 <= column + j < 40:
                expected[row + i, column + j] = value
    assert torch.equal(stored(row, column), expected)


def test_a_store_takes_what_the_tile_holds_when_it_is_waited_for():
    assert stored(CLEARS=True)[::8, 0].tolist() == [1, -1, 300, 300]
    assert stored(CLEARS=True, LEFT=1)[::8, 0].tolist() == [1, 0, 300, 300]
    assert stored(CLEARS=True, LEFT=2)[::8, 0].tolist() == [0, 0, 300, 300]


def test_a_store_that_nobody_waits_for_is_an_error():
    with pytest.raises(AssertionError, match="never waited for"):
        stored(LEFT=1, LAST=1)


def test_coordinates_have_32_bits():
    with pytest.raises(AssertionError, match=r"a coordinate in torch\.int64"):
        copied(rows(20), 2**31)


def test_each_program_has_barriers_of_its_own():
    x, y = rows(20), torch.empty(8, 32, dtype=torch.bfloat16)
    constants: dict[str, Any] = {"EXPECTED": 512, "ARRIVALS": 1, "COPIES": 1, "WAITS": 1}
    launch(copied_kernel, 50, (described(x), y, 0, 0), constants)
    assert torch.equal(y, x[:8, :32])
