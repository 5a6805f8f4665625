"""Backends are found by name, by entry point, by file and by module, and chosen for a call."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import deltaproof
from deltaproof import ContractError, StateLayout
from deltaproof.backends import registry
from deltaproof.backends.adapters import ADAPTERS
from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import Conventions
from deltaproof.ops import registry as operators
from deltaproof.ops.common.calls import DeltaRuleOptions, SequenceCall
from deltaproof.ops.common.hopper_decode import is_hopper
from deltaproof.ops.common.triton_interpreter import VARIABLE
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend

INTERPRETED = os.environ.get(VARIABLE) == "1"
OPERATOR = "gated_delta_rule"
OWN = list(operators.operator(OPERATOR).backends)
NAMED = [*OWN, *ADAPTERS[OPERATOR]]
SOURCE = """
from dataclasses import dataclass
from deltaproof.backends import Conventions


@dataclass
class Mine:
    name: str = "mine"
    version: str = "1"
    operator: str = "gated_delta_rule"
    conventions: Conventions = Conventions()
    unsupported = {"gva": "one value head a key head"}

    def recurrent(self, call):
        return call.v + 1, None


class Outer:
    inner = Mine(name="instance")


nothing = 3
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "my_backend.py"
    file.write_text(SOURCE)
    return file


@dataclass
class Point:
    """An installed entry point."""

    name: str
    target: Any

    def load(self) -> Any:
        return self.target


@pytest.fixture
def install(monkeypatch):
    def points(*installed: Point) -> None:
        monkeypatch.setattr(
            registry, "entry_points", lambda *, group: list(installed) * (group == "deltaproof.backends")
        )

    return points


def changed(**changes: Any) -> type:
    return type("Changed", (TorchBackend,), {"name": "changed"} | changes)


def call(HV: int = 2, **options: Any) -> SequenceCall:
    x = torch.zeros(1, 3, 2, 16)
    gate = torch.zeros(1, 3, HV)
    return SequenceCall(x, x, torch.zeros(1, 3, HV, 16), gate, gate, DeltaRuleOptions(scale=1.0, **options))


def refused(spec: str) -> str:
    with pytest.raises(ContractError) as caught:
        registry.load(spec, OPERATOR)
    return str(caught.value)


def test_an_operator_s_own_backend_is_loaded_by_name_once():
    backend = registry.load("torch", OPERATOR)
    assert isinstance(backend, TorchBackend) and isinstance(backend, Backend)
    assert registry.load("torch", OPERATOR) is backend


def test_a_backend_is_loaded_from_a_file(path):
    backend = registry.load(f"{path}:Mine", OPERATOR)
    assert (backend.name, backend.version) == ("mine", "1")
    assert registry.load(f"{path}:Outer.inner", OPERATOR).name == "instance"


