"""The adapter to FlashQLA, on a stand-in: what it passes on, what it declares, what it lets run."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from deltaproof import ContractError, StateLayout
from deltaproof.backends import registry
from deltaproof.backends.adapters.watched import ForeignKernels
from deltaproof.contracts.conventions import GateSpace
from tests.backends.fake_flash_qla import FILES
from tests.backends.peer_calls import BFLOAT16, off, sequence

OPERATOR = "gated_delta_rule"
NAMES = ["flash_qla", "flash_qla:split", "flash_qla:unsplit"]
INIT, JIT = "flash_qla/__init__.py", "tilelang/jit.py"
FORWARD = ("flash_qla.kernels.tilelang_fused_chunk_gdr_fwd", "flash_qla.kernels.tilelang_kkt_solve")


def load(name: str = "flash_qla") -> Any:
    return registry.load(name, OPERATOR)


def refused(name: str = "flash_qla") -> str:
    with pytest.raises(ContractError) as caught:
        load(name)
    return str(caught.value)


def fake(module: str = "flash_qla") -> Any:
    return importlib.import_module(module)


def test_each_mode_is_a_backend_that_is_listed_and_never_chosen(install_flash_qla):
    install_flash_qla()
    own = list(registry.find_operator(OPERATOR).backends)
    assert [name for name in registry.names(OPERATOR) if name.startswith("flash_qla")] == NAMES
    assert [name for name, _ in registry.usable(OPERATOR)] == own
    assert [load(name).name for name in NAMES] == NAMES
    texts = [load(name).version for name in NAMES]
    assert texts[0] == "0.1.3 (tilelang 0.1.15; sequences split inside the card where it decides so)"
    assert len(set(texts)) == 3


def test_without_the_package_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = "backend: expected package flash-qla for flash_qla (pip install flash-qla), got no package 'flash_qla'"
    assert refused() == text


def test_without_what_it_needs_the_error_names_that(install_flash_qla):
    install_flash_qla(**{"flash_qla/rule.py": "import a_package_that_is_not_here\n"})
    assert refused().endswith("(pip install flash-qla), got No module named 'a_package_that_is_not_here'")


def test_without_a_gpu_that_it_supports_the_error_says_so(install_flash_qla):
    install_flash_qla(
        **{"flash_qla/rule.py": 'raise ValueError("FlashQLA now support sm90 only. Found: 8.0\\nmore")\n'}
    )
    text = refused()
    assert "expected a GPU that flash-qla supports, and nvcc (compute capability 9.0, 10.0," in text
    assert text.endswith("got FlashQLA now support sm90 only. Found: 8.0")


def test_an_older_package_is_refused_by_the_argument_it_lacks(install_flash_qla):
    install_flash_qla(**{INIT: FILES[INIT].replace("force_intra_cp", "forced")})
    text = "expected flash-qla >= 0.1.3, got flash-qla 0.1.3, whose chunk_gated_delta_rule has no force_intra_cp"
    assert text in refused()


def test_a_tilelang_that_cannot_be_watched_is_refused(install_flash_qla):
    install_flash_qla(**{JIT: FILES[JIT].replace("JITKernel", "Kernel") + "\nJITKernel = None\n"})
    assert refused().endswith("expected a tilelang whose kernels can be watched, as 0.1.15, got tilelang 0.1.15")


@pytest.mark.parametrize("layout", list(StateLayout))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state": None},
        {"normalize_qk": True, "HV": 3},
        {"H": 2, "HV": 4, "T": 3},
        {"scale": 1.5, "dtype": torch.float16},
    ],
)
def test_its_conventions_are_ours(install_flash_qla, layout, packed, options):
    install_flash_qla()
    call = sequence(layout=layout, packed=packed, **options)
    found = load().chunk(call)
    assert found[0].dtype == call.v.dtype and found[1].dtype == torch.float32
    assert off(call, found) < BFLOAT16


@pytest.mark.parametrize(
    "swap",
    [
        {"state_v_first": True},
        {"scale": 1.0},
        {"use_qk_l2norm_in_kernel": True},
        {"initial_state": None},
        {"cu_seqlens": torch.tensor([0, 3, 5])},
        {"g": torch.ones(1, 5, 2)},
        {"beta": torch.ones(1, 5, 2)},
    ],
)
def test_a_convention_that_is_swapped_shows(install_flash_qla, swap):
    install_flash_qla()
    backend, call = load(), sequence(packed=True)
    given = backend._package.chunk
    object.__setattr__(backend._package, "chunk", lambda **arguments: given(**{**arguments, **swap}))
    assert off(call, backend.chunk(call)) > 5 * BFLOAT16


def test_swapped_queries_and_keys_show(install_flash_qla):
    install_flash_qla()
    backend, call = load(), sequence(packed=True)
    given = backend._package.chunk
    swapped = lambda q, k, **more: given(q=k, k=q, **more)  # noqa: E731
    object.__setattr__(backend._package, "chunk", swapped)
    assert off(call, backend.chunk(call)) > 5 * BFLOAT16


def test_arguments_go_on_as_they_are(install_flash_qla):
    install_flash_qla()
    call = sequence(packed=True, layout=StateLayout.V_FIRST, state=torch.bfloat16, scale=0.7, normalize_qk=True)
    _, final = load().chunk(call)
    (seen,) = fake().CALLS
    for name in ("q", "k", "v", "g", "beta", "initial_state", "cu_seqlens"):
        assert seen[name] is getattr(call, name), f"{name} is passed on itself: no copy, cast or other order"
    assert seen["scale"] == 0.7 and seen["use_qk_l2norm_in_kernel"] and seen["state_v_first"]
    assert seen["output_final_state"] and not seen["head_first"] and seen["cp_context"] is None
    assert final.dtype == torch.float32, "as it came, although the initial state is bfloat16"


def test_nothing_is_asked_of_it_that_was_not_asked_of_the_adapter(install_flash_qla):
    install_flash_qla()
    _, final = load().chunk(sequence(state=None, output_final_state=False))
    (seen,) = fake().CALLS
    assert final is None and seen["cu_seqlens"] is None and seen["initial_state"] is None
    assert not (seen["use_qk_l2norm_in_kernel"] or seen["state_v_first"] or seen["output_final_state"])


@pytest.mark.parametrize(
    ("name", "invariant", "splits"),
    [
        ("flash_qla", False, (True, False)),
        ("flash_qla", True, (False, False)),
        ("flash_qla:split", False, (True, True)),
        ("flash_qla:unsplit", False, (False, False)),
    ],
)
def test_what_is_split_is_the_mode_s_and_nothing_is_where_batches_may_not_matter(
    install_flash_qla, name, invariant, splits
):
    install_flash_qla()
    load(name).chunk(sequence(batch_invariant=invariant))
    (seen,) = fake().CALLS
    assert (seen["auto_cp"], seen["force_intra_cp"]) == splits


@pytest.mark.parametrize("layout", list(StateLayout))
def test_gradients_are_its_own(install_flash_qla, layout):
    from deltaproof.ops.gated_delta_rule import oracle

    install_flash_qla()
    backend, call = load(), sequence(layout=layout, grad=True, dtype=torch.float16)
    names = ("q", "k", "v", "g", "beta", "initial_state")
    leaves = [getattr(call, name) for name in names]
    o, final = backend.chunk(call)
    weights = torch.linspace(-1, 1, o.numel()).view(o.shape), torch.linspace(1, -1, final.numel()).view(final.shape)
    found = torch.autograd.grad((o, final), leaves, (weights[0].half(), weights[1]))
    want = torch.autograd.grad(oracle.sequence(call), leaves, [weights[0].half().double(), weights[1].double()])
    for name, x, y in zip(names, found, want, strict=True):
        torch.testing.assert_close(x.double(), y.double(), atol=2e-3 * float(y.abs().max()), rtol=0, msg=name)
    assert backend.ran["chunk backward"] == ("flash_qla.kernels.tilelang_fused_chunk_gdr_bwd",)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"dtype": torch.float32}, "dtype:float32"),
        ({"gate_in_kernel": True}, "gate_in_kernel"),
        ({"beta_sigmoid": True}, "beta_sigmoid"),
        ({"chunk_size": 32}, "chunk_size:32"),
        ({"T": 0}, "empty"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(install_flash_qla, changes, lacks):
    install_flash_qla()
    backend = load()
    missing = registry.missing(backend, "chunk", sequence(**changes))
    assert set(missing) == {lacks, "device:cpu"} and missing[lacks] == backend.unsupported[lacks]
    with pytest.raises(ContractError, match=lacks):
        registry.select(OPERATOR, "chunk", sequence(**changes), backend)


def test_other_heads_dtypes_and_forms_are_refused(install_flash_qla):
    install_flash_qla()
    backend, call = load(), sequence(state=None)
    narrow = call.with_(q=call.q[..., :64], k=call.k[..., :64])
    assert "head_size:64" in registry.missing(backend, "chunk", narrow)
    assert "head_size:64" not in registry.missing(backend, "chunk", call)
    assert "mixed_dtypes" in registry.missing(backend, "chunk", call.with_(v=call.v.half()))
    states = torch.empty(2, 1, 2, 128, 128)
    assert "chunk_states" in registry.missing(backend, "chunk", call.with_(chunk_states=states))
    assert registry.missing(backend, "recurrent", call) == {"recurrent": "flash_qla has no form 'recurrent'"}
    assert backend.conventions.gate is GateSpace.LOG, "gates go on as logs"


def test_batch_invariance_is_refused_where_everything_is_split(install_flash_qla):
    install_flash_qla()
    call = sequence(batch_invariant=True)
    assert "batch_invariant" in registry.missing(load("flash_qla:split"), "chunk", call)
    assert "batch_invariant" not in registry.missing(load("flash_qla"), "chunk", call)
    assert "empty" not in load("flash_qla:unsplit").unsupported


def test_what_ran_is_kept_by_form(install_flash_qla):
    install_flash_qla()
    backend = load("flash_qla:split")
    backend.chunk(sequence())
    assert backend.ran == {"chunk": tuple(sorted((*FORWARD, "flash_qla.kernels.tilelang_correct_h0")))}
    plain = load()
    plain.chunk(sequence())
    assert plain.ran == {"chunk": FORWARD}


def test_a_call_in_which_its_kernels_did_not_run_is_an_error(install_flash_qla):
    install_flash_qla()
    fake("flash_qla.kernels").FORWARD.clear()
    with pytest.raises(ForeignKernels, match=r"in chunk there ran no tilelang_fused_chunk_gdr_fwd of FlashQLA"):
        load().chunk(sequence())


def test_a_backward_without_its_kernel_is_an_error(install_flash_qla):
    install_flash_qla()
    fake("flash_qla.kernels").BACKWARD.clear()
    o, _ = load().chunk(sequence(grad=True))
    with pytest.raises(ForeignKernels, match=r"in chunk backward there ran no tilelang_fused_chunk_gdr_bwd"):
        o.sum().backward()


def test_kernels_of_another_package_are_an_error(install_flash_qla):
    install_flash_qla()

    def other() -> None: ...

    other.__module__ = "fla.ops.tilelang"
    fake("flash_qla.kernels").FORWARD.append(fake("tilelang.jit").JITImpl(other))
    with pytest.raises(ForeignKernels, match=r"in chunk there ran fla.ops.tilelang.other"):
        load().chunk(sequence())


def test_splitting_where_the_mode_says_none_is_an_error(install_flash_qla):
    install_flash_qla()
    kernels = fake("flash_qla.kernels")
    kernels.FORWARD.extend(kernels.SPLIT)
    with pytest.raises(ForeignKernels, match="tilelang_correct_h0, which joins parts of a split sequence"):
        load("flash_qla:unsplit").chunk(sequence())
    load("flash_qla").chunk(sequence())


def test_watching_leaves_tilelang_as_it_was(install_flash_qla):
    install_flash_qla()
    jit = fake("tilelang.jit")
    before = jit.JITImpl.__call__, jit.JITKernel.__call__
    backend = load()
    backend.chunk(sequence())
    assert (jit.JITImpl.__call__, jit.JITKernel.__call__) == before
    backend.chunk(sequence())
    assert jit.JITKernel.launched.count("tilelang_fused_chunk_gdr_fwd") == 2


def test_a_compiled_call_is_not_watched(install_flash_qla):
    install_flash_qla()
    backend = load()
    from unittest.mock import patch

    with patch("torch.compiler.is_compiling", return_value=True):
        backend.chunk(sequence())
    assert backend.ran == {}


def test_the_recorded_signature_is_the_installed_one(install_flash_qla):
    try:
        distribution = importlib.metadata.distribution("flash-qla")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flash-qla is not installed")
    if distribution.version != "0.1.3":
        pytest.skip(f"recorded of 0.1.3, installed is {distribution.version}")
    install_flash_qla()
    # its import needs a GPU, its source does not
    path = distribution.locate_file("flash_qla/ops/gated_delta_rule/chunk/__init__.py")
    tree = ast.parse(Path(str(path)).read_text())
    (real,) = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "chunk_gated_delta_rule"
    ]
    names = [argument.arg for argument in real.args.args]
    defaults = [ast.literal_eval(default) for default in real.args.defaults]
    recorded = inspect.signature(fake().chunk_gated_delta_rule).parameters
    assert list(recorded) == names
    assert [one.default for one in recorded.values() if one.default is not one.empty] == defaults
