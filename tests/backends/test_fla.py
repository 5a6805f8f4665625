"""The adapter to fla, on a stand-in for the package: what it passes on, which mode it is in, what it lets run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from deltaproof import ContractError, StateLayout
from deltaproof.backends import registry
from deltaproof.backends.adapters import ADAPTERS, fla_modes, kernels_ran
from deltaproof.backends.adapters.watched import ForeignKernels
from deltaproof.ops import registry as operators
from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from tests.backends import fake_fla

OPERATOR = "gated_delta_rule"
NAMES = ["fla", "fla:default", "fla:tilelang", "fla:intracard"]


def load(name: str = "fla") -> Any:
    return registry.load(name, OPERATOR)


def refused(name: str = "fla") -> str:
    with pytest.raises(ContractError) as caught:
        load(name)
    return str(caught.value)


def fake(module: str = "fla.ops.gated_delta_rule") -> Any:
    return importlib.import_module(module)


def call(*, T: int = 5, grad: bool = False, **changes: Any) -> SequenceCall:
    q, k = torch.ones(1, T, 2, 16), torch.ones(1, T, 2, 16)
    q.requires_grad_(grad)
    gates = torch.zeros(1, T, 4), torch.ones(1, T, 4)
    options = {name: changes.pop(name) for name in list(changes) if name in DeltaRuleOptions.__dataclass_fields__}
    options = DeltaRuleOptions(**{"scale": 0.5, **options})
    return SequenceCall(q, k, torch.ones(1, T, 4, 24), *gates, options, **changes)


def kernel(module: str, name: str) -> Any:
    def fn() -> None: ...

    fn.__module__, fn.__name__ = module, name
    return fake("fla.ops.kernels").Kernel(fn)


def switches() -> dict[str, str]:
    return {name: os.environ[name] for name in fla_modes.SWITCHES if name in os.environ}


def test_each_mode_is_a_backend_that_is_listed_and_never_chosen(install_fla, monkeypatch):
    install_fla()
    own = list(registry.find_operator(OPERATOR).backends)
    assert [name for name in ADAPTERS[OPERATOR] if name.split(":")[0] == "fla"] == NAMES
    assert registry.names(OPERATOR)[: len(own) + 4] == own + NAMES
    assert [name for name, _ in registry.usable(OPERATOR)] == own
    assert set(registry.preferred(OPERATOR, "cuda")) <= set(own)
    known = operators.operators()
    only = replace(known[OPERATOR], backends={"torch": known[OPERATOR].backends["torch"]})
    monkeypatch.setattr(operators, "operators", lambda: {OPERATOR: only})
    with pytest.raises(ContractError, match="none: torch lacks batch_invariant") as caught:
        registry.select(OPERATOR, "chunk", call(batch_invariant=True), None)
    assert "fla" not in str(caught.value) and "fla" not in sys.modules, "it is not even looked at"
    assert load("fla") is load("fla")


def test_without_the_package_the_error_names_what_to_install(monkeypatch, install_fla):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = "backend: expected package fla-core for fla:default (pip install fla-core), got no package 'fla'"
    assert refused("fla:default") == text


def test_a_package_that_cannot_be_imported_is_refused_by_what_it_lacks(install_fla):
    install_fla(fla__utils="import a_package_that_is_not_here\n")
    assert refused().endswith("(pip install fla-core), got No module named 'a_package_that_is_not_here'")


def test_a_package_that_would_drop_an_option_without_a_word_is_refused(install_fla):
    source = fake_fla.FILES["fla/ops/gated_delta_rule.py"]
    install_fla(fla__ops__gated_delta_rule=source.replace("state_v_first=False", "transpose_state_layout=False"))
    text = "expected fla-core >= 0.6.0, got fla-core 0.6.0, whose chunk_gated_delta_rule has no state_v_first"
    assert text in refused()


def test_a_dispatch_that_cannot_be_watched_is_refused(install_fla):
    install_fla(fla__backends=fake_fla.FILES["fla/backends.py"].replace("get_implementation", "implementation_of"))
    assert "a fla-core whose dispatch can be watched" in refused()


def test_a_load_that_fails_leaves_the_environment_as_it_was(install_fla, monkeypatch):
    install_fla(fla__utils="import a_package_that_is_not_here\n")
    monkeypatch.setenv("FLA_TILELANG", "1")
    refused()
    assert switches() == {"FLA_TILELANG": "1"}
    install_fla(fla__utils=fake_fla.FILES["fla/utils.py"])
    fake_fla.forget()
    assert load("fla:default").name == "fla:default", "no mode was taken by the one that failed"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fla", fla_modes.OFF),
        ("fla:default", {}),
        ("fla:tilelang", {**fla_modes.OFF, "FLA_TILELANG": "1"}),
        ("fla:intracard", {**fla_modes.OFF, "FLA_INTRACARD_CP": "1"}),
    ],
)
def test_a_mode_sets_fla_s_switches_before_fla_is_imported(install_fla, monkeypatch, name, expected):
    utils = fake_fla.FILES["fla/utils.py"] + "import os\nSEEN = dict(os.environ)\n"
    install_fla(fla__utils=utils, tilelang="")
    monkeypatch.setenv("FLA_FLASH_QLA", "1")
    assert load(name).name == name
    assert switches() == expected
    seen = fake("fla.utils").SEEN
    assert {switch: seen[switch] for switch in fla_modes.SWITCHES if switch in seen} == expected


def test_a_process_has_one_mode(install_fla):
    install_fla()
    first = load("fla")
    text = "backend: expected fla, the one mode of fla that this process was started in, got fla:default"
    assert refused("fla:default") == text
    assert switches() == dict(fla_modes.OFF), "the refusal changed nothing"
    assert type(first)().name == "fla", "the same mode may be loaded again"


def test_a_dispatch_switched_off_at_import_serves_the_mode_that_wants_it_off(install_fla, monkeypatch):
    install_fla()
    monkeypatch.setenv("FLA_DISABLE_BACKEND_DISPATCH", "1")
    assert refused("fla:default") == (
        "backend: expected fla's dispatch, which fla:default needs, got fla was imported with"
        " FLA_DISABLE_BACKEND_DISPATCH=1"
    )
    assert load("fla").version == "0.6.0 (its own Triton kernels; FLA_DISABLE_BACKEND_DISPATCH=1)"


def test_the_version_names_the_mode_and_the_packages_it_may_use(install_fla, monkeypatch):
    install_fla()
    monkeypatch.setenv("FLA_USE_TMA", "1")
    assert load("fla:default").version == "0.6.0 (its default dispatch; flash-qla 0.1.3; FLA_USE_TMA=1)"


def test_tilelang_is_refused_where_it_or_its_compiler_is_missing(install_fla):
    install_fla()
    assert "package tilelang and a CUDA compiler (nvcc) for fla:tilelang" in refused("fla:tilelang")
    utils = fake_fla.FILES["fla/utils.py"]
    fake_fla.forget()
    install_fla(tilelang="", fla__utils=utils.replace("return True", "return False"))
    assert "package tilelang and a CUDA compiler (nvcc) for fla:tilelang" in refused("fla:tilelang")
    fake_fla.forget()
    install_fla(tilelang="", fla__utils=utils)
    assert load("fla:tilelang").name == "fla:tilelang"


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_arguments_go_by_fla_s_names_and_as_they_are(install_fla, form):
    install_fla()
    given = call(
        initial_state=torch.ones(2, 4, 24, 16, dtype=torch.bfloat16),
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 2, 4], dtype=torch.int32),
        A_log=torch.zeros(4),
        dt_bias=torch.zeros(4),
        scale=0.7,
        normalize_qk=True,
        gate_in_kernel=True,
        beta_sigmoid=True,
        neg_eigval=True,
        layout=StateLayout.V_FIRST,
        chunk_size=32,
    )
    getattr(load(), form)(given)
    (called, seen), *more = fake().CALLS
    assert called == form and not more
    for name in ("q", "k", "v", "g", "beta", "initial_state", "cu_seqlens", "A_log", "dt_bias"):
        assert seen[name] is getattr(given, name), f"{name} is passed on itself: no copy, cast or other order"
    on = ("output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel",
          "allow_neg_eigval", "state_v_first")  # fmt: skip
    assert {name: seen[name] for name in on} == dict.fromkeys(on, True)
    assert seen["scale"] == 0.7
    assert seen.get("chunk_size") == (32 if form == "chunk" else None)


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_nothing_is_asked_of_fla_that_was_not_asked_of_the_adapter(install_fla, form):
    install_fla()
    getattr(load(), form)(call())
    _, seen = fake().CALLS[0]
    off = ("output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel",
           "allow_neg_eigval", "state_v_first")  # fmt: skip
    assert {name: seen[name] for name in off} == dict.fromkeys(off, False)
    assert [seen[name] for name in ("initial_state", "cu_seqlens", "A_log", "dt_bias")] == [None] * 4


def test_results_are_not_repaired(install_fla):
    install_fla()
    o, final = load().chunk(call(initial_state=torch.ones(1, 4, 16, 24, dtype=torch.bfloat16)))
    assert torch.equal(o, torch.full((1, 5, 4, 24), 2.0))
    assert final.shape == (2,) and final.dtype == torch.float32, "shape and dtype as fla returned them, wrong or not"


def test_what_ran_is_kept_by_form(install_fla):
    install_fla()
    backend = load()
    backend.recurrent(call())
    o, _ = backend.chunk(call(grad=True))
    o.sum().backward()
    assert backend.ran == {
        "recurrent": ("fla.ops.kernels.own_kernel",),
        "chunk": ("fla.ops.kernels.own_kernel",),
        "chunk backward": ("fla.ops.kernels.own_backward_kernel",),
    }


@pytest.mark.parametrize("place", ["MORE", "MORE_BACKWARD"])
def test_a_kernel_that_is_not_fla_s_own_is_an_error(install_fla, place):
    install_fla()
    backend = load()
    getattr(fake("fla.ops.kernels"), place).append(kernel("flash_qla.ops.forward", "fused"))
    with pytest.raises(ForeignKernels, match=r"fla \(its own Triton kernels\): in chunk.* ran flash_qla.ops.forward"):
        backend.chunk(call(grad=True))[0].sum().backward()
    with pytest.raises(ForeignKernels):
        backend.chunk(call(grad=True))[0].sum().backward()


def test_a_pick_of_the_dispatcher_is_an_error_where_the_mode_allows_none(install_fla, monkeypatch):
    install_fla()
    backend = load()
    assert backend.chunk(call())[0][0, 0, 0, 0] == 2
    monkeypatch.setenv("FLA_FLASH_QLA", "1")
    with pytest.raises(ForeignKernels, match="flash_qla for chunk_gated_delta_rule; package flash_qla"):
        backend.chunk(call(chunk_size=32))


def test_the_default_dispatch_may_pick_and_the_pick_is_kept(install_fla):
    install_fla()
    backend = load("fla:default")
    o, _ = backend.chunk(call())
    assert o[0, 0, 0, 0] == 3, "the stand-in's FlashQLA ran"
    assert backend.ran == {"chunk": ("flash_qla:chunk_gated_delta_rule",)}


def test_a_backend_that_was_asked_and_has_no_such_function_is_no_pick(install_fla):
    install_fla()
    backend = load("fla:intracard")
    backend.chunk(call())
    assert backend.ran == {"chunk": ("fla.ops.kernels.own_kernel",)}


def test_only_the_first_call_of_a_kind_is_watched(install_fla):
    install_fla()
    backend = load()
    Kernel = fake("fla.ops.kernels").Kernel
    BaseBackend = fake("fla.backends").BaseBackend
    before = Kernel.run, BaseBackend.get_implementation
    seen = []
    watched = kernels_ran.Recording._launched

    def noting(self: Any, *arguments: Any) -> None:
        seen.append(Kernel.run is not before[0])
        watched(self, *arguments)

    kernels_ran.Recording._launched = noting
    try:
        for _ in range(3):
            backend.chunk(call())
        assert seen == [True]
        backend.chunk(call(layout=StateLayout.V_FIRST))
        backend.chunk(call(T=100))
        assert seen == [True] * 3, "another layout and another length are other kinds"
    finally:
        kernels_ran.Recording._launched = watched
    assert (Kernel.run, BaseBackend.get_implementation) == before
    assert Kernel.launched == 5


def test_a_call_that_raises_leaves_nothing_watched(install_fla):
    install_fla()
    backend = load()
    kernels = fake("fla.ops.kernels")
    before = kernels.Kernel.run
    kernels.MORE.append(None)
    with pytest.raises(AttributeError):
        backend.chunk(call())
    assert kernels.Kernel.run is before and backend.ran == {}
    kernels.MORE.clear()
    kernels.MORE_BACKWARD.append(None)
    with pytest.raises(AttributeError):
        backend.chunk(call(grad=True))[0].sum().backward()
    kernels.MORE_BACKWARD.clear()
    backend.chunk(call(grad=True))[0].sum().backward()
    assert kernels.Kernel.run is before
    assert backend.ran["chunk backward"] == ("fla.ops.kernels.own_backward_kernel",)


@pytest.mark.parametrize("grad", [False, True])
def test_the_split_inside_the_card_is_called_in_inference_mode(install_fla, grad):
    source = fake_fla.FILES["fla/ops/gated_delta_rule.py"]
    mark = 'CALLS.append(("chunk", {**locals(), **kwargs, "inference": torch.is_inference_mode_enabled()}))'
    install_fla(fla__ops__gated_delta_rule=source.replace('CALLS.append(("chunk", {**locals(), **kwargs}))', mark))
    backend = load("fla:intracard")
    o, final = backend.chunk(call(grad=grad))
    assert fake().CALLS[0][1]["inference"]
    assert not o.is_inference() and not final.is_inference() and not o.requires_grad
    assert backend.unsupported["backward"].endswith("torch.inference_mode alone")


def test_what_fla_refuses_is_declared_where_it_refuses_it(install_fla):
    install_fla()
    base = load().unsupported
    assert set(base) == {"device:cpu", "recurrent/backward", "sync_free_varlen"}
    grad = call(grad=True)
    with pytest.raises(ContractError, match="a backend that supports backward, device:cpu"):
        registry.select(OPERATOR, "recurrent", grad, load())
    assert set(registry.missing(load(), "chunk", grad)) == {"device:cpu"}


@pytest.mark.parametrize(
    ("name", "tilelang", "refuses"),
    [("fla", True, True), ("fla:default", True, False), ("fla:default", False, True), ("fla:tilelang", True, False)],
)
def test_the_backward_refused_on_hopper_is_declared_unless_tilelang_takes_it(install_fla, name, tilelang, refuses):
    utils = fake_fla.FILES["fla/utils.py"].replace("IS_NVIDIA_HOPPER = False", "IS_NVIDIA_HOPPER = True")
    install_fla(fla__utils=utils, **({"tilelang": ""} if tilelang else {}))
    assert ("backward" in load(name).unsupported) == refuses


def test_long_sequences_may_be_split_where_flash_qla_is_picked(install_fla):
    install_fla()
    assert "batch_invariant" in load("fla:default").unsupported


def test_nothing_splits_them_without_it(install_fla):
    install_fla(flash_qla=None)
    assert "batch_invariant" not in load("fla:default").unsupported


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_a_compiled_call_is_not_watched(install_fla, form):
    install_fla()
    backend = load()
    compiled = torch.compile(getattr(backend, form), backend="eager")
    o, _ = compiled(call())
    assert o[0, 0, 0, 0] == 2 and backend.ran == {}
    torch._dynamo.reset()
