"""The probe ``compile`` passes the torch backend and catches what only a compiled call does wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.observation import Observation
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.compile import PROBE, PUBLIC, _opcheck
from deltaproof.verify.target import Target


def context(backend: TorchBackend) -> Context:
    return Context(Target(backend, operator("gated_delta_rule"), "test", face=False), seed=0, device="cpu")


def check(backend: TorchBackend, case: Case) -> Check:
    return execute(context(backend), PROBE, case)


def first(form: str) -> Case:
    return next(PROBE.cases(Plan(operator("gated_delta_rule"), form, "smoke", "cpu")))


def small(form: str) -> Case:
    """Return a case that compiles fast."""
    return Case(form, B=1, T=2, H=1, HV=1, K=8, V=4, normalize=False, scale=0.7, slots=3)


class OtherScale(TorchBackend):
    """Drops the caller's scale when compiled."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        if torch.compiler.is_compiling():
            o = o * (call.options.scale**-1 * call.q.shape[-1] ** -0.5)
        return o


class TracedValue(TorchBackend):
    """Right at the first compiled call, and off by a little at every later one."""

    def __init__(self) -> None:
        self.calls = 0

    @torch._dynamo.disable
    def factor(self) -> float:
        self.calls += 1
        return 1.0 if self.calls == 1 else 1.0 + 2.0**-10

    def decode(self, call: DecodeCall) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().decode(call) * self.factor()
        return super().decode(call)


class OneUlp(TorchBackend):
    """Within every bound, but not what the eager call gives."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        return o * (1 + 2.0**-23) if torch.compiler.is_compiling() else o


def test_the_torch_backend_passes():
    result = check(TorchBackend(), first("decode"))
    assert result.status is Status.PASS, result.message


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chunk", "recurrent", "prefill"])
def test_the_torch_backend_passes_in_every_other_form(form):
    result = check(TorchBackend(), first(form))
    assert result.status is Status.PASS, result.message


@pytest.mark.parametrize(
    ("backend", "hazard", "words"),
    [
        (OtherScale, "unthreaded-option", "o: "),
        (TracedValue, "incomplete-cache-key", "o: "),
        (OneUlp, "unthreaded-option", "compiled and not compiled"),
    ],
)
def test_a_backend_that_is_another_function_once_compiled_fails(backend, hazard, words):
    result = check(backend(), small("decode"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "S0", hazard)
    assert words in result.message


def test_a_compilation_that_raises_fails_with_what_it_said(monkeypatch):
    def broken(function, **options):
        def raises(call):
            raise NotImplementedError("there is no fake implementation\nand much more")

        return raises

    monkeypatch.setattr(torch, "compile", broken)
    result = check(TorchBackend(), small("decode"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "S0", "unthreaded-option")
    assert result.message.endswith("NotImplementedError: there is no fake implementation")


def test_a_lost_gradient_fails():
    class Detached(TorchBackend):
        def recurrent(self, call):
            if torch.compiler.is_compiling():
                call = call.with_(beta=call.beta.detach())
            return super().recurrent(call)

    result = check(Detached(), small("recurrent"))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "S0", "unthreaded-option")
    assert "gradient of beta" in result.message


def test_what_the_backend_declares_is_not_compiled():
    class Eager(TorchBackend):
        unsupported: Mapping[str, str] = {"compile": "launches kernels by hand"}

    result = check(Eager(), first("chunk"))
    assert (result.status, result.reason) == (Status.UNSUPPORTED, "compile: launches kernels by hand")


def test_a_foreign_backend_is_not_asked_for_by_the_public_functions():
    assert check(TorchBackend(), small("decode").but(label=PUBLIC)).status is Status.UNSUPPORTED


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    found = torch.library.Library("deltaproof_test", "FRAGMENT")
    yield found
    found._destroy()


def seen(ops: Mapping[str, object], form: str = "chunk") -> list[Observation]:
    class WithOps(TorchBackend):
        custom_ops = ops

    return list(_opcheck(small(form), context(WithOps())))


def test_a_right_custom_operator_passes_opcheck_and_is_looked_at_once(library):
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
    torch.library.register_fake("deltaproof_test::double", torch.empty_like, lib=library)
    ops = {"deltaproof_test::double": lambda: (torch.ones(3),)}
    observations = seen(ops)
    assert len(observations) >= 3
    assert all(item.ok for item in observations), [item.message for item in observations]
    assert seen(ops, "decode") == []


def test_a_custom_operator_whose_schema_hides_a_mutation_fails_opcheck(library):
    library.define("grow(Tensor x) -> Tensor")
    library.impl("grow", lambda x: x.add_(1).clone(), "CompositeExplicitAutograd")
    torch.library.register_fake("deltaproof_test::grow", torch.empty_like, lib=library)
    failed = [item for item in seen({"deltaproof_test::grow": lambda: (torch.ones(3),)}) if not item.ok]
    assert failed and all(item.clause == "S0" for item in failed)
    assert any("test_schema" in item.message for item in failed)


def test_a_name_that_is_no_operator_fails():
    (observation,) = seen({"deltaproof_test::absent": tuple})
    assert not observation.ok and "no registered operator" in observation.message


def test_a_backend_without_custom_operators_has_nothing_to_check():
    assert list(_opcheck(small("chunk"), context(TorchBackend()))) == []
