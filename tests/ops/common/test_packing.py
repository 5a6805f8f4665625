"""Packing: tokens of a batch or of a pack, cut into rows that advance together, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from deltaproof.ops.common.packing import Packing

NAN = float("nan")


def numbered(B: int, T: int) -> torch.Tensor:
    """Return [B, T, 1] with 1 and up in reading order, so that a padding zero is no token."""
    return torch.arange(1.0, B * T + 1).view(B, T, 1)


def rows(packing: Packing, x: torch.Tensor) -> list[list[float]]:
    return packing.gather(x)[..., 0].tolist()


def test_a_dense_batch_is_cut_step_by_step_all_sequences_side_by_side():
    packing = Packing.of((2, 5), None, 2)
    assert packing.active == (2, 2, 2)
    assert rows(packing, numbered(2, 5)) == [[1, 2], [6, 7], [3, 4], [8, 9], [5, 0], [10, 0]]


def test_a_pack_is_cut_longest_first_and_sequences_leave_as_they_end():
    packing = Packing.of((1, 9), torch.tensor([0, 1, 6, 6, 8]), 2)
    assert packing.active == (3, 1, 1)
    assert rows(packing, numbered(1, 9)) == [[2, 3], [7, 8], [1, 0], [4, 5], [6, 0]]
    assert packing.sort(torch.tensor([10, 11, 12, 13])).tolist() == [11, 13, 10, 12]


@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 3, 7]], ids=["dense", "packed"])
@pytest.mark.parametrize("inner", [(), (3,), (3, 4)])
def test_gather_keeps_what_a_token_carries(cu_seqlens, inner):
    bounds = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    x = torch.randn(1, 7, *inner, generator=torch.Generator().manual_seed(0))
    packing = Packing.of((1, 7), bounds, 4)
    assert packing.gather(x).shape == (sum(packing.active), 4, *inner)
    assert torch.equal(packing.scatter(packing.gather(x), torch.full_like(x, NAN)), x)


@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    tail=st.integers(0, 3),
    width=st.sampled_from([1, 2, 4, 16]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_pack_comes_back_as_it_went(lengths, tail, width, dtype):
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    T = int(bounds[-1]) + tail
    x = numbered(1, T)
    x[:, T - tail :] = NAN
    packing = Packing.of((1, T), bounds.to(dtype), width)

    cut = packing.gather(x)
    assert cut.shape == (sum(packing.active), width, 1)
    assert sorted(cut[cut != 0].tolist()) == list(range(1, T - tail + 1)), "every token once, none of the tail's"
    back = packing.scatter(cut, torch.full_like(x, NAN))
    assert torch.equal(back[:, : T - tail], x[:, : T - tail])
    assert not bool(back[:, T - tail :].any()), "tokens in no sequence are zero"

    assert list(packing.active) == sorted(packing.active, reverse=True)
    assert [sum(n > step * width for n in lengths) for step in range(len(packing.active))] == list(packing.active)
    names = torch.arange(len(lengths))
    assert [lengths[n] for n in packing.sort(names).tolist()] == sorted(lengths, reverse=True)
    assert torch.equal(packing.unsort(packing.sort(names)), names)


@given(
    B=st.integers(0, 3), T=st.integers(0, 9), width=st.sampled_from([1, 2, 4, 16])
)  # fmt: skip
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_dense_batch_comes_back_as_it_went(B, T, width):
    x = numbered(B, T)
    packing = Packing.of((B, T), None, width)
    cut = packing.gather(x)
    assert cut.shape == (-(-T // width) * B, width, 1)
    assert torch.equal(packing.scatter(cut, torch.full_like(x, NAN)), x)
    assert torch.equal(packing.unsort(packing.sort(x)), x)


def test_scatter_casts_to_the_output_s_dtype():
    for bounds in (None, torch.tensor([0, 5])):
        packing = Packing.of((1, 5), bounds, 2)
        out = packing.scatter(packing.gather(numbered(1, 5)), torch.empty(1, 5, 1, dtype=torch.bfloat16))
        assert out.dtype is torch.bfloat16 and out.flatten().tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cu_seqlens", [None, [0, 2, 2, 4]], ids=["dense", "packed"])
def test_the_gradient_of_a_token_is_that_of_its_place(cu_seqlens):
    bounds = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    x = numbered(1, 5).requires_grad_()
    cut = Packing.of((1, 5), bounds, 4).gather(x)
    (cut * cut).sum().backward()
    covered = 5 if cu_seqlens is None else 4
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0 * (t + 1) if t < covered else 0.0 for t in range(5)]


def test_live_leaves_out_the_rows_behind_the_last_sequence():
    x, gate = torch.zeros(1, 5, 1, 2), torch.zeros(1, 5, 1)
    call = SequenceCall(x, x, x, gate, gate, DeltaRuleOptions(scale=1.0))
    assert Packing.of((1, 5), None, 2).live(call) is call
    live = Packing.of((1, 5), torch.tensor([0, 2, 3]), 2).live(call)
    assert [y.shape[1] for y in (live.q, live.k, live.v, live.g, live.beta)] == [3] * 5
