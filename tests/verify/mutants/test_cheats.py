"""Backends that try to pass without computing anything."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.expected import Expected
from deltaproof.verify.inputs import build
from deltaproof.verify.mutants.cheats import CHEATS, CachedByAddress, Cheat, Spoiler, Thief, doubles
from deltaproof.verify.mutants.matrix import attempt, try_cheat
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.observation import HarnessError, compare
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_no_cheat_fools_the_harness(cheat: Cheat) -> None:
    row = try_cheat(cheat, seed=0)
    assert not row.fooled
    assert set(row.verdicts) == {"chunk", "recurrent", "decode", "prefill"}
    assert set(row.verdicts.values()) <= {"fail", "error"}


def test_an_honest_backend_would_count_as_having_fooled_it() -> None:
    row = try_cheat(Cheat("honest", "computes", ModelBackend), seed=0)
    assert row.fooled
    assert set(row.verdicts.values()) == {"pass"}


def test_the_thief_finds_an_expectation_that_is_left_lying_about() -> None:
    call = build(Case("recurrent", T=3), 0)
    left = torch.full(call.v.shape, 7.0, dtype=torch.float64)
    o, _ = Thief().recurrent(call)
    assert torch.equal(o.double(), left)


def test_the_spoiler_reaches_what_is_left_lying_about_and_the_comparison_is_an_error() -> None:
    want = torch.zeros(2, 3, dtype=torch.float64)
    others = [(x, x.clone()) for x in doubles() if x is not want]
    Spoiler().recurrent(build(Case("recurrent", T=3), 0))
    for x, was in others:
        x.copy_(was)
    assert want.isnan().all()
    expected = Expected("o", want, torch.zeros(2, dtype=torch.float64), torch.float32)
    with pytest.raises(HarnessError, match="not finite"):
        compare(torch.zeros(2, 3), expected)


def test_no_expectation_exists_while_a_backend_runs() -> None:
    counts = []

    class Watcher(ModelBackend):
        def recurrent(self, call):  # type: ignore[no-untyped-def]
            counts.append(sum(x.shape == call.v.shape for x in doubles()))
            return super().recurrent(call)

    assert attempt(Watcher(), probes()["values"], "recurrent", 0).first is None
    assert counts
    assert set(counts) == {0}


def test_the_bounds_own_noise_is_no_tensor_that_a_backend_finds() -> None:
    attempt(ModelBackend(), probes()["values"], "decode", 0)
    assert not any(x.numel() > 1_000_000 for x in doubles())


def test_a_renewed_call_has_the_same_addresses_and_other_values() -> None:
    context = Context(Target(ModelBackend(), operator("gated_delta_rule"), "model", face=False), 0, "cpu")
    case = Case("decode", B=3, T=2)
    call = context.call(case)
    addresses = call.q.data_ptr(), call.pool.data_ptr()
    old = call.q.clone()
    call = context.renew(case, call, turn=1)
    assert (call.q.data_ptr(), call.pool.data_ptr()) == addresses
    assert not torch.equal(call.q, old)
    fresh = context.call(case, turn=1)
    assert torch.equal(call.q, fresh.q)
    assert torch.equal(call.pool, fresh.pool)


def test_answers_kept_by_address_are_caught_in_the_first_case() -> None:
    outcome = attempt(CachedByAddress(), probes()["values"], "recurrent", 0)
    assert outcome.passed == 0
    assert outcome.first is not None
    assert outcome.first.status is Status.FAIL
