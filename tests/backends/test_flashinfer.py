"""The adapter to FlashInfer, on a stand-in: what it passes on, what it declares, what it lets run."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from deltaproof import ContractError, StateLayout
from deltaproof.backends import registry
from deltaproof.backends.adapters.watched import ForeignKernels
from deltaproof.backends.conversion import beforehand, converted
from deltaproof.contracts.conventions import GateSpace, Padding
from deltaproof.ops.gated_delta_rule import oracle
from tests.backends.fake_flashinfer import FILES, older
from tests.backends.peer_calls import BFLOAT16, off, sequence, step

OPERATOR = "gated_delta_rule"
NAMES = ["flashinfer", "flashinfer:split", "flashinfer:unsplit"]
PREFILL, DECODE = "flashinfer.gdn_prefill", "flashinfer.gdn_decode"
WHOLE, SPLIT = f"{PREFILL}.chunk_gated_delta_rule_sm90", f"{PREFILL}.cp_delta_rule_dsl_sm90"


def load(name: str = "flashinfer") -> Any:
    return registry.load(name, OPERATOR)


def refused(name: str = "flashinfer") -> str:
    with pytest.raises(ContractError) as caught:
        load(name)
    return str(caught.value)


def fake(module: str = PREFILL) -> Any:
    return importlib.import_module(module)


def call(**changes: Any) -> Any:
    """Return a call in the one layout it takes."""
    return sequence(layout=StateLayout.V_FIRST, **changes)


def taken(backend: Any, given: Any) -> Any:
    """Return a call as verify and bench give it."""
    return converted(backend.conventions, given)


def test_each_mode_is_a_backend_that_is_listed_and_never_chosen(install_flashinfer):
    install_flashinfer()
    own = list(registry.find_operator(OPERATOR).backends)
    assert [name for name in registry.names(OPERATOR) if name.startswith("flashinfer")] == NAMES
    assert [name for name, _ in registry.usable(OPERATOR)] == own
    assert [load(name).name for name in NAMES] == NAMES
    text = "0.7.2.post1; nvidia-cutlass-dsl 4.8.1 (sequences split inside the card where it decides so)"
    assert load().version == text
    with pytest.raises(ContractError, match="a backend that takes log gates of any dtype, got flashinfer"):
        registry.select(OPERATOR, "chunk", call(), load())


def test_without_the_package_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = "expected package flashinfer-python for flashinfer (pip install flashinfer-python[cu13]), got no package"
    assert text in refused()


@pytest.mark.parametrize("error", ["ImportError('No module named cutlass')", "RuntimeError('No CTK flavor')"])
def test_without_what_it_needs_the_error_names_that(install_flashinfer, error):
    install_flashinfer(**{"flashinfer/rule.py": f"raise {error}\n"})
    text = refused()
    assert "package flashinfer-python with what it needs" in text and text.endswith(error.split("'")[1])


def test_an_old_gpu_is_named(install_flashinfer, monkeypatch):
    install_flashinfer()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert refused().endswith("expected a GPU of compute capability 9.0 or more for flashinfer, got"
                              " compute capability 8.0")  # fmt: skip


def test_another_version_is_refused_by_the_argument_it_lacks(install_flashinfer):
    path = "flashinfer/gdn_prefill.py"
    install_flashinfer(**{path: FILES[path].replace("output_state", "final_state")})
    assert "whose chunk_gated_delta_rule has no output_state" in refused()


def test_gates_are_computed_beforehand_and_that_is_said(install_flashinfer):
    install_flashinfer()
    conventions, given = load().conventions, call()
    assert conventions.gate is GateSpace.LINEAR and conventions.float32_gates
    assert conventions.layouts == (StateLayout.V_FIRST,) and conventions.padding is Padding.NEGATIVE
    made = converted(conventions, given.with_(g=given.g.bfloat16(), beta=given.beta.bfloat16()))
    assert torch.equal(made.g, given.g.bfloat16().float().exp()) and made.beta.dtype == torch.float32
    assert beforehand(conventions, given) == ("exp(g)",)
    words = ("g in float32", "exp(g)", "beta in float32")
    assert beforehand(conventions, given.with_(g=given.g.bfloat16(), beta=given.beta.bfloat16())) == words
    raw = step()
    assert converted(conventions, raw) is raw and beforehand(conventions, raw) == (), "left to the kernel"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state": None},
        {"state": torch.bfloat16},
        {"normalize_qk": True, "HV": 3},
        {"H": 2, "HV": 4, "T": 3},
        {"scale": 1.5, "dtype": torch.float16},
    ],
)
def test_its_conventions_are_ours(install_flashinfer, name, packed, options):
    install_flashinfer()
    backend, given = load(name), call(packed=packed, **options)
    o, final = backend.chunk(taken(backend, given))
    assert o.dtype == given.v.dtype and o.shape == given.v.shape
    assert final.dtype == (torch.float32 if given.initial_state is None else given.initial_state.dtype)
    assert off(given, (o, final)) < BFLOAT16


@pytest.mark.parametrize(
    "swap",
    [
        {"scale": 1.0},
        {"g": None},
        {"beta": torch.ones(5, 2)},
        {"initial_state": None},
        {"cu_seqlens": torch.tensor([0, 3, 5])},
    ],
)
def test_a_convention_that_is_swapped_shows(install_flashinfer, swap):
    install_flashinfer()
    backend, given = load(), call(packed=True)
    function = backend._package.chunk
    if swap == {"g": None}:
        # the log gate in the place of the linear one
        swap = {"g": given.g[0].neg()}
    object.__setattr__(backend._package, "chunk", lambda **arguments: function(**{**arguments, **swap}))
    assert off(given, backend.chunk(taken(backend, given))) > 5 * BFLOAT16


def test_a_transposed_state_shows(install_flashinfer):
    install_flashinfer()
    backend, given = load(), call()
    turned = given.with_(initial_state=given.initial_state.transpose(-1, -2).contiguous())
    assert off(given, backend.chunk(taken(backend, turned))) > 5 * BFLOAT16


@pytest.mark.parametrize("packed", [False, True])
def test_tensors_go_on_as_views_and_outputs_come_from_the_caller_s_allocator(install_flashinfer, packed):
    install_flashinfer()
    backend = load()
    given = taken(backend, call(packed=packed, scale=0.7, normalize_qk=True))
    o, final = backend.chunk(given)
    (seen,) = fake().CALLS
    for name in ("q", "k", "v", "g", "beta"):
        assert (
            seen[name].data_ptr() == getattr(given, name).data_ptr() and seen[name].dim() < getattr(given, name).dim()
        )
    assert seen["output"].data_ptr() == o.data_ptr() and seen["output_state"] is final
    assert seen["initial_state"] is given.initial_state and seen["scale"] == 0.7 and seen["use_qk_l2norm_in_kernel"]
    if packed:
        assert seen["cu_seqlens"] is given.cu_seqlens
    else:
        assert seen["cu_seqlens"].tolist() == [0, 5, 10]
        backend.chunk(given)
        assert fake().CALLS[1]["cu_seqlens"] is seen["cu_seqlens"], "made once"


def test_no_final_state_is_asked_for_where_none_is_wanted(install_flashinfer):
    install_flashinfer()
    backend = load()
    o, final = backend.chunk(taken(backend, call(output_final_state=False)))
    (seen,) = fake().CALLS
    assert final is None and seen["output_state"] is None and not seen["output_final_state"]
    assert not o.isnan().any()


@pytest.mark.parametrize(
    ("name", "invariant", "use_cp", "ran"),
    [
        ("flashinfer", False, "auto", WHOLE),
        ("flashinfer", True, False, WHOLE),
        ("flashinfer:split", False, True, SPLIT),
        ("flashinfer:unsplit", False, False, WHOLE),
    ],
)
def test_what_is_split_is_the_mode_s_and_nothing_is_where_batches_may_not_matter(
    install_flashinfer, name, invariant, use_cp, ran
):
    install_flashinfer()
    backend = load(name)
    backend.chunk(taken(backend, call(batch_invariant=invariant)))
    assert fake().CALLS[0]["use_cp"] == use_cp
    assert backend.ran == {"chunk": (ran,)}


def test_it_may_split_where_it_decides_so(install_flashinfer):
    install_flashinfer()
    backend = load()
    backend.chunk(taken(backend, call(HV=1)))
    assert backend.ran == {"chunk": (SPLIT,)}


def test_where_it_falls_back_the_call_is_an_error(install_flashinfer):
    install_flashinfer()
    fake().FALLS_BACK = True
    backend = load()
    with pytest.raises(RuntimeWarning, match="CP dispatch is unavailable"):
        backend.chunk(taken(backend, call(HV=1)))
    assert backend.ran == {}


@pytest.mark.parametrize(("name", "use_cp"), [("flashinfer:split", False), ("flashinfer:unsplit", True)])
def test_kernels_of_the_other_mode_are_an_error(install_flashinfer, name, use_cp):
    install_flashinfer()
    backend = load(name)
    function = backend._package.chunk
    object.__setattr__(backend._package, "chunk", lambda **arguments: function(**{**arguments, "use_cp": use_cp}))
    with pytest.raises(ForeignKernels, match="which splits"):
        backend.chunk(taken(backend, call()))


def test_a_call_in_which_none_of_its_kernels_ran_is_an_error(install_flashinfer):
    install_flashinfer()
    backend = load()
    object.__setattr__(backend._package, "chunk", lambda **arguments: None)
    with pytest.raises(ForeignKernels, match="in chunk there ran no kernel of FlashInfer's that this adapter knows"):
        backend.chunk(taken(backend, call()))


def test_watching_leaves_its_functions_as_they_were(install_flashinfer):
    install_flashinfer()
    before = fake().chunk_gated_delta_rule_sm90, fake().cp_delta_rule_dsl_sm90, fake(DECODE).run_pretranspose_decode
    backend = load()
    backend.chunk(taken(backend, call()))
    backend.decode(step())
    after = fake().chunk_gated_delta_rule_sm90, fake().cp_delta_rule_dsl_sm90, fake(DECODE).run_pretranspose_decode
    assert after == before


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"dtype": torch.float32}, "dtype:float32"),
        ({"gate_in_kernel": True}, "gate_in_kernel"),
        ({"beta_sigmoid": True}, "beta_sigmoid"),
        ({"chunk_size": 16}, "chunk_size:16"),
        ({"grad": True}, "backward"),
        ({"T": 0}, "empty"),
    ],
)
def test_what_its_prefill_cannot_do_is_refused_with_the_reason(install_flashinfer, changes, lacks):
    install_flashinfer()
    missing = registry.missing(load(), "chunk", call(**changes))
    assert set(missing) == {lacks, "device:cpu"} and missing[lacks]


def test_other_layouts_head_sizes_and_strides_are_refused(install_flashinfer):
    install_flashinfer()
    backend, given = load(), call(state=None)
    assert "layout:k_first" in registry.missing(backend, "chunk", sequence())
    assert "head_size:64" in registry.missing(backend, "chunk", given.with_(q=given.q[..., :64], k=given.k[..., :64]))
    with pytest.raises(RuntimeError, match="v must be contiguous"):
        strided = given.v.repeat_interleave(2, -1)[..., ::2]
        backend.chunk(taken(backend, given.with_(v=strided[:1], q=given.q[:1], k=given.k[:1], g=given.g[:1],
                                                 beta=given.beta[:1])))  # fmt: skip
    assert "recurrent" in registry.missing(backend, "recurrent", given)


@pytest.mark.parametrize("write", [None, [2, 0, 4]])
@pytest.mark.parametrize("out", [False, True])
def test_a_decode_is_ours(install_flashinfer, write, out):
    install_flashinfer()
    given = step(write_index=None if write is None else torch.tensor(write))
    if out:
        given = given.with_(out=torch.empty_like(given.v))
    before, want = given.pool.clone(), oracle.decode(given)
    o = load().decode(given)
    assert o.dtype == torch.bfloat16 and (not out or o.data_ptr() == given.out.data_ptr())
    assert float((o.double() - want.o).abs().max() / want.o.abs().max()) < BFLOAT16
    for slot in range(given.pool.shape[0]):
        torch.testing.assert_close(given.pool[slot].double(), want.writes.get(slot, before[slot].double()))


def test_a_padding_row_of_a_decode_gives_zeros(install_flashinfer):
    install_flashinfer()
    given = step(read_index=torch.tensor([3, -1, 4]))
    before = given.pool.clone()
    o = load().decode(given)
    assert o[1].eq(0).all() and o[0].ne(0).any()
    assert torch.equal(given.pool[[0, 1, 2]], before[[0, 1, 2]]) and not torch.equal(given.pool[3], before[3])


@pytest.mark.parametrize("swap", ["a", "b", "A_log", "dt_bias", "scale", "use_qk_l2norm", "initial_state_indices"])
def test_a_convention_of_the_decode_that_is_swapped_shows(install_flashinfer, swap):
    install_flashinfer()
    backend, given = load(), step()
    function, want = backend._package.decode, oracle.decode(given)
    other = {"scale": 1.0, "use_qk_l2norm": False, "initial_state_indices": torch.tensor([1, 3, 4])}
    change = {swap: other[swap] if swap in other else getattr(given, {"a": "g", "b": "beta"}.get(swap, swap)) + 3}
    object.__setattr__(backend._package, "decode", lambda **arguments: function(**{**arguments, **change}))
    o = backend.decode(given)
    assert float((o.double() - want.o).abs().max() / want.o.abs().max()) > 2 * BFLOAT16


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"gate_in_kernel": False}, "gate_given"),
        ({"beta_sigmoid": False}, "beta_given"),
        ({"neg_eigval": True}, "neg_eigval"),
        ({"T": 2}, "several_tokens"),
        ({"has_initial_state": torch.tensor([True, False, True])}, "fresh_rows"),
        ({"num_tokens": torch.tensor([1, 1, 0])}, "ragged_rows"),
        ({"write_index": torch.tensor([[3], [1], [4]])}, "token_writes"),
        ({"pool": torch.zeros(5, 2, 128, 128, dtype=torch.bfloat16)}, "state:bfloat16"),
    ],
)
def test_what_its_decode_cannot_do_is_refused_with_the_reason(install_flashinfer, changes, lacks):
    install_flashinfer()
    missing = registry.missing(load(), "decode", step(**changes))
    assert set(missing) == {lacks, "device:cpu"} and missing[lacks]


def test_nothing_more_is_refused_of_its_decode(install_flashinfer):
    install_flashinfer()
    assert set(registry.missing(load(), "decode", step())) == {"device:cpu"}
    assert set(registry.missing(load(), "chunk", call())) == {"device:cpu"}


def test_the_version_before_splits_nothing_normalises_nothing_and_decodes_nothing(install_flashinfer):
    install_flashinfer(**older())
    backend = load()
    assert backend.version == "0.7.2.post1 (it has no splitting)"
    assert "has no use_cp" in refused("flashinfer:split") and "has no use_cp" in refused("flashinfer:unsplit")
    lacks = registry.missing(backend, "chunk", call(normalize_qk=True, state=torch.bfloat16))
    assert set(lacks) == {"normalize_qk", "state:bfloat16", "device:cpu"}
    assert registry.missing(backend, "decode", step()) == {"decode": "flashinfer has no form 'decode'"}
    given = call()
    assert off(given, backend.chunk(taken(backend, given))) < BFLOAT16
    assert backend.ran == {"chunk": (f"{PREFILL}.get_gdn_prefill_module",)}


def test_the_recorded_arguments_are_the_installed_ones(install_flashinfer):
    import ast
    import importlib.metadata
    import inspect
    from pathlib import Path

    try:
        distribution = importlib.metadata.distribution("flashinfer-python")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flashinfer-python is not installed")
    if distribution.version != "0.7.2.post1":
        pytest.skip(f"recorded of 0.7.2.post1, installed is {distribution.version}")
    install_flashinfer()
    for module, name in ((PREFILL, "chunk_gated_delta_rule"), (DECODE, "gated_delta_rule_decode_pretranspose")):
        tree = ast.parse(Path(str(distribution.locate_file(module.replace(".", "/") + ".py"))).read_text())
        (real,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        recorded = inspect.signature(getattr(fake(module), name)).parameters
        assert list(recorded) == [argument.arg for argument in real.args.args]
        defaults = [ast.literal_eval(default) for default in real.args.defaults]
        assert [one.default for one in recorded.values() if one.default is not one.empty] == defaults
