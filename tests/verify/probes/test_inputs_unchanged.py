"""The probe ``inputs_unchanged`` passes a right backend and catches arguments that are changed or handed out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.probes.inputs_unchanged import BACKWARD, PROBE
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
BASE = Case("recurrent", T=3, K=8, V=12)


class InPlace(TorchBackend):
    """Adds to the first element of one argument, after the call."""

    def __init__(self, name: str, offset: int = 0) -> None:
        self.changed, self.offset = name, offset

    def spoil(self, call: Any) -> None:
        x = getattr(call, self.changed).detach()
        x.as_strided((1,), (1,), x.storage_offset() + self.offset).add_(1)

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        self.spoil(call)
        return o, final

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        self.spoil(call)
        return o


class SameState(TorchBackend):
    """Returns the initial state itself where no token changes it."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        return o, call.initial_state if call.q.shape[1] == 0 else final


class OutputInValues(TorchBackend):
    """Returns o in the memory of v, values and all."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        call.v.copy_(o)
        return call.v, final


class ChangedCotangent(TorchBackend):
    """Scales the gradient that arrives in place."""

    def recurrent(self, call: SequenceCall) -> Result:
        class Scaled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
                return grads[0].mul_(1.5)

        o, final = super().recurrent(call)
        return Scaled.apply(o), final


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))
    assert len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form))


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta", "A_log", "dt_bias"])
def test_an_argument_changed_in_place_is_caught(name: str) -> None:
    found = check(InPlace(name), PROBE, BASE.but(gate_in_kernel=True, beta_sigmoid=True))
    assert_fail(found, "M2", "autotuned-in-place")
    assert found.location is not None and found.location.tensor == name


def test_an_initial_state_changed_in_place_is_caught() -> None:
    assert_fail(check(InPlace("initial_state"), PROBE, BASE), "T2", "aliased-slot")


def test_an_index_changed_in_place_is_caught() -> None:
    assert_fail(check(InPlace("read_index"), PROBE, BASE.but(form="decode")), "M2", "autotuned-in-place")


def test_the_memory_around_an_argument_is_watched() -> None:
    assert_fail(check(InPlace("read_index", offset=-3), PROBE, BASE.but(form="decode")), "M2", "autotuned-in-place")


def test_a_final_state_that_is_the_initial_one_is_caught() -> None:
    assert_fail(check(SameState(), PROBE, BASE.but(T=0)), "T2", "aliased-slot")
    assert_pass(check(SameState(), PROBE, BASE))


def test_an_output_in_the_memory_of_an_input_is_caught() -> None:
    assert check(OutputInValues(), PROBE, BASE).status is Status.FAIL


def test_arriving_gradients_are_inputs_too() -> None:
    case = BASE.but(label=BACKWARD)
    assert_pass(check(TorchBackend(), PROBE, case))
    found = check(ChangedCotangent(), PROBE, case)
    assert_fail(found, "M2", None)
    assert "arrives" in found.message
