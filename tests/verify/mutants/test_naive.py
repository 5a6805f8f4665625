"""The naive suite: it passes what is right, fails what is plainly wrong, and sees little else."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.kda.torch_backend import TorchBackend as KdaTorchBackend
from deltaproof.verify.mutants import mutant
from deltaproof.verify.mutants.kda import KdaModel
from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.naive import naive_cases, survives

FORMS = ("chunk", "recurrent", "decode", "prefill")


class Wrong(ModelBackend):
    """Decays twice as fast as it should."""

    def clamp_gate(self, g: torch.Tensor) -> torch.Tensor:
        return super().clamp_gate(2 * g)


class Crashing(ModelBackend):
    def operands(self, call, grid):  # type: ignore[no-untyped-def]
        raise RuntimeError("no")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [ModelBackend, TorchBackend, KdaModel, KdaTorchBackend])
def test_a_right_backend_passes(backend: type, form: str) -> None:
    assert survives(backend(), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [Wrong, Crashing])
def test_a_plainly_wrong_backend_fails(backend: type, form: str) -> None:
    assert not survives(backend(), form)


@pytest.mark.parametrize("name", ["raw-negative", "final-gradient-dropped", "square-state-misread", "tf32-operands"])
def test_it_lets_real_faults_live(name: str) -> None:
    assert survives(mutant(name).make(), mutant(name).form)


def test_its_cases_are_as_naive_as_they_say() -> None:
    for form in FORMS:
        for case in naive_cases(form):
            assert case.K == case.V
            assert case.H == case.HV
            assert case.seqlens is None
            assert case.read is None
