"""The convolution's public functions: what they compute with a pool, and what they refuse before anything changes."""

from __future__ import annotations

import pytest
import torch

from deltaproof import causal_conv1d_prefill, causal_conv1d_update
from deltaproof.contracts.errors import ContractError
from deltaproof.ops.causal_conv1d import checks
from deltaproof.state import ConvField, StatePool, StepPlan
from tests.operators.test_errors import raise_sites

C, W, N, T = 6, 4, 3, 2


def plain(form: str) -> dict:
    """Return a legal call."""
    torch.manual_seed(0)
    call = {
        "x": torch.randn(N, T, C), "weight": torch.randn(C, W), "bias": torch.randn(C),
        "pool": torch.randn(8, 24)[:, : C * (W - 1)].unflatten(1, (C, W - 1)),
        "read_index": torch.tensor([1, 2, 3]), "write_index": torch.tensor([1, 2, 4]),
        "has_initial_state": torch.tensor([True, False, True]),
    }  # fmt: skip
    if form == "decode":
        call |= {"num_tokens": torch.tensor([1, 2, 0]), "out": torch.empty(N, T, C)}
    else:
        call |= {"x": torch.randn(1, 9, C), "cu_seqlens": torch.tensor([0, 4, 4, 8])}
    return call


FUNCTIONS = {"decode": causal_conv1d_update, "prefill": causal_conv1d_prefill}
BOTH = ("decode", "prefill")
ROWS = [
    (BOTH, {"activation": "relu"}, "activation", "'relu'"),
    (BOTH, {"conv_layout": "rows"}, "conv_layout", "'rows'"),
    (BOTH, {"validate": "all"}, "validate", "'all'"),
    (BOTH, {"out_init": "ones"}, "out_init", "'ones'"),
    (BOTH, {"backend": "cudnn"}, "backend", "'cudnn'"),
    (BOTH, {"x": torch.zeros(4, 5)}, "x", "shape [4, 5]"),
    (BOTH, {"x": torch.zeros(3, 2, 6, dtype=torch.float64)}, "x", "float64"),
    (BOTH, {"x": torch.zeros(3, 2, 0)}, "x", "C = 0"),
    (BOTH, {"weight": torch.zeros(5, 4)}, "weight", "shape [5, 4]"),
    (BOTH, {"weight": torch.zeros(6, 1)}, "weight", "W = 1"),
    (BOTH, {"weight": torch.zeros(6, 17)}, "weight", "W = 17"),
    (BOTH, {"weight": torch.zeros(6, 4, requires_grad=True)}, "weight", "requires_grad=True"),
    (BOTH, {"bias": torch.zeros(5)}, "bias", "shape [5]"),
    (BOTH, {"pool": torch.zeros(8, 3, 6)}, "pool", "the other layout"),
    (BOTH, {"pool": torch.zeros(8, 6, 4)}, "pool", "shape [8, 6, 4]"),
    (BOTH, {"pool": torch.zeros(8, 6, 3).to(torch.int32)}, "pool", "int32"),
    (BOTH, {"pool": torch.zeros(8, 6, 4)[..., :3]}, "pool", "strides (24, 4, 1)"),
    (BOTH, {"pool": torch.zeros(1, 6, 3).expand(8, 6, 3)}, "pool", "a slot stride of 0 elements"),
    (BOTH, {"pool": torch.zeros(8 * 20 + 1)[1:].view(8, 20)[:, :18].unflatten(1, (6, 3))}, "pool", "address % 16 = 4"),
    (BOTH, {"pool": torch.zeros(8, 6, 3)}, "pool", "72 bytes"),
    (BOTH, {"pool": torch.zeros(8, 20, requires_grad=True)[:, :18].unflatten(1, (6, 3))}, "pool", "requires_grad=True"),
    (BOTH, {"read_index": torch.tensor([1, 2])}, "read_index", "shape [2]"),
    (BOTH, {"write_index": torch.tensor([[1, 2, 3]])}, "write_index", "shape [1, 3]"),
    (BOTH, {"write_index": torch.tensor([1, 2, 1])}, "write_index", "slot 1 written 2 times"),
    (BOTH, {"write_index": torch.tensor([3, 2, 5])}, "read_index", "slot 3 read by row 2 and written by row 0"),
    (BOTH, {"has_initial_state": torch.ones(3)}, "has_initial_state", "float32"),
    (("decode",), {"x": torch.zeros(3, 17, 6)}, "x", "T = 17"),
    (("decode",), {"num_tokens": torch.tensor([1, 3, 0])}, "num_tokens", "3"),
    (("decode",), {"num_tokens": torch.tensor([1.0, 2, 0])}, "num_tokens", "float32"),
    (("decode",), {"out": torch.zeros(3, 2, 5)}, "out", "shape [3, 2, 5]"),
    (("decode",), {"out": torch.zeros(3, 6, 2).mT}, "out", "strides (12, 1, 2)"),
    (("prefill",), {"cu_seqlens": torch.tensor([0, 4, 3, 8])}, "cu_seqlens", "4 then 3"),
    (("prefill",), {"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "cu_seqlens", "an empty tensor"),
    (("prefill",), {"x": torch.zeros(2, 9, 6)}, "x", "B = 2"),
]  # fmt: skip
CASES = [(form, *row[1:]) for row in ROWS for form in row[0]]


@pytest.mark.parametrize(("form", "change", "argument", "got"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_argument_is_refused_by_name_and_the_pool_stays(form: str, change: dict, argument: str, got: str) -> None:
    FUNCTIONS[form](**plain(form))
    call = plain(form) | change
    before = call["pool"].detach().clone()
    with pytest.raises(ContractError) as caught:
        FUNCTIONS[form](**call)
    assert caught.value.argument == argument
    assert got in str(caught.value)
    assert torch.equal(call["pool"], before)


def test_out_must_not_be_an_input() -> None:
    call = plain("decode")
    with pytest.raises(ContractError, match="out: expected memory of its own, got memory of x"):
        causal_conv1d_update(**call | {"out": call["x"]})


def test_the_table_reaches_every_place_that_refuses() -> None:
    sites = raise_sites(checks)
    reached = {sites[str(checks.__file__), line] for line in _lines()}
    assert sorted(set(sites.values()) - reached) == []


def _lines() -> list[int]:
    lines = []
    extra = plain("decode")
    for form, change, *_ in [*CASES, ("decode", {"x": extra["x"], "out": extra["x"]})]:
        with pytest.raises(ContractError) as caught:
            FUNCTIONS[form](**plain(form) | change)
        if str(caught.traceback[-1].path) == checks.__file__:
            lines.append(caught.traceback[-1].lineno + 1)
    return lines


def test_one_plan_serves_the_convolution_too() -> None:
    field = ConvField("conv", channels=C, width=W, dtype=torch.float32)
    pool = StatePool([field], layers=2, capacity=3)
    windows, plan = pool.bind(field, 1), StepPlan(pool, sizes=[4])
    a, b = pool.acquire("a"), pool.acquire("b")
    torch.manual_seed(0)
    x, weight = torch.randn(1, 12, C), torch.randn(C, W)
    y = causal_conv1d_prefill(x, weight, pool=windows, **plan.extend([a, b], [7, 5]))
    token = torch.randn(4, 1, C)
    after = causal_conv1d_update(token, weight, pool=windows, **plan.decode([b, None, a]))
    for lease, row, span in ((a, 2, slice(0, 7)), (b, 0, slice(7, 12))):
        alone = StatePool([field], layers=1, capacity=1)
        one, step = alone.bind(field, 0), StepPlan(alone, sizes=[1])
        own = alone.acquire()
        line = torch.cat([x[:, span], token[row : row + 1]], 1)
        whole = causal_conv1d_prefill(line, weight, pool=one, **step.extend([own], [line.shape[1]]))
        assert torch.equal(whole[0, :-1], y[0, span]) and torch.equal(whole[0, -1:], after[row])
        assert torch.equal(one[own.slot], windows[lease.slot])
    assert after[1].eq(0).all() and after[3].eq(0).all()
