"""The probe ``gradients`` passes right gradients and catches missing, wrong, dropped and miscounted ones."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.gradients import PROBE
from deltaproof.verify.target import Target

Result = tuple[torch.Tensor, torch.Tensor | None]
SMALL = Case("chunk", "both", B=1, T=21, H=1, HV=2, K=16, V=8, chunk_size=16)


def check(backend: TorchBackend, case: Case = SMALL) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


class _Bent(torch.autograd.Function):
    """Passes x on and sends back what ``bend`` makes of the gradient."""

    @staticmethod
    def forward(ctx, x, bend):
        ctx.bend = bend
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.bend(grad), None


class Bent(TorchBackend):
    """Sends a changed gradient to one input."""

    def __init__(self, name, bend):
        self.changed, self.bend = name, bend

    def chunk(self, call: SequenceCall) -> Result:
        x = getattr(call, self.changed)
        return super().chunk(call if x is None else call.with_(**{self.changed: _Bent.apply(x, self.bend)}))


class Detached(TorchBackend):
    """Gives one input no gradient."""

    def __init__(self, name):
        self.changed = name

    def chunk(self, call: SequenceCall) -> Result:
        return super().chunk(call.with_(**{self.changed: getattr(call, self.changed).detach()}))


class DroppedStateGradient(TorchBackend):
    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        return o, final.detach() + 0 * final


class NoGradient(TorchBackend):
    def chunk(self, call: SequenceCall) -> Result:
        with torch.no_grad():
            return super().chunk(call)


class _Miscounted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, option):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Miscounted(TorchBackend):
    """Its backward returns one gradient for two inputs."""

    def chunk(self, call: SequenceCall) -> Result:
        return super().chunk(call.with_(q=_Miscounted.apply(call.q, 64)))


class InputsChanged(TorchBackend):
    """Doubles v in place while it goes backwards."""

    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        memory = call.v.detach()

        def double(grad):
            memory.mul_(2)
            return grad

        return _Bent.apply(o, double), final


class MarksInputs(TorchBackend):
    """Makes every input ask for a gradient."""

    def chunk(self, call: SequenceCall) -> Result:
        call.q.requires_grad_()
        return super().chunk(call)


def last_tokens_dropped(grad):
    return torch.cat([grad[:, :-5], torch.zeros_like(grad[:, -5:])], 1)


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_the_torch_backend_passes(form):
    cases = list(PROBE.cases(Plan(operator("gated_delta_rule"), form, "smoke", "cpu")))
    for case in (cases[2], cases[4], cases[7]):
        result = check(TorchBackend(), case)
        assert result.status is Status.PASS, result.message


def test_every_layout_pack_group_and_cotangent_is_covered():
    cases = list(PROBE.cases(Plan(operator("gated_delta_rule"), "chunk", "smoke", "cpu")))
    assert {"both", "o-only", "state-only", "varlen", "some-inputs", "parameters", "blocks"} == {
        case.label for case in cases
    }
    assert {case.layout for case in cases} == {"k_first", "v_first"}
    assert all(case.K != case.V for case in cases)
    assert any(0 in (case.seqlens or ()) and case.HV > case.H > 1 for case in cases)


def test_a_recurrence_is_walked_back_over_more_tokens_than_a_kernel_keeps_at_once():
    pytest.importorskip("triton")
    from deltaproof.ops.common.triton_tables import SEGMENT

    cases = list(PROBE.cases(Plan(operator("gated_delta_rule"), "recurrent", "smoke", "cpu", interpreted=True)))
    assert any(case.seqlens and case.seqlens[0] > SEGMENT < case.seqlens[-1] for case in cases)


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias"])
def test_a_wrong_gradient_of_any_input_fails(name):
    case = SMALL.but(label="o-only", gate_in_kernel=True)
    result = check(Bent(name, lambda grad: grad * 1.001), case)
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "G1", "wrong-gradient")
    assert result.location.tensor == f"gradient of {name}"


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta", "initial_state"])
def test_a_gradient_that_never_comes_fails(name):
    result = check(Detached(name))
    assert (result.status, result.clause, result.value) == (Status.FAIL, "G1", "None")
    assert f"no gradient of {name} came back" in result.message


def test_rows_of_the_partial_last_chunk_left_out_fail():
    result = check(Bent("g", last_tokens_dropped))
    assert (result.status, result.hazard) == (Status.FAIL, "wrong-gradient")
    assert result.location.chunk == 1 and result.location.token >= 16


def test_a_wrong_gradient_in_a_pack_breaks_g3():
    case = SMALL.but(label="varlen", seqlens=(9, 0, 5), tail=2)
    assert check(TorchBackend(), case).status is Status.PASS
    result = check(Bent("v", last_tokens_dropped), case)
    assert (result.status, result.clause) == (Status.FAIL, "G3")


def test_rows_in_no_sequence_have_gradient_zero():
    def fill_tail(grad):
        return torch.cat([grad[:, :-2], torch.full_like(grad[:, -2:], 1e-20)], 1)

    result = check(Bent("beta", fill_tail), SMALL.but(label="varlen", seqlens=(9, 0, 5), tail=2))
    assert result.status is Status.FAIL and result.location.token >= 14 and result.expected == "0"


def test_a_dropped_final_state_gradient_breaks_g2():
    result = check(DroppedStateGradient(), SMALL.but(label="state-only"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "G2", "wrong-gradient")
    assert check(DroppedStateGradient(), SMALL.but(label="o-only")).status is Status.PASS


def test_outputs_without_a_graph_fail():
    result = check(NoGradient())
    assert (result.status, result.clause) == (Status.FAIL, "G1")
    assert "no gradient function" in result.message


def test_a_backward_that_returns_another_number_of_gradients_is_gradient_arity():
    result = check(Miscounted())
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "G1", "gradient-arity")


def test_an_input_changed_by_backward_breaks_m2():
    result = check(InputsChanged())
    assert (result.status, result.clause) == (Status.FAIL, "M2")
    assert result.message.startswith("v: ")


def test_an_input_that_asked_for_no_gradient_must_not_be_marked():
    result = check(MarksInputs(), SMALL.but(label="some-inputs"))
    assert (result.status, result.clause) == (Status.FAIL, "G1")
    assert result.message.startswith("q was given a gradient")


def test_a_backend_that_declares_no_backward_is_unsupported():
    backend = TorchBackend()
    backend.unsupported = {"backward": "forward only"}
    result = check(backend)
    assert (result.status, result.reason) == (Status.UNSUPPORTED, "backward: forward only")
