"""Running one probe on one backend, called directly, for the tests of probes."""

from __future__ import annotations

from typing import Any

import pytest

from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan, Probe
from deltaproof.verify.target import Target


def check(backend: Any, probe: Probe, case: Case, *, face: bool = False) -> Check:
    """Return the check of one case."""
    target = Target(backend, operator("gated_delta_rule"), "test", face=face)
    return execute(Context(target, seed=0, device="cpu"), probe, case)


def smoke(probe: Probe, form: str) -> list[Case]:
    """Return the smoke cases of one form."""
    return list(probe.cases(Plan(operator("gated_delta_rule"), form, "smoke", "cpu")))


def full(probe: Probe, form: str) -> list[Case]:
    """Return the cases of the full tier of one form."""
    return list(probe.cases(Plan(operator("gated_delta_rule"), form, "full", "cpu")))


def assert_pass(found: Check) -> None:
    """Assert that a check passed."""
    assert found.status is Status.PASS, f"{found.case}: {found.message} {found.location} {found.reason}"


def assert_fail(found: Check, clause: str, hazard: str | None) -> None:
    """Assert that a check failed for this clause and hazard."""
    assert found.status is Status.FAIL, f"{found.case}: {found.status} {found.message} {found.reason}"
    assert (found.clause, found.hazard) == (clause, hazard), found.message
    assert found.repeat is not None and found.case in found.repeat


def forms(probe: Probe) -> pytest.MarkDecorator:
    """Parametrise a test over the forms of a probe."""
    return pytest.mark.parametrize("form", probe.forms)
