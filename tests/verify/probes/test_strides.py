"""The probe ``strides`` passes a right backend and catches inputs walked with strides they do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import build
from deltaproof.verify.probes._runs import arguments
from deltaproof.verify.probes.strides import PROBE, VIEWS
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
BASE = Case("recurrent", T=3, K=8, V=12)


class Dense(TorchBackend):
    """Walks one argument as if it were dense."""

    def __init__(self, name: str) -> None:
        self.walked = name

    def change(self, call: Any) -> Any:
        x = getattr(call, self.walked)
        memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        flat = memory[x.storage_offset() : x.storage_offset() + x.numel()]
        return call.with_(**{self.walked: flat.view(x.shape)})

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(self.change(call))

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(self.change(call))


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))


def test_every_view_is_used() -> None:
    cases = [case for form in PROBE.forms for case in smoke(PROBE, form)]
    assert {case.label for case in cases} == set(VIEWS)
    assert all(len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form)) for form in PROBE.forms)


@pytest.mark.parametrize("label", list(VIEWS))
def test_a_view_has_values_and_strides_of_its_own(label: str) -> None:
    case = BASE.but(form="decode" if label == "indices" else "recurrent", gate_in_kernel=True, write=(4, 5))
    given = arguments(build(case, 0))
    views = VIEWS[label](dict(given))
    assert views
    for name, view in views.items():
        want = given[name] if label != "expanded" else given[name][:1].expand(given[name].shape)
        assert not view.is_contiguous() and torch.equal(view, want), name


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta"])
@pytest.mark.parametrize("label", ["head-first", "fused", "second-tokens", "second-channels", "expanded"])
def test_tokens_walked_as_dense_are_caught(label: str, name: str) -> None:
    assert_fail(check(Dense(name), PROBE, BASE.but(label=label)), "M3", "assumed-contiguous")


def test_states_parameters_and_indices_walked_as_dense_are_caught() -> None:
    for label in ("state-transposed", "second-states", "expanded"):
        assert_fail(check(Dense("initial_state"), PROBE, BASE.but(label=label)), "M3", "assumed-contiguous")
    gated = BASE.but(label="parameters", gate_in_kernel=True)
    assert_fail(check(Dense("A_log"), PROBE, gated), "M3", "assumed-contiguous")
    assert_fail(check(Dense("dt_bias"), PROBE, gated), "M3", "assumed-contiguous")
    rows = BASE.but(form="decode", label="indices", num_tokens=(3, 2), write=(4, 5))
    for name in ("read_index", "write_index", "num_tokens"):
        assert_fail(check(Dense(name), PROBE, rows), "M3", "assumed-contiguous")


def test_a_backend_called_directly_may_refuse_a_view() -> None:
    class Picky(TorchBackend):
        def recurrent(self, call: SequenceCall) -> Result:
            if not call.q.is_contiguous():
                raise ValueError("q must be contiguous")
            return super().recurrent(call)

    assert_pass(check(Picky(), PROBE, BASE.but(label="fused")))
    assert check(Picky(), PROBE, BASE.but(label="fused"), face=True).status.value == "fail"


def test_a_backend_that_cannot_repeat_itself_is_held_to_the_oracle() -> None:
    backend = Dense("k")
    backend.unsupported = {"I1": "sums in any order"}
    found = check(backend, PROBE, BASE.but(label="head-first"))
    assert_fail(found, "M3", "assumed-contiguous")
    right = TorchBackend()
    right.unsupported = {"I1": "sums in any order"}
    assert_pass(check(right, PROBE, BASE.but(label="expanded")))
