"""The probe ``extreme_gates`` passes masked exponentials and catches overflow, inf times zero and zero over zero."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch

from deltaproof.ops.common import torch_chunk
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_rule import TorchRule
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.gated_delta_rule.torch_chunk import intra
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.inputs import build
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.extreme_gates import PROBE
from deltaproof.verify.target import Target

Result = tuple[torch.Tensor, torch.Tensor | None]
FORMS = ("chunk", "recurrent", "decode", "prefill")


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str) -> list[Case]:
    return list(PROBE.cases(Plan(operator("gated_delta_rule"), form, "smoke", "cpu")))


def with_gates(form: str, gates: str) -> Case:
    return next(case for case in cases(form) if case.gates == gates)


class MaskedByMultiplying(TorchBackend):
    """Takes the exponential of every difference of cumulated gates and multiplies by the mask."""

    def chunk(self, call: SequenceCall) -> Result:
        def masked(x, mask, value):
            return (x.exp() * ~mask).log()

        with mock.patch.object(torch.Tensor, "masked_fill", masked):
            return super().chunk(call)


class UnboundedExp(TorchBackend):
    """Takes exp(G_i) * exp(-G_j) for exp(G_i - G_j)."""

    def chunk(self, call: SequenceCall) -> Result:
        def factored(x, mask, value):
            row, column = x[..., :, :1], x[..., :1, :]  # G_i - G_0, G_0 - G_j
            return (row.exp() * column.exp()).log().masked_fill_(mask, value)

        with mock.patch.object(torch.Tensor, "masked_fill", factored):
            return super().chunk(call)


class ClampedTooSoon(TorchBackend):
    """Clamps a log gate at -5."""

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(call.with_(g=call.g.clamp(min=-5)))

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call.with_(g=call.g.clamp(min=-5)))


class NoEpsilon(TorchBackend):
    """Normalises without the 1e-6."""

    def change(self, call):
        options = call.options.__class__(**{**vars(call.options), "normalize_qk": False})
        q, k = (x / x.pow(2).sum(-1, keepdim=True).sqrt() for x in (call.q, call.k))
        return call.with_(q=q, k=k, options=options)

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(self.change(call))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(self.change(call))


class Forgetful(TorchBackend):
    """Splits a sequence into segments of 256 and passes on what the end of one wrote, if the rest decays enough."""

    threshold = -10.0

    def chunk(self, call: SequenceCall) -> Result:
        outputs, state = [], call.initial_state
        for start in range(0, call.q.shape[1], 256):
            part = _tokens(call, slice(start, start + 256)).with_(initial_state=state, output_final_state=True)
            o, state = super().chunk(part)
            outputs.append(o)
            length = part.q.shape[1]
            decays = [float(part.g.detach()[:, length - 64 * n :].sum(1).max()) for n in range(1, length // 64 + 1)]
            near = next((n for n, decay in enumerate(decays, 1) if decay < self.threshold), None)
            if near is not None and start + 256 < call.q.shape[1]:
                tail = _tokens(part, slice(length - 64 * near, length)).with_(initial_state=None)
                state = super().chunk(tail)[1].to(part.initial_state.dtype)
        return torch.cat(outputs, 1), state


class Patient(Forgetful):
    """The same with nothing dropped."""

    threshold = -math.inf


def _tokens(call: SequenceCall, which: slice) -> SequenceCall:
    return call.with_(**{name: getattr(call, name)[:, which] for name in ("q", "k", "v", "g", "beta")})


class NaiveSoftplus(TorchBackend):
    """Writes softplus as log(1 + exp(x)); a clamp behind it hides the overflow from the values."""

    def chunk(self, call: SequenceCall) -> Result:
        def log_gate(call, dtype):
            return -call.A_log.exp() * (1 + (call.g + call.dt_bias).exp()).log()

        return torch_chunk.chunk(call, TorchRule(log_gate, intra))


@pytest.mark.parametrize("form", FORMS)
def test_the_torch_backend_passes(form):
    for gates in ("mixed", "overflow"):
        result = check(TorchBackend(), with_gates(form, gates))
        assert result.status is Status.PASS, result.message


def test_mixed_gates_put_the_floor_beside_zero_in_one_chunk():
    call = build(with_gates("chunk", "mixed"), seed=0)
    first = call.g[0, :64]
    assert (first == -1e4).any() and (first == 0).any() and (first == -40).any()


def far_cases(form: str) -> list[Case]:
    full = PROBE.cases(Plan(operator("gated_delta_rule"), form, "full", "cpu"))
    return [case for case in full if case.label == "far-state"]


def test_a_state_that_was_dropped_because_it_had_decayed_fails_where_it_was_all_there_was():
    assert [case.layout for case in far_cases("chunk")] == ["k_first", "v_first"] and not far_cases("decode")
    for case in far_cases("chunk"):
        result = check(Forgetful(), case)
        assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", None)
        assert result.ratio > 10
        ordinary = check(Forgetful(), case.but(gates="ordinary", betas="ordinary"))
        assert ordinary.status is Status.PASS, "beside what was written since it cannot be seen"


@pytest.mark.parametrize("backend", [TorchBackend(), Patient()])
def test_a_state_that_is_carried_passes_however_far_it_decays(backend):
    for case in far_cases("chunk"):
        assert check(backend, case).status is Status.PASS


def test_overflowing_gates_reach_where_exp_overflows():
    call = build(with_gates("chunk", "overflow"), seed=0)
    assert float((call.g + call.dt_bias).max()) > 89
    assert float((call.g + call.dt_bias).min()) < -104


def test_a_mask_that_multiplies_after_the_exponential_fails():
    for gates in ("mixed", "alternating"):
        result = check(MaskedByMultiplying(), with_gates("chunk", gates))
        assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", "mask-by-multiply")
        assert result.value == "nan"


def test_a_decay_split_into_two_exponentials_fails():
    result = check(UnboundedExp(), with_gates("chunk", "all_extreme"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", "unbounded-exp")
    assert result.value == "nan"


@pytest.mark.parametrize("form", ["recurrent", "decode"])
def test_a_gate_clamped_too_soon_fails(form):
    result = check(ClampedTooSoon(), with_gates(form, "all_extreme"))
    assert (result.status, result.clause) == (Status.FAIL, "N1")
    assert result.ratio > 10


@pytest.mark.parametrize("form", ["recurrent", "prefill"])
def test_a_zero_row_divided_by_its_norm_fails(form):
    case = next(case for case in cases(form) if case.keys == "zero_rows")
    result = check(NoEpsilon(), case)
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", "unguarded-division")
    assert result.value == "nan"


def test_softplus_that_overflows_shows_in_the_gradient():
    result = check(NaiveSoftplus(), with_gates("chunk", "overflow"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "N1", "unbounded-exp")
    assert result.location.tensor.startswith("gradient of")
