"""The adapter to fla for Kimi delta attention, on the stand-in: what differs from the gated delta rule."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from deltaproof import ContractError, StateLayout
from deltaproof.backends import registry
from deltaproof.backends.adapters import ADAPTERS, fla_modes
from deltaproof.backends.adapters.watched import ForeignKernels
from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from tests.backends import fake_fla

OPERATOR = "kda"
NAMES = ["fla", "fla:default", "fla:tilelang", "fla:intracard"]
ALWAYS = {
    "device:cpu",
    "recurrent/backward",
    "sync_free_varlen",
    "chunk/chunk_size:16",
    "chunk/state:bfloat16",
    "chunk/state:float16",
    "gate_without_rate",
    "chunk_states",
}


def load(name: str = "fla", operator: str = OPERATOR) -> Any:
    return registry.load(name, operator)


def calls() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = importlib.import_module("fla.ops.kda").CALLS
    return found


def call(*, grad: bool = False, **changes: Any) -> SequenceCall:
    q, k, v = torch.ones(1, 5, 2, 16), torch.ones(1, 5, 2, 16), torch.ones(1, 5, 4, 24)
    q.requires_grad_(grad)
    g, beta = torch.zeros(1, 5, 4, 16), torch.ones(1, 5, 4)
    options = {name: changes.pop(name) for name in list(changes) if name in DeltaRuleOptions.__dataclass_fields__}
    return SequenceCall(q, k, v, g, beta, DeltaRuleOptions(**{"scale": 0.5, **options}), **changes)


def lacks(form: str, wanted: SequenceCall) -> set[str]:
    return set(registry.missing(load(), form, wanted)) - {"device:cpu"}


def test_each_mode_is_found_by_its_name_and_never_chosen(install_fla):
    install_fla()
    own = list(registry.find_operator(OPERATOR).backends)
    assert list(ADAPTERS[OPERATOR]) == NAMES
    assert registry.names(OPERATOR)[: len(own) + 4] == own + NAMES
    assert [name for name, _ in registry.usable(OPERATOR)] == own
    backend = load()
    assert (backend.name, backend.operator) == ("fla", "kda")


@pytest.mark.parametrize("name", ["fla:default", "fla:intracard", "fla:tilelang"])
def test_a_mode_is_the_process_s_whichever_operator_was_loaded_first(install_fla, name):
    install_fla(tilelang="")
    assert load(name, "gated_delta_rule").operator == "gated_delta_rule"
    assert load(name).name == name
    with pytest.raises(ContractError, match=f"expected {name}, the one mode of fla"):
        load("fla")


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_arguments_go_by_fla_s_names_and_as_they_are(install_fla, form):
    install_fla()
    given = call(
        initial_state=torch.ones(2, 4, 24, 16),
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 2, 4], dtype=torch.int32),
        A_log=torch.zeros(4),
        dt_bias=torch.arange(64.0).view(4, 16),
        scale=0.7,
        normalize_qk=True,
        gate_in_kernel=True,
        beta_sigmoid=True,
        neg_eigval=True,
        lower_bound=-3.0,
        safe_gate=True,
        layout=StateLayout.V_FIRST,
        chunk_size=32,
    )
    getattr(load(), form)(given)
    (called, seen), *more = calls()
    assert called == form and not more
    for name in ("q", "k", "v", "g", "beta", "initial_state", "cu_seqlens", "A_log"):
        assert seen[name] is getattr(given, name), f"{name} is passed on itself: no copy, cast or other order"
    assert seen["dt_bias"].shape == (64,) and seen["dt_bias"].data_ptr() == given.dt_bias.data_ptr(), "a view of it"
    on = ("output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel",
          "allow_neg_eigval", "state_v_first")  # fmt: skip
    assert {name: seen[name] for name in on} == dict.fromkeys(on, True)
    assert (seen["scale"], seen["lower_bound"]) == (0.7, -3.0)
    own = {name: seen[name] for name in ("chunk_size", "safe_gate") if name in seen}
    assert own == ({"chunk_size": 32, "safe_gate": True} if form == "chunk" else {}), "recurrent has no such argument"


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_nothing_is_asked_of_fla_that_was_not_asked_of_the_adapter(install_fla, form):
    install_fla()
    getattr(load(), form)(call())
    _, seen = calls()[0]
    off = ("output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel",
           "allow_neg_eigval", "state_v_first")  # fmt: skip
    assert {name: seen[name] for name in off} == dict.fromkeys(off, False)
    absent = ("initial_state", "cu_seqlens", "A_log", "dt_bias", "lower_bound")
    assert [seen[name] for name in absent] == [None] * 5
    assert not seen.get("safe_gate", False) and not seen.get("return_intermediate_states", False)


def test_the_gradient_of_the_bias_has_the_caller_s_shape(install_fla):
    install_fla()
    bias = torch.zeros(4, 16, requires_grad=True)
    load().chunk(call(gate_in_kernel=True, A_log=torch.zeros(4), dt_bias=bias))
    calls()[0][1]["dt_bias"].sum().backward()
    assert bias.grad is not None and bias.grad.shape == (4, 16)


def test_what_ran_is_kept_by_form(install_fla):
    install_fla()
    backend = load()
    backend.recurrent(call())
    backend.chunk(call(grad=True))[0].sum().backward()
    assert backend.ran == {
        "recurrent": ("fla.ops.kernels.own_kernel",),
        "chunk": ("fla.ops.kernels.own_kernel",),
        "chunk backward": ("fla.ops.kernels.own_backward_kernel",),
    }


def test_flash_kda_is_an_error_in_fla_s_own_mode(install_fla, monkeypatch):
    install_fla()
    backend = load()
    assert backend.chunk(call())[0][0, 0, 0, 0] == 2
    monkeypatch.setitem(os.environ, "FLA_FLASH_KDA", "1")
    with pytest.raises(ForeignKernels, match="flash_kda for chunk_kda; package flash_kda"):
        backend.chunk(call(chunk_size=32))


def test_the_default_dispatch_may_pick_it_and_says_so(install_fla):
    install_fla()
    backend = load("fla:default")
    assert backend.chunk(call())[0][0, 0, 0, 0] == 4, "the stand-in's FlashKDA ran"
    assert backend.ran == {"chunk": ("flash_kda:chunk_kda",)}


def test_the_version_names_the_packages_that_this_operator_may_use(install_fla):
    install_fla()
    assert load("fla:default").version == "0.6.0 (its default dispatch; flash-kda 0.2.0)"
    assert load("fla:default", "gated_delta_rule").version == "0.6.0 (its default dispatch; flash-qla 0.1.3)"


def test_a_package_that_would_drop_the_lower_bound_without_a_word_is_refused(install_fla):
    source = fake_fla.FILES["fla/ops/kda.py"]
    install_fla(fla__ops__kda=source.replace("lower_bound=None", "lower=None"))
    with pytest.raises(ContractError, match=r"fla-core 0\.6\.0, whose chunk_kda has no lower_bound"):
        load()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fla", set()),
        ("fla:default", set()),
        ("fla:tilelang", set()),
        ("fla:intracard", {"backward", "batch_invariant"}),
    ],
)
def test_what_fla_refuses_or_has_no_argument_for_is_declared(install_fla, name, more):
    install_fla(tilelang="")
    assert set(load(name).unsupported) == ALWAYS | more


def test_the_kernel_refused_on_hopper_is_not_one_of_its_backward(install_fla):
    utils = fake_fla.FILES["fla/utils.py"].replace("IS_NVIDIA_HOPPER = False", "IS_NVIDIA_HOPPER = True")
    install_fla(fla__utils=utils)
    assert "backward" not in load().unsupported
    assert "backward" in load(operator="gated_delta_rule").unsupported
    assert lacks("chunk", call(grad=True)) == set()
    assert lacks("recurrent", call(grad=True)) == {"backward"}


@pytest.mark.parametrize(
    ("changes", "chunk", "recurrent"),
    [
        ({"chunk_size": 16}, {"chunk_size:16"}, set()),
        ({"chunk_size": 32}, set(), set()),
        ({"initial_state": torch.ones(1, 4, 16, 24, dtype=torch.bfloat16)}, {"state:bfloat16"}, set()),
        ({"initial_state": torch.ones(1, 4, 16, 24, dtype=torch.float16)}, {"state:float16"}, set()),
        ({"initial_state": torch.ones(1, 4, 16, 24)}, set(), set()),
        ({"gate_in_kernel": True}, {"gate_without_rate"}, {"gate_without_rate"}),
        ({"gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True}, set(), set()),
        ({"gate_in_kernel": True, "A_log": torch.zeros(4)}, set(), set()),
        ({"chunk_states": torch.ones(1, 1, 4, 16, 24)}, {"chunk_states"}, {"chunk_states"}),
    ],
)
def test_a_call_is_refused_for_what_its_form_lacks_and_nothing_else(install_fla, changes, chunk, recurrent):
    install_fla()
    assert lacks("chunk", call(**changes)) == chunk
    assert lacks("recurrent", call(**changes)) == recurrent


def test_the_switches_are_those_of_the_mode(install_fla):
    install_fla()
    load("fla:intracard")
    seen = {name: os.environ[name] for name in fla_modes.SWITCHES if name in os.environ}
    assert seen == {**fla_modes.OFF, "FLA_INTRACARD_CP": "1"}


def test_the_split_inside_the_card_is_called_in_inference_mode(install_fla):
    source = fake_fla.FILES["fla/ops/kda.py"]
    mark = 'CALLS.append(("chunk", {"inference": __import__("torch").is_inference_mode_enabled()}))'
    install_fla(fla__ops__kda=source.replace('CALLS.append(("chunk", {**locals(), **kwargs}))', mark))
    o, _ = load("fla:intracard").chunk(call(grad=True))
    assert calls()[0][1]["inference"] and not o.is_inference() and not o.requires_grad
