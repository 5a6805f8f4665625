"""The probe ``repeatability`` passes a right backend and catches whoever answers one call in two ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes._runs import BACKWARD
from deltaproof.verify.probes.repeatability import PROBE
from deltaproof.verify.target import Target


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def first(form: str, label: str = "") -> Case:
    plan = Plan(operator("gated_delta_rule"), form, "smoke", "cpu")
    return next(case for case in PROBE.cases(plan) if case.label == label)


class Racing(TorchBackend):
    """Adds up in another order at every call."""

    calls = 0

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().recurrent(call)
        self.calls += 1
        return o + 2.0**-20 * self.calls, final


class RacingBackward(TorchBackend):
    """Right forward; the gradient of v is added up in another order at every call."""

    calls = 0

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.calls += 1
        v, factor = call.v * 1.0, 1.0 + 2.0**-22 * self.calls
        if v.requires_grad:
            v.register_hook(lambda grad: grad * factor)
        return super().chunk(replace(call, v=v))


class TunedInPlace(TorchBackend):
    """Tunes itself on the first call of a shape by running it twice on the pool it updates."""

    def __init__(self) -> None:
        self.tuned: set[torch.Size] = set()

    def decode(self, call: DecodeCall) -> torch.Tensor:
        if call.q.shape not in self.tuned:
            self.tuned.add(call.q.shape)
            super().decode(call)
        return super().decode(call)


class ByAddress(TorchBackend):
    """Chooses its chunk size by where q lies."""

    seen: int | None = None

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.seen = call.q.data_ptr() if self.seen is None else self.seen
        size = 64 if call.q.data_ptr() == self.seen else 32
        return super().chunk(replace(call, options=replace(call.options, chunk_size=size)))


@pytest.mark.parametrize(
    ("form", "label"),
    [("chunk", BACKWARD), ("recurrent", ""), ("decode", ""), ("prefill", ""), ("recurrent", BACKWARD)],
)
def test_the_torch_backend_passes(form, label):
    result = check(TorchBackend(), first(form, label))
    assert result.status is Status.PASS, result.message


@pytest.mark.parametrize(
    ("backend", "form", "label", "tensor", "hazard"),
    [
        (Racing, "recurrent", "", "o", "racing-store"),
        (RacingBackward, "chunk", BACKWARD, "gradient of v", "racing-store"),
        (ByAddress, "chunk", "", "o", "racing-store"),
    ],
)
def test_a_backend_that_answers_differently_fails(backend, form, label, tensor, hazard):
    result = check(backend(), first(form, label))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "I1", hazard)
    assert result.location is not None and result.location.tensor == tensor
    assert "differs from the first" in result.message


def test_a_kernel_tuned_on_the_pool_it_updates_fails_by_what_it_left_in_the_pool():
    result = check(TunedInPlace(), first("decode"))
    assert (result.status, result.clause) == (Status.FAIL, "I1")
    assert result.hazard in ("racing-store", "autotuned-in-place")

    class Restored(TunedInPlace):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            kept = call.pool.clone()
            o = super().decode(call)
            call.pool.copy_(kept)
            right = TorchBackend.decode(self, call)
            return right if o.shape == right.shape else o

    assert check(Restored(), first("decode")).status is Status.PASS


def test_a_pool_that_differs_where_the_outputs_agree_names_the_tuning():
    class Drifts(TorchBackend):
        calls = 0

        def decode(self, call: DecodeCall) -> torch.Tensor:
            o = super().decode(call)
            self.calls += 1
            call.pool[int(call.read_index[0])] *= 1.0 + 2.0**-20 * self.calls
            return o

    result = check(Drifts(), first("decode"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "I1", "autotuned-in-place")


def test_nan_in_every_run_fails_though_the_bits_agree():
    class Nan(TorchBackend):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            return super().decode(call) * float("nan")

    result = check(Nan(), first("decode"))
    assert (result.status, result.clause) == (Status.FAIL, "I1")
    assert "not finite" in result.message


def test_a_backend_without_a_backward_is_counted_as_such():
    class Forward(TorchBackend):
        unsupported: Mapping[str, str] = {**TorchBackend.unsupported, "backward": "inference only"}

    result = check(Forward(), first("chunk", BACKWARD))
    assert (result.status, result.reason) == (Status.UNSUPPORTED, "backward: inference only")
