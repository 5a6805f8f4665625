"""The one allocation function (clause M1): a declared content, which callers can force on what kernels must fill."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.common.allocation import INITS, Allocator, forced_init, poison_

CPU = torch.device("cpu")


def new(allocate: Allocator, dtype: torch.dtype = torch.float32, **init: str) -> torch.Tensor:
    return allocate((2, 3), dtype=dtype, device=CPU, **init)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_buffer_has_the_shape_dtype_and_device_asked_for(init, dtype):
    x = Allocator(init)([2, 3], dtype=dtype, device=torch.device("meta"))
    assert (x.shape, x.dtype, x.device.type, x.is_contiguous()) == ((2, 3), dtype, "meta", True)


def test_an_empty_buffer_holds_what_the_caller_asks_for():
    assert bool(new(Allocator("poison")).isnan().all())
    assert not bool(new(Allocator("zeros")).any())


def test_a_buffer_declared_zeros_is_zero_whatever_is_forced():
    with forced_init("poison"):
        assert not bool(new(Allocator("poison"), init="zeros").any())


def test_a_buffer_declared_poison_is_poison():
    assert bool(new(Allocator(), init="poison").isnan().all())


def test_forcing_reaches_every_empty_buffer_while_it_is_open_and_none_after():
    with forced_init("poison"):
        assert bool(new(Allocator()).isnan().all())
        with forced_init("zeros"):
            assert not bool(new(Allocator()).any())
        assert bool(new(Allocator()).isnan().all())
        with pytest.raises(RuntimeError, match="inside"), forced_init("zeros"):
            raise RuntimeError("inside")
        assert bool(new(Allocator()).isnan().all()), "an error closes the context too"
    with forced_init(None):
        assert new(Allocator()).shape == (2, 3)


def test_a_call_s_own_init_goes_before_the_surrounding_one():
    with forced_init("poison"):
        assert not bool(new(Allocator("zeros")).any())
    with forced_init("zeros"):
        assert bool(new(Allocator("poison")).isnan().all())


def test_a_function_may_fill_the_buffers():
    with forced_init(lambda x: x.fill_(7)):
        assert bool((new(Allocator()) == 7).all())
        assert not bool(new(Allocator(), init="zeros").any())
        assert bool(new(Allocator("poison")).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_poison_is_nan_for_numbers_with_a_point(dtype):
    x = torch.zeros(3, dtype=dtype)
    assert poison_(x) is x
    assert bool(x.isnan().all())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_poison_is_the_largest_value_for_integers(dtype):
    assert poison_(torch.zeros(3, dtype=dtype)).tolist() == [torch.iinfo(dtype).max] * 3


def test_poison_is_true_for_booleans():
    assert poison_(torch.zeros(3, dtype=torch.bool)).tolist() == [True] * 3
