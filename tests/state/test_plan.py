"""Steps: what the device buffers hold, that they stay where they are, and what is refused before anything changes."""

from __future__ import annotations

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state import Snapshot, StepPlan


def lists(plan: StepPlan) -> dict[str, list]:
    names = ("read_index", "write_index", "num_tokens", "has_initial_state", "cu_seqlens")
    return {name: getattr(plan, name).tolist() for name in names}


def test_a_decode_step_is_padded_with_rows_that_read_and_write_nothing(make) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[8, 4])
    a, b = pool.acquire(), pool.acquire()
    plan.decode([a, None, b])
    assert (plan.rows, plan.size) == (3, 4)
    assert lists(plan) == {
        "read_index": [a.slot, -1, b.slot, -1],
        "write_index": [a.slot, -1, b.slot, -1],
        "num_tokens": [1, 0, 1, 0],
        "has_initial_state": [False, False, False, False],
        "cu_seqlens": [0, 1, 1, 2, 2],
    }
    plan.decode([b, a], [0, 16])
    assert plan.has_initial_state.tolist() == [True, True, False, False]
    assert plan.num_tokens.tolist() == [0, 16, 0, 0]
    assert (a.position, b.position) == (17, 1)


def test_the_arguments_are_those_of_the_operators(make) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[2])
    lease = pool.acquire()
    decode = plan.decode([lease])
    assert set(decode) == {"read_index", "write_index", "num_tokens", "has_initial_state"}
    extend = plan.extend([lease], [100])
    assert set(extend) == {"read_index", "write_index", "cu_seqlens", "has_initial_state"}
    assert extend["cu_seqlens"].tolist() == [0, 100, 100]
    assert extend["has_initial_state"].dtype == torch.bool and extend["read_index"].dtype == torch.int32


def test_buffers_stay_where_they_are_and_padding_forgets_the_step_before(make) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[1, 4])
    leases = [pool.acquire() for _ in range(4)]
    plan.decode(leases)
    places = {name: getattr(plan, name).data_ptr() for name in lists(plan)}
    plan.decode(leases[:1])
    assert plan.size == 1
    plan.decode(leases[:2])
    assert {name: getattr(plan, name).data_ptr() for name in places} == places
    assert plan.read_index.tolist() == [leases[0].slot, leases[1].slot, -1, -1]
    plan.decode([])
    assert (plan.rows, plan.size) == (0, 1) and plan.read_index.tolist() == [-1]


def test_a_hit_reads_one_slot_and_writes_another_once(make) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[4])
    lease = pool.acquire()
    plan.extend([lease], [64])
    kept = lease.snapshot()
    hit = pool.acquire(start=kept)
    plan.decode([lease, hit])
    assert plan.read_index.tolist() == [kept.slot, kept.slot, -1, -1]
    assert plan.write_index.tolist() == [lease.slot, hit.slot, -1, -1]
    plan.decode([lease, hit])
    assert plan.read_index.tolist() == plan.write_index.tolist() == [lease.slot, hit.slot, -1, -1]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda plan, a, b: plan.decode([a, b, a]), "leases: expected one row a lease"),
        (lambda plan, a, b: plan.decode([a, b, None, None, None]), "at most 4 rows, the largest size, got 5"),
        (lambda plan, a, b: plan.decode([a], [17]), "num_tokens: expected ints, 0 to 16, got 17"),
        (lambda plan, a, b: plan.decode([a], [-1]), "num_tokens: expected ints, 0 to 16, got -1"),
        (lambda plan, a, b: plan.decode([a], [True]), "num_tokens: expected ints, 0 to 16, got True"),
        (
            lambda plan, a, b: plan.decode([a, b], [1]),
            "num_tokens: expected a number for each of 2 rows, got 1 numbers",
        ),
        (lambda plan, a, b: plan.extend([a], [-1]), "num_tokens: expected ints, 0 or more, got -1"),
        (lambda plan, a, b: plan.decode([3]), "leases: expected leases of this plan's pool, or None, got 3"),
    ],
)
def test_a_bad_step_is_refused_and_nothing_changes(make, call, said: str) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[4])
    a, b = pool.acquire("a"), pool.acquire("b")
    plan.decode([a])
    before, told = lists(plan), [(x.position, x.has_initial_state) for x in (a, b)]
    with pytest.raises(ContractError, match=said):
        call(plan, a, b)
    assert lists(plan) == before and [(x.position, x.has_initial_state) for x in (a, b)] == told


def test_a_lease_of_another_pool_is_refused(make) -> None:
    with pytest.raises(ContractError, match="leases of this plan's pool"):
        StepPlan(make(), sizes=[1]).decode([make().acquire()])


def test_a_reader_of_a_slot_that_another_row_writes_is_refused(make) -> None:
    pool = make()
    plan = StepPlan(pool, sizes=[4])
    a, b = pool.acquire("a"), pool.acquire("b")
    plan.decode([a, b])
    b._source = Snapshot(pool, a.slot, a.generation, 1)
    with pytest.raises(ContractError, match="no row that reads a slot another row writes"):
        plan.decode([a, b])


@pytest.mark.parametrize("sizes", [[], [0], [2, 2], [True], [1.5]])
def test_sizes_that_are_none_are_refused(make, sizes) -> None:
    with pytest.raises(ContractError, match="sizes: expected different positive numbers of rows"):
        StepPlan(make(), sizes=sizes)
