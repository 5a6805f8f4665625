"""Speculative steps: whose drafts are taken in when, and that what was rejected leaves no trace."""

from __future__ import annotations

import pytest
import torch

from deltaproof import gated_delta_rule_decode
from deltaproof.contracts.errors import ContractError
from deltaproof.state import ConvDraftField, ConvField, DraftField, RecurrentField, StatePool, StepPlan

STATE = RecurrentField("state", heads=2, K=8, V=5)
DRAFTS = DraftField("drafts", tokens=3, heads=1, value_heads=2, K=8, V=5, dtype=torch.float32)


@pytest.fixture
def pool() -> StatePool:
    return StatePool([STATE, DRAFTS], layers=2, capacity=4, debug=["poison"])


def tokens(rows: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"q": (1, 8), "k": (1, 8), "v": (2, 5), "g": (2,), "beta": (2,)}
    found = {name: torch.randn(rows, count, *shape, generator=draw) for name, shape in shapes.items()}
    return found | {"g": -found["g"].abs(), "beta": found["beta"].sigmoid()}


def step(pool: StatePool, arguments: dict, inputs: dict, *, drafts: bool = True) -> torch.Tensor:
    N = arguments["read_index"].shape[0]
    padded = {name: torch.cat([x, x.new_zeros(N - x.shape[0], *x.shape[1:])]) for name, x in inputs.items()}
    kept = {"drafts": pool.bind_drafts(DRAFTS, 1)} if drafts else {}
    return gated_delta_rule_decode(
        **padded, pool=pool.bind(STATE, 1), use_qk_l2norm_in_kernel=True, **kept, **arguments
    )  # fmt: skip


def test_accepted_drafts_are_what_decode_of_them_gives_and_rejected_ones_leave_no_trace(pool) -> None:
    plan = StepPlan(pool, sizes=[2])
    a, b = pool.acquire("a"), pool.acquire("b")
    first, second, third = (tokens(2, 3, seed) for seed in range(3))
    step(pool, plan.speculate([a, b], [3, 2]), first)
    plan.commit([2, 0])
    assert (a.position, b.position) == (2, 0)
    o = step(pool, plan.speculate([a, b], [1, 3]), second)
    plan.commit(torch.tensor([1, 3], dtype=torch.int32))
    step(pool, plan.settle([a, b]), {name: x[:, :1] for name, x in third.items()})

    alone = StatePool([STATE], layers=2, capacity=2)
    its_plan = StepPlan(alone, sizes=[2])
    leases = [alone.acquire(), alone.acquire()]
    taken = {name: x.clone() for name, x in first.items()}
    step(alone, its_plan.decode(leases, [2, 0]), taken, drafts=False)
    o_alone = step(alone, its_plan.decode(leases, [1, 3]), second, drafts=False)
    torch.testing.assert_close(o, o_alone, rtol=1e-6, atol=1e-6)
    for lease, other in zip((a, b), leases, strict=True):
        torch.testing.assert_close(lease.rows("state")[1], other.rows("state")[1], rtol=1e-6, atol=1e-6)
    assert pool.disturbed() == []


def test_halves_take_turns_and_rows_may_change_places(pool) -> None:
    plan = StepPlan(pool, sizes=[2])
    a, b = pool.acquire(), pool.acquire()
    plan.speculate([a, b], [1, 1])
    assert plan.draft_half.tolist() == [-1, -1]
    plan.commit([1, 1])
    plan.speculate([b], [2])
    assert plan.draft_half.tolist() == [0, -1]
    plan.commit([0])
    plan.speculate([None, b], [0, 2])
    assert plan.draft_half.tolist() == [-1, 1]
    plan.commit([0, 2])
    plan.speculate([b, a], [2, 2])
    assert plan.draft_half.tolist() == [0, 0]
    assert pool.accepted[b.slot] == 2 and pool.accepted[a.slot] == 1


