"""The probe ``leases`` passes a right backend and says which step of which request went wrong."""

from __future__ import annotations

import pytest

from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.mutants.slots import RawNegative
from deltaproof.verify.probe import Plan
from deltaproof.verify.probes.leases import FULL_STEPS, PROBE, WALK
from tests.verify.probes import probing


@pytest.mark.parametrize("case", probing.smoke(PROBE, "decode"), ids=lambda case: case.id)
def test_a_right_backend_passes(case) -> None:
    probing.assert_pass(probing.check(TorchBackend(), PROBE, case))


def test_a_padding_index_used_as_an_address_is_named() -> None:
    found = probing.check(RawNegative(), PROBE, probing.smoke(PROBE, "decode")[0])
    probing.assert_fail(found, "P2", "padding-slot-address")
    assert "which no row of the step names" in found.message and found.message.startswith("step ")


def test_a_backend_without_prefill_is_unsupported() -> None:
    class Half(TorchBackend):
        prefill = None

    found = probing.check(Half(), PROBE, probing.smoke(PROBE, "decode")[0])
    assert (found.status, found.reason) == (Status.UNSUPPORTED, "prefill: torch has no such form")


def test_the_full_tier_makes_a_hundred_thousand_steps() -> None:
    steps = [int(case.label.removeprefix(WALK)) for case in probing.full(PROBE, "decode")]
    assert sum(steps) == FULL_STEPS


def test_interpreted_kernels_walk_less_far() -> None:
    from deltaproof.ops.registry import operator

    for tier in ("smoke", "full"):
        cases = list(PROBE.cases(Plan(operator("gated_delta_rule"), "decode", tier, "cpu", interpreted=True)))
        assert sum(int(case.label.removeprefix(WALK)) for case in cases) <= 100