def test_a_file_may_be_named_from_where_one_stands(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert registry.load("my_backend.py:Mine", OPERATOR).name == "mine"


def test_two_files_of_one_name_are_two_backends(path, tmp_path):
    other = tmp_path / "elsewhere" / path.name
    other.parent.mkdir()
    other.write_text(SOURCE.replace('"mine"', '"theirs"'))
    first, second = (registry.load(f"{file}:Mine", OPERATOR) for file in (path, other))
    assert (first.name, second.name) == ("mine", "theirs")


def test_a_backend_is_loaded_from_a_module(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    assert registry.load("my_backend:Mine", OPERATOR).name == "mine"


def test_a_backend_is_loaded_by_the_name_of_an_entry_point(install):
    install(Point("fast", changed(name="fast")), Point("idle", 3))
    assert registry.load("fast", OPERATOR).name == "fast"
    assert registry.names(OPERATOR) == [*NAMED, "fast", "idle"]
    assert f"one of {', '.join(NAMED)}, fast, idle, FILE.py:ATTR" in refused("slow")
    assert refused("idle") == "backend: expected a class with attribute 'name' (see docs/interfaces.md), got idle"


def test_an_entry_point_does_not_replace_an_own_backend(install):
    install(Point("torch", changed(name="impostor")), Point("fla", changed(name="impostor")))
    assert registry.load("torch", OPERATOR).name == "torch"
    assert registry.names(OPERATOR) == NAMED


def test_what_is_not_there_is_refused_by_what_was_asked_for(path):
    assert refused("slow") == f"backend: expected one of {', '.join(NAMED)}, FILE.py:ATTR or MODULE:ATTR, got 'slow'"
    assert refused(f"{path.parent}/none.py:Mine") == f"backend: expected a file that exists, got {path.parent}/none.py"
    assert refused("no.such.module:Mine").startswith(
        "backend: expected a module that can be imported, got no.such.module ("
    )
    assert refused(f"{path}:Yours") == f"backend: expected an attribute of {path}, got 'Yours'"
    assert refused(f"{path}:Outer.other") == f"backend: expected an attribute of {path}, got 'Outer.other'"
    assert refused(f"{path}:") == f"backend: expected an attribute of {path}, got ''"
    for spec in (":Mine", ".near:Mine", "a..b:Mine", "not a module:Mine"):
        assert refused(spec) == f"backend: expected FILE.py:ATTR or MODULE:ATTR, got {spec!r}"


def test_what_is_no_backend_is_refused_by_what_it_lacks(path):
    assert (
        refused(f"{path}:nothing")
        == f"backend: expected a class with attribute 'name' (see docs/interfaces.md), got {path}:nothing"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conventions": {}}, "backend.conventions: expected deltaproof.backends.Conventions, got dict"),
        (
            {"unsupported": ("gva",)},
            "backend.unsupported: expected a mapping of capability or clause to a reason, got (",
        ),
        (
            {"unsupported": {"gva": ""}},
            "backend.unsupported: expected a mapping of capability or clause to a reason, got {",
        ),
        ({"unsupported": {"gav": "typo"}}, "backend.unsupported: expected a clause or one of backward, varlen,"),
        (
            {"unsupported": {"decoding/gva": "typo"}},
            "backend.unsupported: expected a clause or one of backward, varlen,",
        ),
        ({"unsupported": {"chunk/gav": "typo"}}, "backend.unsupported: expected a clause or one of backward, varlen,"),
        ({"operator": "kda2"}, "operator: expected one of causal_conv1d, gated_delta_rule, kda, got 'kda2'"),
        (
            dict.fromkeys(("chunk", "recurrent", "decode", "prefill")),
            "backend: expected at least one method of chunk, recurrent, decode, prefill, got mine",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(install, changes, message):
    install(Point("mine", changed(**changes)))
    assert refused("mine").startswith(message)


@pytest.mark.parametrize("name", ["version", "operator", "conventions", "unsupported"])
def test_every_attribute_is_needed(install, name):
    whole = {"name": "mine", "version": "1", "operator": OPERATOR, "conventions": Conventions(), "unsupported": {}}
    body = whole | {"chunk": TorchBackend.chunk}
    install(
        Point("whole", type("Mine", (), body)),
        Point("part", type("Mine", (), {k: v for k, v in body.items() if k != name})),
    )
    assert registry.load("whole", OPERATOR).name == "mine"
    assert f"a class with attribute {name!r}" in refused("part")


def test_a_backend_may_declare_clauses_and_capabilities(install):
    install(Point("mine", changed(unsupported={"I2": "sums in any order", "dtype:float16": "no hardware"})))
    assert set(registry.load("mine", OPERATOR).unsupported) == {"I2", "dtype:float16"}


def test_a_backend_of_another_operator_is_refused(install, monkeypatch):
    known = operators.operators()
    other = replace(known[OPERATOR], name="kda", backends={})
    monkeypatch.setattr(operators, "operators", lambda: known | {"kda": other})
    install(Point("mine", changed(operator="kda")))
    assert registry.load("mine", "kda").name == "changed"
    assert refused("mine") == "backend: expected a backend of gated_delta_rule, got mine, a backend of kda"


def test_missing_names_what_a_call_needs_and_a_backend_lacks():
    backend = changed(
        unsupported={"gva": "one head", "chunk_size:16": "wide chunks", "I2": "library matmuls"}, decode=None
    )()
    assert registry.missing(backend, "chunk", call()) == {}
    assert registry.missing(backend, "chunk", call(HV=4)) == {"gva": "one head"}
    assert registry.missing(backend, "chunk", call(HV=4, chunk_size=16)) == {
        "chunk_size:16": "wide chunks",
        "gva": "one head",
    }
    assert registry.missing(backend, "chunk", call(batch_invariant=True)) == {"batch_invariant": "library matmuls"}
    assert registry.missing(backend, "decode", call()) == {"decode": "changed has no form 'decode'"}
    only = changed(unsupported={}, conventions=Conventions(layouts=(StateLayout.V_FIRST,)))()
    assert registry.missing(only, "chunk", call()) == {"layout:k_first": "not among its declared layouts"}
    assert registry.missing(only, "chunk", call(layout=StateLayout.V_FIRST)) == {}


def test_a_capability_or_a_clause_may_be_missing_in_one_form_alone(install):
    install(Point("mine", changed(unsupported={"recurrent/gva": "one head", "chunk/I2": "matmuls", "varlen": "dense"})))
    backend = registry.load("mine", OPERATOR)
    assert registry.declared(backend, "recurrent") == {"gva": "one head", "varlen": "dense"}
    assert registry.declared(backend, "chunk") == {"I2": "matmuls", "varlen": "dense"}
    assert registry.missing(backend, "recurrent", call(HV=4)) == {"gva": "one head"}
    assert registry.missing(backend, "chunk", call(HV=4)) == {}
    assert registry.missing(backend, "chunk", call(batch_invariant=True)) == {"batch_invariant": "matmuls"}
    assert registry.missing(backend, "recurrent", call(batch_invariant=True)) == {}


def test_without_a_wish_the_first_own_backend_that_can_make_the_call_is_chosen(path, monkeypatch):
    known = operators.operators()
    backends = {"mine": f"{path}:Mine", "torch": known[OPERATOR].backends["torch"]}
    monkeypatch.setattr(operators, "operators", lambda: {OPERATOR: replace(known[OPERATOR], backends=backends)})
    monkeypatch.setattr(registry, "_loaded", {})
    assert registry.select(OPERATOR, "recurrent", call(), None).name == "mine"
    assert registry.select(OPERATOR, "recurrent", call(HV=4), None).name == "torch", "mine lacks gva"
    assert registry.select(OPERATOR, "chunk", call(), None).name == "torch", "mine has no form chunk"
    with pytest.raises(ContractError) as caught:
        registry.select(OPERATOR, "chunk", call(batch_invariant=True), None)
    assert "none: mine lacks chunk (mine has no form 'chunk'); torch lacks batch_invariant (" in str(caught.value)


@pytest.fixture
def own(install, monkeypatch):
    """Give the operator own backends: one of a class with these attributes, then torch."""

    def give(**attributes: Any) -> None:
        monkeypatch.setattr(registry, "_loaded", {(OPERATOR, "first"): changed(**attributes)()})
        known = operators.operators()
        backends = {"first": "nowhere:First", "torch": known[OPERATOR].backends["torch"]}
        monkeypatch.setattr(operators, "operators", lambda: {OPERATOR: replace(known[OPERATOR], backends=backends)})

    return give


def test_on_a_gpu_hopper_or_triton_is_the_first_choice_and_without_one_torch():
    pytest.importorskip("triton")
    assert OWN == ["hopper", "triton", "torch"]
    assert registry.preferred(OPERATOR, "cpu") == ["torch"]
    on_hopper = torch.cuda.is_available() and is_hopper(torch.device("cuda", torch.cuda.current_device()))
    assert registry.preferred(OPERATOR, "cuda") == (["hopper", "triton"] if on_hopper else ["triton"]) or INTERPRETED
    assert registry.select(OPERATOR, "chunk", call(), None).name == "torch"


def test_a_backend_may_ask_to_be_taken_only_when_it_is_asked_for(own):
    own()
    assert registry.preferred(OPERATOR, "cpu") == ["first"]
    assert registry.select(OPERATOR, "chunk", call(), None).name == "changed"
    own(only_when_asked="it is interpreted")
    assert registry.preferred(OPERATOR, "cpu") == ["torch"]
    assert registry.select(OPERATOR, "chunk", call(), None).name == "torch"
    assert registry.select(OPERATOR, "chunk", call(), "first").name == "changed"
    with pytest.raises(ContractError) as caught:
        registry.select(OPERATOR, "chunk", call(batch_invariant=True), None)
    assert "none: first (only when it is asked for: it is interpreted); torch lacks batch_invariant (" in str(
        caught.value
    )


def test_a_backend_that_cannot_run_here_is_never_taken_and_says_why(own):
    own(cannot_run="numpy 2.4.6 is too new")
    assert registry.select(OPERATOR, "chunk", call(), None).name == "torch"
    with pytest.raises(ContractError, match=r"got changed \(chunk: numpy 2.4.6 is too new\)"):
        registry.select(OPERATOR, "chunk", call(), "first")


def test_a_wish_is_kept_or_refused_never_replaced(path):
    x, gate = torch.zeros(1, 3, 2, 16), torch.zeros(1, 3, 2)
    o, _ = deltaproof.fused_recurrent_gated_delta_rule(x, x, x, gate, beta=gate, backend=f"{path}:Mine")
    assert bool((o == 1).all())
    mine = registry.load(f"{path}:Mine", OPERATOR)
    o, _ = deltaproof.fused_recurrent_gated_delta_rule(x, x, x, gate, beta=gate, backend=mine)
    assert bool((o == 1).all())
    with pytest.raises(ContractError, match="a backend that supports chunk, got mine"):
        deltaproof.chunk_gated_delta_rule(x, x, x, gate, gate, backend=mine)
