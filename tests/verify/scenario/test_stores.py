"""The parts: where a wrong address lands, what a store hands out, and what our pool refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.verify.observation import Skipped
from deltaproof.verify.scenario.adapters import (
    ClampedToFirst,
    GatherScatter,
    NarrowOffset,
    Operators,
    RawNegative,
    ScatteredToLast,
)
from deltaproof.verify.scenario.model import HEADS, K, V
from deltaproof.verify.scenario.plain_store import PlainMemory, PlainStore
from deltaproof.verify.scenario.pool_store import PoolStore
from deltaproof.verify.scenario.requests import Request
from deltaproof.verify.scenario.store import Full, Store
from deltaproof.verify.scenario.workload import CHUNK, Job, draft, workload

INDICES = torch.tensor([3, -1])


def inputs(rows: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, 1, HEADS, size, generator=draw) for size in (K, K, V))
    g, beta = torch.randn(2, rows, 1, HEADS, generator=draw)
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta, "A_log": torch.zeros(HEADS), "dt_bias": torch.zeros(HEADS)}


def step(adapter: Any, states: torch.Tensor) -> torch.Tensor:
    counts = torch.tensor([1, 0], dtype=torch.int32)
    indices = INDICES.int()
    arguments = {"read_index": indices, "write_index": indices, "num_tokens": counts}
    return adapter.rule("decode", inputs(2), states, arguments)


@pytest.mark.parametrize(
    ("adapter", "stray"),
    [
        (Operators, None),
        (GatherScatter, None),
        (RawNegative, (1, 4)),
        (ClampedToFirst, (0, 0)),
        (ScatteredToLast, (0, 4)),
    ],
)
def test_a_padding_row_lands_where_its_fault_says(adapter: type, stray: tuple[int, int] | None):
    memory = PlainMemory(5)
    before = [torch.randn_like(states) for states in memory.states]
    for states, was in zip(memory.states, before, strict=True):
        states.copy_(was)
    step(adapter(), memory.states[0])
    changed = {
        (layer, slot)
        for layer, (states, was) in enumerate(zip(memory.states, before, strict=True))
        for slot in range(5)
        if not torch.equal(states[slot], was[slot])
    }
    assert changed == {(0, 3), *([] if stray is None else [stray])}


def test_the_clean_adapters_agree():
    pools = [PlainMemory(5).states[0] for _ in range(2)]
    for pool in pools:
        pool.copy_(torch.randn(pool.shape, generator=torch.Generator().manual_seed(1)))
    outputs = [step(adapter, pool)[0] for adapter, pool in zip((Operators(), GatherScatter()), pools, strict=True)]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*pools)


def test_an_offset_in_32_bits_takes_the_ninth_slot_for_the_first():
    try:
        pool = PlainMemory(10, spread=True).states[0]
    except Skipped as reason:
        pytest.skip(str(reason))
    offsets = [adapter().read_offset(torch.tensor([0, 3, 8, -1]), 10, pool.stride(0)) for adapter in
               (GatherScatter, NarrowOffset)]  # fmt: skip
    assert offsets[0] == [0, 3 * 2**29, 2**32, None]
    assert offsets[1] == [0, 3 * 2**29, 0, None]


def job() -> Job:
    return next(item for item in workload(5, 0) if item.gives_up is None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PlainStore(6, extra=False),
        lambda: PlainStore(6, extra=True),
        lambda: PlainStore(8, extra=False, columns=3),
        lambda: PoolStore(6),
    ],
)
def test_a_store_gets_everything_back(make: Any):
    store: Store = make()
    rounds = 0
    for _ in range(7):
        request = Request.of(job())
        store.admit(request, None)
        store.plan("prefill", [request], [CHUNK])
        request.fed = CHUNK
        kept = store.keep(request)
        if store.idle(kept):
            store.drop(kept)
        else:
            # the request goes on from it; it is free once that step is planned
            store.plan("prefill", [request], [1])
            assert store.idle(kept)
            store.drop(kept)
        store.release(request, aborted=False)
        assert store.others([]) == []
        rounds += 1
    assert rounds == 7


def test_a_store_that_is_full_says_so():
    for store in (PlainStore(2, extra=False), PoolStore(2)):
        for at in range(2):
            request = Request.of(replace(job(), name=f"request {at}"))
            store.admit(request, None)
        with pytest.raises(Full):
            store.admit(Request.of(replace(job(), name="one more")), None)


def test_our_pool_takes_no_lease_for_a_snapshot_and_steps_no_snapshot():
    store = PoolStore(4)
    request = Request.of(job())
    store.admit(request, None)
    store.plan("prefill", [request], [CHUNK])
    with pytest.raises(ContractError, match="start: expected a snapshot of this pool"):
        store.pool.acquire("other", start=request.handle)
    kept = store.keep(request)
    with pytest.raises(ContractError, match="leases"):
        store.sizes.decode([kept])
    assert request.handle.slot != kept.slot


def test_requests_are_the_same_for_a_seed_and_share_prefixes():
    jobs = workload(30, 3)
    assert jobs == workload(30, 3) != workload(30, 4)
    assert sum(item.gives_up is None for item in jobs) == 30
    assert any(item.gives_up is not None for item in jobs)
    beginnings = [item.prompt[:CHUNK] for item in jobs]
    assert len(set(beginnings)) < len(beginnings)
    assert all(len(item.answers) == item.script.count(None) for item in jobs)


def test_drafts_know_the_script_and_guess_answers():
    found = job()
    drafts = [draft(found, place, 2) for place in range(len(found.prompt), len(found.script))]
    assert {len(tokens) for tokens in drafts} >= {0, 2}
