"""The interpreter of Gluon: kernels compute what they say, and what a GPU would only do sometimes is an error here."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", exc_type=ImportError)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from deltaproof.ops.common.gluon_interpreter import launch

ROW = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
TILE = gl.constexpr(gl.NVMMASharedLayout(32, 16, 2))
ACC = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16]))


@gluon.jit
def _twice(x):
    return x + x


@gluon.jit
def scaled_kernel(x, y, count, factor, SIZE: gl.constexpr):
    at = gl.program_id(0) * SIZE + gl.arange(0, SIZE, ROW)
    b = gl.load(x + at, mask=at < count, other=1.0).to(gl.float32)
    gl.store(y + at, (_twice(b) * factor).to(y.dtype.element_ty), mask=at < count)


@gluon.jit
def copied_kernel(x, y, WAITS: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.float32, [32], LINE)
    at = gl.arange(0, 32, ROW)
    async_copy.async_copy_global_to_shared(tile, x + at, mask=at < 30)
    async_copy.commit_group()
    if WAITS:
        async_copy.wait_group(0)
    gl.store(y + at, tile.load(ROW))
    async_copy.wait_group(0)


@gluon.jit
def product_kernel(x, y, WAITS: gl.constexpr, CLEARS: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [16, 16], TILE)
    row = gl.arange(0, 16, gl.SliceLayout(1, ACC))[:, None]
    at = row * 16 + gl.arange(0, 16, gl.SliceLayout(0, ACC))[None, :]
    b = gl.load(x + at)
    tile.store(b)
    found = warpgroup_mma(tile, tile.permute([1, 0]), gl.zeros([16, 16], gl.float32, ACC), is_async=True)
    if CLEARS:
        tile.store((b * 0.0).to(gl.bfloat16))
    if WAITS:
        found = warpgroup_mma_wait(0, deps=[found])
    gl.store(y + at, found + 1.0)


@gluon.jit
def far_kernel(x, y, stride):
    gl.store(y + gl.program_id(0), gl.load(x + gl.program_id(0) * stride))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_kernel_and_what_it_calls_compute_what_they_say():
    x, y = normal(50), torch.full((50,), 7.0, dtype=torch.bfloat16)
    launch(scaled_kernel, 2, (x, y, 40, 1.5), {"SIZE": 32, "num_warps": 1})
    assert torch.equal(y[:40], (x[:40] * 3).bfloat16())
    assert torch.equal(y[40:], torch.full((10,), 7.0, dtype=torch.bfloat16))


def test_an_access_outside_a_tensor_is_an_error():
    x, y = normal(50), torch.empty(50)
    with pytest.raises(IndexError, match="places 32 to 63 of 50"):
        launch(scaled_kernel, 2, (x, y, 64, 1.5), {"SIZE": 32})


def test_a_view_ends_where_its_memory_ends():
    memory = normal(64)
    launch(scaled_kernel, 1, (memory[20:30], torch.empty(32), 32, 1.0), {"SIZE": 32})
    with pytest.raises(IndexError, match="of 30"):
        launch(scaled_kernel, 1, (memory[34:40], torch.empty(32), 32, 1.0), {"SIZE": 32})


def test_a_copy_comes_when_it_is_waited_for_with_zeros_behind_its_mask():
    x, y = normal(30), torch.empty(32)
    launch(copied_kernel, 1, (x, y), {"WAITS": True})
    assert torch.equal(y, torch.cat([x, torch.zeros(2)]))
    launch(copied_kernel, 1, (x, y), {"WAITS": False})
    assert bool(y.isnan().all())


def test_a_product_is_of_what_shared_memory_holds_when_it_is_waited_for():
    x, y = normal(16, 16).bfloat16(), torch.empty(16, 16)
    launch(product_kernel, 1, (x, y), {"WAITS": True, "CLEARS": False})
    assert torch.allclose(y, x.float() @ x.float().mT + 1)
    launch(product_kernel, 1, (x, y), {"WAITS": True, "CLEARS": True})
    assert bool((y == 1).all())


def test_a_product_cannot_be_used_before():
    with pytest.raises(AssertionError, match="before it was waited for"):
        launch(product_kernel, 1, (normal(16, 16).bfloat16(), torch.empty(16, 16)), {"WAITS": False, "CLEARS": False})


def test_offsets_of_32_bits_overflow():
    x = torch.empty(2**30 + 1, dtype=torch.int8)  # of which two pages are touched
    with pytest.raises(IndexError, match="places -2147483648 to -2147483648 of 1073741825"):
        launch(far_kernel, 3, (x, torch.zeros(3), 2**30), {})
