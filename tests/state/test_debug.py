"""The debug modes see what the host cannot: stray writes, and a graph replayed with a step that is over."""

from __future__ import annotations

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state import StepPlan
from tests.state.conftest import CONV, GDN


def test_stray_writes_are_named_by_field_row_and_layer(make) -> None:
    pool = make(debug=["poison"])
    assert pool.disturbed() == []
    lease = pool.acquire()
    pool.bind(GDN, 1)[lease.slot].fill_(1.0)
    assert pool.disturbed() == [], "a held slot may be written"
    pool.bind(GDN, 0)[-1, 0, 0, 0] = 0.0
    pool.bind(GDN, 1)[0, 1, 2, 4] = 0.0
    pool.bind(CONV, 1)[lease.slot + 1].zero_()
    pool.memory("conv").all_rows[0].zero_()
    assert pool.disturbed() == [
        "gdn: row 5 of layer 0",
        "gdn: row 0 of layer 1",
        "conv: the row before layer 0",
        f"conv: row {lease.slot + 1} of layer 1",
    ]


def test_a_freed_slot_is_poisoned_again(make) -> None:
    pool = make(debug="poison")
    lease = pool.acquire()
    rows = pool.bind(GDN, 0)[lease.slot]
    rows.fill_(1.0)
    lease.release()
    assert rows.isnan().all() and pool.disturbed() == []


def test_without_poison_there_is_nothing_to_ask(make) -> None:
    with pytest.raises(ContractError, match="debug: expected a pool made with debug='poison'"):
        make().disturbed()


def test_a_replay_of_a_step_whose_leases_are_gone_is_noted(make) -> None:
    pool = make(debug=["generation"])
    plan = StepPlan(pool, sizes=[2, 4])
    a, b = pool.acquire(), pool.acquire()
    plan.decode([a, b])
    plan.guard()
    kept = a.snapshot()
    plan.decode([a, b])
    plan.guard()
    assert not plan.stale(), "reading a snapshot and writing another slot is right"
    b.release()
    plan.guard()
    assert plan.stale()
    again = StepPlan(pool, sizes=[2])
    slot = b.slot
    fresh = [pool.acquire(), pool.acquire()]
    assert slot in {lease.slot for lease in fresh}
    again.decode(fresh)
    again.guard()
    assert not again.stale()
    kept.release()


def test_the_guard_costs_nothing_without_the_mode(make, monkeypatch) -> None:
    plan = StepPlan(make(), sizes=[2])
    monkeypatch.setattr(torch.Tensor, "any", lambda *_: pytest.fail("compared"))
    plan.guard()
    assert not plan.stale()
