"""Leases and snapshots: who holds a slot, what it starts from, and what is refused."""

from __future__ import annotations

import gc

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.state import (
    ConvField,
    LeaseState,
    PoolExhausted,
    RecurrentField,
    StateLayout,
    StatePool,
    StepPlan,
)
from tests.state.conftest import CONV, GDN


class Event:
    """Work on a stream that a test finishes by hand."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def step(pool: StatePool, *leases, tokens: int = 1) -> None:
    """Plan a step, as if its kernels ran."""
    StepPlan(pool, sizes=[8]).decode(list(leases), [tokens] * len(leases))


def test_slots_are_1_to_capacity_and_then_the_pool_is_exhausted(make) -> None:
    pool = make(capacity=3)
    assert pool.available == 3
    leases = [pool.acquire(f"request {i}") for i in range(3)]
    assert sorted(lease.slot for lease in leases) == [1, 2, 3]
    with pytest.raises(PoolExhausted, match="expected a free slot among 3, got 3 held, 0 waiting for an event"):
        pool.acquire()
    leases[1].release()
    again = pool.acquire()
    assert (again.slot, again.generation) == (2, 2)


def test_a_new_lease_starts_from_zero_whatever_the_slot_held(make) -> None:
    pool = make(capacity=1)
    first = pool.acquire()
    step(pool, first)
    assert first.has_initial_state and first.position == 1
    first.release()
    second = pool.acquire()
    assert (second.has_initial_state, second.read_slot, second.position) == (False, 1, 0)


def test_a_released_lease_cannot_be_used_or_released_again(make) -> None:
    pool = make()
    lease = pool.acquire("a")
    lease.release()
    assert lease.state is LeaseState.RELEASED
    for use in (lease.release, lease.snapshot, lambda: lease.rows("gdn"), lambda: lease.fork("b"), lease.check):
        with pytest.raises(ContractError, match=r"lease: expected a lease that is not released, got Lease\('a'"):
            use()
    with pytest.raises(ContractError, match="not released"):
        step(pool, lease)


def test_a_stale_lease_is_named_by_its_generation(make) -> None:
    pool = make(capacity=1)
    old = pool.acquire("a")
    old.release()
    pool.acquire("b")
    old.state = LeaseState.LIVE
    with pytest.raises(ContractError, match="expected generation 2 of slot 1: this one is stale"):
        step(pool, old)
    with pytest.raises(ContractError, match="stale"):
        old.release()


def test_a_slot_is_free_again_when_its_last_use_has_run(make) -> None:
    pool, event = make(capacity=1), Event()
    pool.acquire().release(event)
    assert pool.available == 0
    with pytest.raises(PoolExhausted, match="0 held, 1 waiting for an event"):
        pool.acquire()
    event.done = True
    assert pool.acquire().slot == 1


def test_a_state_from_outside_is_pending_until_it_is_filled(make) -> None:
    pool = make()
    lease = pool.acquire("a", outside=True)
    assert (lease.state, lease.position) == (LeaseState.PENDING, None)
    for use in (lease.snapshot, lambda: lease.fork("b"), lambda: step(pool, lease)):
        with pytest.raises(ContractError, match="expected a lease whose state has been filled"):
            use()
    values = {field.name: torch.randn(2, *field.shape).to(field.dtype) for field in pool.fields}
    layouts = {"gdn": StateLayout.V_FIRST, "conv": CONV.layout}
    lease.fill(values, position=7, layouts=layouts)
    assert (lease.state, lease.position, lease.has_initial_state) == (LeaseState.LIVE, 7, True)
    for name, value in values.items():
        assert torch.equal(lease.rows(name), value)
        assert torch.equal(pool.bind(pool.memory(name).field, 1)[lease.slot], value[1])
    with pytest.raises(ContractError, match="a PENDING lease"):
        lease.fill(values, position=7, layouts=layouts)
    with pytest.raises(ContractError, match="a PENDING lease"):
        lease.filled(position=7)


def test_a_transfer_of_the_callers_own_says_when_it_is_done(make) -> None:
    pool = make()
    lease = pool.acquire(outside=True)
    lease.rows("gdn").fill_(2.0)
    with pytest.raises(ContractError, match="position: expected a number of tokens, 0 or more, got -1"):
        lease.filled(position=-1)
    lease.filled(position=3)
    assert lease.rows("gdn").eq(2.0).all() and lease.position == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, ls: v.pop("conv"), "values: expected the fields gdn, conv, got gdn"),
        (lambda v, ls: ls.update(gdn=StateLayout.K_FIRST), r"layouts\['gdn'\]: expected v_first"),
        (lambda v, ls: ls.pop("gdn"), r"layouts\['gdn'\]: expected v_first, got None"),
        (lambda v, ls: v.update(gdn=v["gdn"].mT), r"values\['gdn'\]: expected torch.float32 \[2, 2, 3, 5\]"),
        (lambda v, ls: v.update(conv=v["conv"].float()), r"values\['conv'\]: expected torch.bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_slot_stays_as_it_was(make, change, said) -> None:
    pool = make()
    lease = pool.acquire(outside=True)
    values = {field.name: torch.ones(2, *field.shape, dtype=field.dtype) for field in pool.fields}
    layouts = {"gdn": StateLayout.V_FIRST, "conv": CONV.layout}
    change(values, layouts)
    with pytest.raises(ContractError, match=said):
        lease.fill(values, position=1, layouts=layouts)
    assert lease.state is LeaseState.PENDING
    assert not lease.rows("gdn").any() and not lease.rows("conv").any()


def test_a_snapshot_is_the_slot_that_is_not_written_any_more(make) -> None:
    pool = make()
    lease = pool.acquire("a")
    step(pool, lease, tokens=3)
    before = lease.slot
    kept = lease.snapshot()
    assert (kept.slot, kept.position, kept.holds) == (before, 3, 2)
    assert lease.slot != before and lease.read_slot == before and lease.has_initial_state
    assert lease.snapshot() is kept, "nothing was written since"
    kept.release()
    step(pool, lease)
    assert lease.read_slot == lease.slot and kept.holds == 2, "the step that reads it may not have run"
    step(pool, lease)
    assert kept.holds == 1
    kept.release()
    assert pool.available == 3
    with pytest.raises(ContractError, match="snapshot: expected one that is still held"):
        kept.release()


def test_a_hit_reads_the_snapshot_and_writes_its_own_slot(make) -> None:
    pool = make()
    first = pool.acquire("a")
    step(pool, first, tokens=2)
    kept = first.snapshot()
    first.release()
    hits = [pool.acquire(f"hit {i}", start=kept) for i in range(2)]
    kept.release()
    assert {hit.read_slot for hit in hits} == {kept.slot}
    assert len({kept.slot, *(hit.slot for hit in hits)}) == 3
    assert all(hit.has_initial_state and hit.position == 2 for hit in hits)
    step(pool, *hits)
    step(pool, *hits)
    assert kept.holds == 0 and pool.available == 2


def test_a_lease_that_never_stepped_gives_its_snapshot_back(make) -> None:
    pool = make()
    lease = pool.acquire("a")
    step(pool, lease)
    kept = lease.snapshot()
    lease.release()
    pool.acquire("b", start=kept).release()
    assert kept.holds == 1
    kept.release()
    assert pool.available == pool.capacity


def test_a_snapshot_waits_for_the_events_of_all_who_held_it(make) -> None:
    pool, event = make(capacity=2), Event()
    lease = pool.acquire()
    step(pool, lease)
    kept = lease.snapshot()
    lease.release(event)
    kept.release()
    assert pool.available == 0
    event.done = True
    assert pool.available == 2


def test_a_fork_starts_from_the_same_state_and_takes_all_or_nothing(make) -> None:
    pool = make(capacity=3)
    parent = pool.acquire("parent")
    step(pool, parent, tokens=5)
    child = parent.fork("child")
    assert (child.read_slot, child.position) == (parent.read_slot, 5)
    assert child.slot != parent.slot and pool.available == 0
    step(pool, parent, child)
    slot = parent.slot
    with pytest.raises(PoolExhausted, match="expected 2 free slots, got 0 of 3"):
        parent.fork("second")
    assert parent.slot == slot and parent.read_slot == slot


def test_nothing_to_keep_no_slot_to_go_on_and_an_unknown_position_are_refused(make) -> None:
    pool = make(capacity=1)
    lease = pool.acquire("a")
    with pytest.raises(ContractError, match="it has not stepped yet"):
        lease.snapshot()
    with pytest.raises(ContractError, match="whose slot has been written"):
        lease.rows("gdn")
    step(pool, lease)
    with pytest.raises(PoolExhausted):
        lease.snapshot()
    assert (lease.slot, lease.read_slot) == (1, 1)
    lease.position = None
    with pytest.raises(ContractError, match="position: expected the number of tokens"):
        lease.snapshot()


def test_a_start_that_is_none_is_refused(make) -> None:
    pool, other = make(), make()
    lease = other.acquire()
    step(other, lease)
    kept = lease.snapshot()
    with pytest.raises(ContractError, match="start: expected a snapshot of this pool"):
        pool.acquire(start=kept)
    with pytest.raises(ContractError, match="outside: expected False"):
        other.acquire(start=kept, outside=True)
    lease.release()
    kept.release()
    with pytest.raises(ContractError, match="still held"):
        other.acquire(start=kept)
    with pytest.raises(ContractError, match="still held"):
        kept.rows("gdn")
    assert other.available == other.capacity


def test_a_kernel_is_bound_once_to_a_layers_rows(make) -> None:
    pool = make()
    rows = pool.bind(GDN, 1)
    assert rows.shape == (6, 2, 3, 5)
    assert rows.data_ptr() == pool.bind(GDN, 1).data_ptr()
    with pytest.raises(ContractError, match="layout: expected v_first, as the pool's"):
        pool.bind(RecurrentField("gdn", heads=2, K=5, V=3), 0)
    with pytest.raises(ContractError, match=r"dtype: expected torch.float32, as the pool's field 'gdn' has it"):
        pool.bind(RecurrentField("gdn", 2, 5, 3, torch.bfloat16, StateLayout.V_FIRST), 0)
    with pytest.raises(ContractError, match="field: expected one of gdn, conv, got 'kda'"):
        pool.bind(RecurrentField("kda", 2, 5, 3), 0)
    with pytest.raises(ContractError, match="layer: expected an int from 0 to 1, got 2"):
        pool.bind(GDN, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": []}, "fields: expected at least one"),
        ({"fields": [GDN, ConvField("gdn", 1, 2)]}, "fields: expected at least one, each of a name of its own"),
        ({"layers": 0}, "layers: expected a positive int, got 0"),
        ({"capacity": True}, "capacity: expected a positive int, got True"),
        ({"debug": ["generations"]}, "debug: expected members of"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(changes, said) -> None:
    with pytest.raises(ContractError, match=said):
        StatePool(**{"fields": [GDN], "layers": 1, "capacity": 1, **changes})


def test_inspect_tells_holders_leaks_and_bytes_and_lost_slots_can_be_reclaimed(make) -> None:
    pool, event = make(capacity=5), Event()
    keep = pool.acquire("a")
    step(pool, keep)
    kept = keep.snapshot()
    pool.acquire("gone").release(event)
    pool.acquire("lost")
    gc.collect()
    found = pool.inspect()
    assert (found.capacity, found.free, found.draining, found.aliased) == (5, 1, 1, ())
    told = {(holder.kind, holder.owner): (holder.slot, holder.state, holder.position) for holder in found.holders}
    assert told["snapshot", "a"] == (kept.slot, "held 2", 1)
    assert told["lease", "a"] == (keep.slot, "live", 1)
    assert found.leaked == (told["lost", "lost"][0],)
    assert found.nbytes == found.dead_bytes + 5 * found.slot_bytes
    assert found.nbytes == sum(pool.memory(field.name).nbytes for field in pool.fields)
    assert pool.reclaim() == list(found.leaked)
    assert pool.inspect().leaked == () and pool.available == 2


def test_describe_names_every_field_with_layout_dtype_and_size(make) -> None:
    lines = make().describe().splitlines()
    assert lines[0] == "4 slots x 2 layers on cpu: 2.2 KiB, 352 B a slot, 880 B in dead rows"
    assert lines[1] == "  gdn: recurrent 2 x 3 x 5, v_first, float32, 256 B a slot"
    assert lines[2] == "  conv: conv 7 x 3, channels_first, bfloat16, 96 B a slot"