def test_counts_on_the_device_are_cut_to_what_was_drafted(pool) -> None:
    plan = StepPlan(pool, sizes=[4])
    a, b = pool.acquire(), pool.acquire()
    plan.speculate([a, None, b], [3, 0, 1])
    plan.decode([pool.acquire()])
    plan.commit(torch.tensor([-5, 7, 9, 9]))
    assert pool.accepted[[a.slot, b.slot]].tolist() == [0, 1]
    assert a.position is None


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        ([4, 0], ("accepted", "0 to the 3 tokens that were drafted", "4")),
        ([1, 1], ("accepted", "0 to the 0 tokens", "1")),
        ([-1, 0], ("accepted", "-1")),
        ([1], ("accepted", "2 rows", "1 numbers")),
        (torch.tensor([1.0, 0.0]), ("accepted", "int32 or int64", "float32")),
        (torch.tensor([1]), ("accepted", "[2]", "[1]")),
    ],
)
def test_a_commit_of_what_was_not_drafted_is_refused(pool, accepted, words) -> None:
    plan = StepPlan(pool, sizes=[2])
    lease = pool.acquire()
    plan.speculate([lease, None], [3, 0])
    with pytest.raises(ContractError) as error:
        plan.commit(accepted)
    assert all(word in str(error.value) for word in words), error.value
    plan.commit([3, 0])
    with pytest.raises(ContractError, match="a speculative step before it"):
        plan.commit([3, 0])


def test_a_step_is_committed_before_the_next(pool) -> None:
    plan = StepPlan(pool, sizes=[2])
    a, b = pool.acquire("a"), pool.acquire("b")
    plan.speculate([a], [2])
    with pytest.raises(ContractError, match=r"committed before the next.*'a'"):
        plan.speculate([b], [1])
    with pytest.raises(ContractError, match="last drafts were committed"):
        StepPlan(pool, sizes=[2]).speculate([a], [1])
    a.release()
    plan.speculate([b], [1])
    plan.commit([1])


@pytest.mark.parametrize("use", ["decode", "extend", "snapshot", "fork", "rows"])
def test_a_lease_with_drafts_is_settled_before_it_is_used_otherwise(pool, use) -> None:
    plan = StepPlan(pool, sizes=[2])
    lease = pool.acquire()

    def attempt() -> None:
        if use == "decode":
            plan.decode([lease])
        elif use == "extend":
            plan.extend([lease], [5])
        elif use == "snapshot":
            lease.snapshot(position=1)
        elif use == "fork":
            lease.fork("other").release()
        else:
            lease.rows("state")

    plan.speculate([lease], [2])
    plan.commit([1])
    assert lease.drafted
    with pytest.raises(ContractError, match="without drafts"):
        attempt()
    plan.settle([lease])
    assert not lease.drafted
    attempt()


def test_more_tokens_than_there_is_room_for_and_a_pool_without_drafts_are_refused(pool) -> None:
    plan = StepPlan(pool, sizes=[2])
    with pytest.raises(ContractError, match="0 to 3"):
        plan.speculate([pool.acquire()], [4])
    plain = StatePool([STATE], layers=1, capacity=2)
    with pytest.raises(ContractError, match="draft fields"):
        StepPlan(plain, sizes=[1]).speculate([plain.acquire()], [1])


def test_a_pool_tells_its_drafts_and_a_kernel_is_bound_to_what_they_are(pool) -> None:
    assert "drafts: drafts of 3 tokens" in pool.describe()
    with pytest.raises(ContractError, match=r"tokens.*3"):
        pool.bind_drafts(DraftField("drafts", 4, 1, 2, 8, 5, torch.float32), 0)
    conv = ConvDraftField("inputs", tokens=2, channels=6)
    both = StatePool([STATE, ConvField("window", 6, 4), DRAFTS, conv], layers=1, capacity=2)
    assert both.bind(conv, 0).shape == (4, 2, 2, 6)
    assert both.draft_tokens == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DraftField("d", 17, 1, 2, 8, 5), ("tokens", "16", "17")),
        (lambda: DraftField("d", 2, 2, 3, 8, 5), ("value_heads", "multiple of heads = 2", "3")),
        (lambda: DraftField("d", 2, 1, 2, 300, 5), ("K", "256", "300")),
        (lambda: DraftField("d", 2, 1, 2, 8, 5, gate_dtype=torch.float64), ("dtype", "float64")),
        (lambda: ConvDraftField("d", 0, 6), ("tokens", "positive", "0")),
    ],
)
def test_a_field_that_is_none_is_refused(make, words) -> None:
    with pytest.raises(ContractError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value
