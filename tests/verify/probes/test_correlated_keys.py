"""The probe ``correlated_keys`` passes an exact solve and catches inverses and operands that lose precision."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.correlated_keys import PROBE
from deltaproof.verify.target import Target

Result = tuple[torch.Tensor, torch.Tensor | None]


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str) -> list[Case]:
    return list(PROBE.cases(Plan(operator("gated_delta_rule"), form, "smoke", "cpu")))


def neumann(system: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Solve by the series (I - N)(I + N^2)(I + N^4)... with every power rounded to ``dtype``."""
    power = -system.tril(-1)
    inverse = torch.eye(system.shape[-1]) + power
    for _ in range(5):
        power = (power @ power).to(dtype).to(system.dtype)
        inverse = (inverse + inverse @ power).to(dtype).to(system.dtype)
    return inverse @ right


class NeumannInverse(TorchBackend):
    """Inverts a chunk's triangular system by a series in bf16."""

    def chunk(self, call: SequenceCall) -> Result:
        def solve(system, right, **options):
            return neumann(system, right, torch.bfloat16)

        with mock.patch.object(torch.linalg, "solve_triangular", solve):
            return super().chunk(call)


class LowOperands(TorchBackend):
    """Rounds k to bf16 on the way."""

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(call.with_(k=call.k.bfloat16().to(call.k.dtype)))

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call.with_(k=call.k.bfloat16().to(call.k.dtype)))


class GradientDividesByZero(TorchBackend):
    """Its gradient of k divides by the difference of neighbouring keys."""

    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        gap = (call.k[:, 1:] - call.k[:, :-1]).pow(2).sum()
        return o, final + 0 * gap.sqrt()


@pytest.mark.parametrize("form", ["chunk", "recurrent", "decode", "prefill"])
def test_the_torch_backend_passes(form):
    for case in (cases(form)[0], cases(form)[2]):
        result = check(TorchBackend(), case)
        assert result.status is Status.PASS, result.message


def test_a_series_in_bf16_diverges():
    for case in cases("chunk"):
        result = check(NeumannInverse(), case)
        assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N2", "low-precision-accumulate"), case.id


@pytest.mark.parametrize("form", ["recurrent", "decode"])
def test_operands_in_bf16_fail_where_fp32_was_given(form):
    result = check(LowOperands(), cases(form)[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N2", "low-precision-accumulate")
    assert result.ratio > 10


def test_a_gradient_that_is_not_finite_breaks_n1():
    result = check(GradientDividesByZero(), cases("chunk")[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", "unguarded-division")
    assert "gradient of k" in result.message
