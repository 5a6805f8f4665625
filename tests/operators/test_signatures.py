"""Every call that fla 0.6.0's four functions take, ours take too: same order, names and defaults, nothing hidden."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaproof
from deltaproof import ContractError

RECORD = json.loads((Path(__file__).parent / "fla_signatures.json").read_text())
KDA = ("chunk_kda", "fused_recurrent_kda", "kda_decode", "kda_prefill")
FUNCTIONS = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", *KDA[:2])
POOL_FUNCTIONS = ("gated_delta_rule_decode", "gated_delta_rule_prefill", *KDA[2:])
OURS_ALONE = {"state_layout", "backend", "batch_invariant", "validate", "out_init"}

chosen = pytest.mark.parametrize("name", FUNCTIONS)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(deltaproof, name)).parameters)


def recorded(name: str) -> list[dict[str, Any]]:
    return RECORD["functions"][name]["positional"]


def call(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a small legal call, as every one of the functions spells them."""
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 5, 2, 4, generator=gen) for _ in range(3))
    channels = (4,) if name in KDA else ()
    g, beta = -torch.rand(1, 5, 2, *channels, generator=gen), torch.rand(1, 5, 2, generator=gen)
    tensors = {"q": q, "k": k / k.norm(dim=-1, keepdim=True), "v": v, "g": g, "beta": beta}
    if name in POOL_FUNCTIONS:
        tensors |= {"pool": torch.zeros(3, 2, 4, 4), "read_index": torch.tensor([1])}
    return tensors


def test_the_record_names_its_source():
    assert (RECORD["package"], RECORD["version"]) == ("fla-core", "0.6.0")
    assert set(RECORD["functions"]) == set(FUNCTIONS)


@chosen
def test_names_order_and_defaults_are_equal(name):
    positional = [p for p in parameters(name).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    ours = [{"name": p.name} | ({} if p.default is p.empty else {"default": p.default}) for p in positional]
    assert ours == recorded(name)


@chosen
def test_every_number_of_positional_arguments_binds_to_the_same_names(name):
    signature = inspect.signature(getattr(deltaproof, name))
    names = [p["name"] for p in recorded(name)]
    required = sum("default" not in p for p in recorded(name))
    for count in range(required, len(names) + 1):
        values = [object() for _ in range(count)]
        assert signature.bind(*values).arguments == dict(zip(names[:count], values, strict=True))


@chosen
def test_every_argument_binds_as_a_keyword(name):
    options = [p["name"] for p in recorded(name)] + RECORD["functions"][name]["from_kwargs"]
    values = {option: object() for option in options}
    assert inspect.signature(getattr(deltaproof, name)).bind(**values).arguments == values


@chosen
def test_what_fla_takes_from_kwargs_is_named_here_and_keyword_only(name):
    ours = parameters(name)
    for option in RECORD["functions"][name]["from_kwargs"]:
        assert ours[option].kind is inspect.Parameter.KEYWORD_ONLY


@chosen
def test_what_only_ours_has_is_keyword_only(name):
    known = {p["name"] for p in recorded(name)} | set(RECORD["functions"][name]["from_kwargs"])
    extra = {p.name: p.kind for p in parameters(name).values() if p.name not in known}
    assert extra == dict.fromkeys(OURS_ALONE, inspect.Parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("name", POOL_FUNCTIONS)
def test_pool_functions_are_keyword_only_after_the_tensors(name):
    positional = [p.name for p in parameters(name).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["q", "k", "v", "g", "beta"]
    assert set(parameters(name)) >= OURS_ALONE


@pytest.mark.parametrize("name", FUNCTIONS + POOL_FUNCTIONS)
def test_an_unknown_option_is_a_type_error(name):
    function, tensors = getattr(deltaproof, name), call(name)
    function(**tensors)
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters(name).values())
    for option in ("head_first", "use_qk_l2norm"):
        with pytest.raises(TypeError, match=option):
            function(**tensors, **{option: False})


@pytest.mark.parametrize(
    ("name", "option"),
    [(FUNCTIONS[0], "cp_context"), (FUNCTIONS[1], "gk"), (FUNCTIONS[1], "gv"), ("chunk_kda", "cp_context")],
)
def test_an_option_that_is_not_supported_yet_is_refused_by_name(name, option):
    function, tensors = getattr(deltaproof, name), call(name)
    function(**tensors, **{option: None})
    with pytest.raises(ContractError) as caught:
        function(**tensors, **{option: torch.zeros(1, 5, 2, 4)})
    assert str(caught.value) == f"{option}: expected None: it is not supported yet, got Tensor"


@pytest.mark.parametrize("name", FUNCTIONS + POOL_FUNCTIONS)
def test_a_beta_per_channel_is_refused_by_name(name):
    tensors = call(name)
    tensors["beta"] = tensors["beta"][..., None].expand(1, 5, 2, 4)
    with pytest.raises(ContractError, match="a beta per channel is not supported yet") as caught:
        getattr(deltaproof, name)(**tensors)
    assert caught.value.argument == "beta"


@chosen
def test_the_deprecated_spelling_of_the_layout_warns_and_means_v_first(name):
    function, tensors = getattr(deltaproof, name), call(name)
    _, v_first = function(**tensors, output_final_state=True, state_v_first=True)
    with pytest.warns(DeprecationWarning, match="use state_v_first") as caught:
        _, spelled = function(**tensors, output_final_state=True, transpose_state_layout=True)
    assert torch.equal(spelled, v_first)
    assert caught[0].filename == __file__, "the warning points at the caller"
    _, k_first = function(**tensors, output_final_state=True)
    assert torch.equal(k_first.mT, v_first) and not torch.equal(k_first, v_first)


@chosen
def test_a_call_all_by_position_computes_what_the_keywords_compute(name):
    function, tensors = getattr(deltaproof, name), call(name)
    state = torch.ones(1, 2, 4, 4)
    rest = {"scale": 0.7, "initial_state": state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    by_name = function(**tensors, **rest)
    given = tensors | rest
    names = [p["name"] for p in recorded(name)]
    last = names.index("use_qk_l2norm_in_kernel")
    by_place = function(*[given.get(option) for option in names[: last + 1]])
    assert all(torch.equal(a, b) for a, b in zip(by_place, by_name, strict=True))
