"""The probe ``causality`` passes the torch backend bit by bit and catches every glance at a later token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_inputs import sigmoid, softplus
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.causality import APPENDED, CHANGED, DEAD, PROBE
from deltaproof.verify.target import Target


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str, label: str, tier: str = "smoke") -> list[Case]:
    plan = Plan(operator("gated_delta_rule"), form, tier, "cpu")
    return [case for case in PROBE.cases(plan) if case.label == label]


class ChunkMean(TorchBackend):
    """Refers its gates to the middle of a chunk and rounds on the way there."""

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().chunk(call)
        middle = call.g.float().mean(1, keepdim=True)[..., None]
        return (o.float() * (1 + 2.0**-20 * middle.clamp(min=-1))).to(o.dtype), final


class MaskByMultiply(TorchBackend):
    """Multiplies what lies ahead by zero, squared on the way: right until the square overflows."""

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().recurrent(call)
        ahead = (call.v.float() ** 10).sum(1, keepdim=True)
        return o + (0.0 * ahead).to(o.dtype), final


class SizedByLength(TorchBackend):
    """Chooses its chunk size by the number of tokens."""

    def sized(self, call):
        return replace(call, options=replace(call.options, chunk_size=32 if call.q.shape[1] > 100 else 64))

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().chunk(self.sized(call))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(self.sized(call))


class LastCheckpoint(TorchBackend):
    """Keeps the last state at every checkpoint."""

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        o = super().prefill(call)
        assert call.checkpoint_index is not None
        for row, slots in enumerate(call.checkpoint_index.tolist()):
            call.pool[slots] = call.pool[int(call.read_index[row])].clone()
        return o


class EndedSequences(TorchBackend):
    """Lets the end of a pack into the final state of every sequence."""

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().chunk(call)
        assert final is not None
        return o, final * (1 + 2.0**-20 * call.beta[:, -1].float().mean())


class LastTokenFirst(TorchBackend):
    """Decode adds a trace of the row's last token to its first output."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        o[:, 0] += 1e-3 * call.q[:, -1].mean()
        return o


class CountsDeadTokens(TorchBackend):
    """Decode scales by the norm of all tokens of a row, those that do not count too."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call) * (1 + 1e-4 * call.v.float().square().mean().sqrt().clamp(max=9))


class Remembers(TorchBackend):
    """Answers from a cache keyed by shape alone."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor | None]] = {}

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = tuple(call.q.shape)
        if shape not in self.known:
            self.known[shape] = super().recurrent(call)
        return self.known[shape]


@pytest.mark.parametrize("form", ["chunk", "recurrent", "decode", "prefill"])
@pytest.mark.parametrize("label", [CHANGED, APPENDED, DEAD])
def test_the_torch_backend_passes(form, label):
    for case in cases(form, label):
        result = check(TorchBackend(), case)
        assert result.status is Status.PASS, (case.id, result.message)


@pytest.mark.parametrize(
    ("backend", "form", "label", "tensor", "hazard"),
    [
        (ChunkMean, "chunk", CHANGED, "o", "unbounded-exp"),
        (MaskByMultiply, "recurrent", CHANGED, "o", "mask-by-multiply"),
        (SizedByLength, "chunk", APPENDED, "o", None),
        (SizedByLength, "prefill", APPENDED, "o", None),
        (LastTokenFirst, "decode", CHANGED, "o", "mask-by-multiply"),
        (LastTokenFirst, "decode", APPENDED, "o", None),
        (CountsDeadTokens, "decode", DEAD, "o", "mask-by-multiply"),
        (LastCheckpoint, "prefill", CHANGED, "pool", "mask-by-multiply"),
    ],
)
def test_a_backend_that_knows_the_future_fails(backend, form, label, tensor, hazard):
    result = check(backend(), cases(form, label)[0])
    assert (result.status, result.clause) == (Status.FAIL, "I3")
    assert result.location is not None and result.location.tensor == tensor
    assert result.hazard == hazard or (hazard == "unbounded-exp" and result.hazard == "mask-by-multiply")


def test_a_state_of_an_ended_sequence_that_still_changes_fails():
    pack = next(case for case in cases("chunk", CHANGED) if case.seqlens is not None)
    result = check(EndedSequences(), pack)
    assert (result.status, result.clause) == (Status.FAIL, "I3")
    assert result.location is not None and result.location.tensor == "final_state"


def test_outputs_that_do_not_follow_their_own_tokens_fail():
    result = check(Remembers(), cases("recurrent", CHANGED)[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "S0", "incomplete-cache-key")


def test_nan_before_the_cut_fails_though_it_is_there_in_both_runs():
    class Nan(TorchBackend):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            return super().decode(call).index_fill_(1, torch.tensor([0]), float("nan"))

    result = check(Nan(), cases("decode", APPENDED)[0])
    assert (result.status, result.clause) == (Status.FAIL, "I3")
    assert "not finite" in result.message


@pytest.mark.parametrize("function", [sigmoid, softplus])
def test_a_token_s_gate_and_beta_are_the_same_bits_in_a_tensor_of_any_size(function):
    x = torch.randn(4099, generator=torch.Generator().manual_seed(0)) * 6
    whole = function(x)
    for size in (*range(1, 70), 1000, 4098):
        assert torch.equal(function(x[:size]), whole[:size]), size
    strided = torch.stack([x, x], 1)[:, 0]
    assert torch.equal(function(strided), whole)


def test_they_are_the_functions_they_are_named_after_and_so_are_their_gradients():
    x = torch.linspace(-90, 90, 1801, dtype=torch.float64).requires_grad_()
    slopes = {sigmoid: torch.sigmoid(x) * torch.sigmoid(-x), softplus: torch.sigmoid(x)}
    values = {sigmoid: torch.sigmoid(x), softplus: torch.logaddexp(x, torch.zeros_like(x))}
    for function, want in values.items():
        torch.testing.assert_close(function(x), want, rtol=1e-12, atol=0)
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        torch.testing.assert_close(slope, slopes[function], rtol=1e-12, atol=0)
        extreme = torch.tensor([-1e4, 1e4]).requires_grad_()
        (slope,) = torch.autograd.grad(function(extreme).sum(), extreme)
        assert slope.tolist() == [0.0, 0.0 if function is sigmoid else 1.0]
