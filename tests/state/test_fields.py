"""Fields: typed records, checked when they are made and when a kernel is bound."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state import ConvField, ConvLayout, DraftField, RecurrentField, StateLayout
from deltaproof.state.fields import check_same


def test_a_layout_is_the_order_of_the_inner_shape() -> None:
    assert RecurrentField("s", 2, 5, 3).shape == (2, 5, 3)
    assert RecurrentField("s", 2, 5, 3, layout=StateLayout.V_FIRST).shape == (2, 3, 5)
    assert ConvField("c", 7, 4).shape == (7, 3)
    assert ConvField("c", 7, 4, layout=ConvLayout.TIME_FIRST).shape == (3, 7)
    assert RecurrentField("s", 2, 5, 3, layout="v_first").layout is StateLayout.V_FIRST  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "argument", "said"),
    [
        (lambda: RecurrentField("two words", 1, 1, 1), "name", "'two words'"),
        (lambda: RecurrentField("s", 0, 1, 1), "heads", "0"),
        (lambda: RecurrentField("s", True, 1, 1), "heads", "True"),
        (lambda: RecurrentField("s", 1, 257, 1), "K", "257"),
        (lambda: RecurrentField("s", 1, 1, 2.0), "V", "2.0"),
        (lambda: RecurrentField("s", 1, 1, 1, torch.float64), "dtype", "torch.float64"),
        (lambda: RecurrentField("s", 1, 1, 1, layout="rows"), "layout", "'rows'"),
        (lambda: RecurrentField("s", 1, 1, 1, layout=ConvLayout.TIME_FIRST), "layout", "TIME_FIRST"),
        (lambda: ConvField("c", 0, 4), "channels", "0"),
        (lambda: ConvField("c", 8, 1), "width", "1"),
        (lambda: ConvField("c", 8, 4, torch.int8), "dtype", "torch.int8"),
    ],
)
def test_a_wrong_attribute_is_named(make, argument: str, said: str) -> None:
    with pytest.raises(ContractError) as caught:
        make()
    assert caught.value.argument == argument
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"layout": StateLayout.K_FIRST}, "layout"),
        ({"dtype": torch.bfloat16}, "dtype"),
        ({"heads": 4}, "heads"),
        ({"K": 32}, "K"),
    ],
)
def test_a_kernel_that_takes_something_else_is_refused_by_the_attribute(change: dict, argument: str) -> None:
    held = RecurrentField("s", 2, 16, 16, layout=StateLayout.V_FIRST)
    check_same(held, dataclasses.replace(held))
    with pytest.raises(ContractError) as caught:
        check_same(held, dataclasses.replace(held, **change))
    assert caught.value.argument == argument
    assert "'s'" in str(caught.value)


def test_drafts_hold_a_gate_a_head_or_a_gate_a_channel() -> None:
    shapes = {}
    for per_channel in (False, True):
        field = DraftField("d", tokens=3, heads=2, value_heads=4, K=5, V=6, gate_per_channel=per_channel)
        shapes[per_channel] = {part.name: part.shape for part in field.parts}
    assert shapes[False]["d.g"] == (2, 3, 4) and shapes[True]["d.g"] == (2, 3, 4, 5)
    assert all(shapes[False][name] == shapes[True][name] for name in ("d.k", "d.v", "d.beta"))


def test_a_field_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ContractError, match="expected a RecurrentField"):
        check_same(RecurrentField("s", 1, 1, 1), ConvField("s", 1, 2))
