"""The convolution's probes pass the right backend; what they catch is tried in ``tests/verify/mutants/conv``."""

from __future__ import annotations

import pytest

from deltaproof.ops.causal_conv1d.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan, Probe, probes, probes_of
from deltaproof.verify.target import Target

OPERATOR = operator("causal_conv1d")
PROBES = probes_of(OPERATOR)


def check(backend: TorchBackend, probe: Probe, case: ConvCase) -> Check:
    target = Target(backend, OPERATOR, "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), probe, case)  # type: ignore[arg-type]


def cases(probe: str, form: str) -> list[ConvCase]:
    return list(PROBES[probe].cases(Plan(OPERATOR, form, "smoke", "cpu")))  # type: ignore[arg-type]


def test_the_operators_have_probes_of_their_own() -> None:
    assert set(PROBES) == {"conv_values", "conv_slots", "conv_rows", "conv_drafts", "conv_large_offsets"}
    assert not set(PROBES) & set(probes_of(operator("gated_delta_rule")))
    assert set(probes()) == set(PROBES) | set(probes_of(operator("gated_delta_rule")))


@pytest.mark.parametrize("form", OPERATOR.forms)
@pytest.mark.parametrize("probe", PROBES)
def test_the_right_backend_passes(probe: str, form: str) -> None:
    for case in cases(probe, form):
        found = check(TorchBackend(), PROBES[probe], case)
        assert found.status is Status.PASS, f"{case.id}: {found.message} {found.location}"
