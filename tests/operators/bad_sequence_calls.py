"""The bad calls of every public function: tokens, options, states, packs and backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from deltaproof import StateLayout
from deltaproof.backends.registry import names
from deltaproof.contracts.conventions import Conventions, GateSpace
from deltaproof.ops import registry
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from tests.operators.bad_calls import (
    ALL,
    CHUNK,
    FLOATS,
    HERE,
    HV,
    INTS,
    PREFILL,
    RECURRENT,
    SEQUENCE,
    B,
    Call,
    Change,
    H,
    K,
    Row,
    T,
    V,
    a_tensor,
    cast,
    cut,
    fill,
    gated,
    meta,
    packed,
    plain,
    sized,
    to,
)  # fmt: skip

CHUNKED = (CHUNK, PREFILL)
PACKED = (*SEQUENCE, PREFILL)
TORCH = "deltaproof.ops.gated_delta_rule.torch_backend:TorchBackend"
CONVENTIONS = "deltaproof.contracts.conventions:Conventions"
OWN = ", ".join(names("gated_delta_rule"))
BOTH = "one spelling of the state layout"


def state(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Change:
    return to(initial_state=torch.zeros(shape, dtype=dtype, device=device))


def bounds(*values: int) -> Change:
    return to(cu_seqlens=torch.tensor(values))


def with_cpu_bounds(c: Call) -> Call:
    pack = packed(c)
    return pack | {"cu_seqlens_cpu": pack["cu_seqlens"], "chunk_indices": torch.tensor([[0, 0], [1, 0]])}


def by(backend: str) -> Change:
    return to(backend=backend)


def like_torch(**changes: Any) -> Change:
    """Name a backend that is torch's but for some attributes."""
    return to(backend=type("Changed", (TorchBackend,), {"name": "changed"} | changes))


@contextmanager
def second_operator() -> Iterator[None]:
    """Register one more operator: the first under another name."""
    known = registry.operators()
    other = replace(known["gated_delta_rule"], name="other_rule", backends={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "operators", lambda: known | {"other_rule": other})
        yield


@contextmanager
def torch_backend_of_another_operator() -> Iterator[None]:
    with second_operator(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "operator", "other_rule")
        yield


TOKENS = [
    Row(ALL, "q", "a tensor [B, T, H, K]", "NoneType", to(q=None)),
    Row(ALL, "q", "shape [B, T, H, K]", f"shape {[B, T, K]}", cut("q", slice(None), slice(None), 0)),
    Row(ALL, "q", FLOATS, "float64", cast("q", torch.float64)),
    *a_tensor(ALL, "k", f"[{B}, {T}, {H}, {K}]", FLOATS),
    Row(ALL, "k", f"shape {[B, T, H, K]}", f"shape {[B, T, H, K - 1]}", cut("k", ..., slice(1, None))),
    Row(ALL, "k", f"shape {[B, T, H, K]}", f"shape {[B, T, 1, K]}", cut("k", slice(None), slice(None), slice(1))),
    Row(ALL, "k", FLOATS, "float64", cast("k", torch.float64)),
    *a_tensor(ALL, "v", f"[{B}, {T}, HV, V]", FLOATS),
    Row(ALL, "v", f"shape [{B}, {T}, HV, V]", f"shape {[B, T - 1, HV, V]}", cut("v", slice(None), slice(1, None))),
    Row(ALL, "v", FLOATS, "int8", cast("v", torch.int8)),
    Row(ALL, "v", f"HV a positive multiple of q's H = {H}", "HV = 1", cut("v", ..., slice(1), slice(None))),
    Row(ALL, "v", f"HV a positive multiple of q's H = {H}", "HV = 3", cut("v", ..., slice(3), slice(None))),
    Row(ALL, "v", f"HV a positive multiple of q's H = {H}", "HV = 0", cut("v", ..., slice(0), slice(None))),
    Row(ALL, "v", "HV a positive multiple of q's H = 0", "HV = 4", sized((B, T, 0, K), (B, T, HV, V))),
    Row(ALL, "q", "K from 1 to 256", "K = 0", sized((B, T, H, 0), (B, T, HV, V))),
    Row(ALL, "q", "K from 1 to 256", "K = 257", sized((B, T, H, 257), (B, T, HV, V))),
    Row(ALL, "v", "V from 1 to 256", "V = 0", sized((B, T, H, K), (B, T, HV, 0))),
    Row(ALL, "v", "V from 1 to 256", "V = 257", sized((B, T, H, K), (B, T, HV, 257))),
    *a_tensor(ALL, "g", f"[{B}, {T}, {HV}]", FLOATS),
    Row(ALL, "g", f"shape {[B, T, HV]}", f"shape {[B, T, H]}", cut("g", ..., slice(H))),
    Row(ALL, "g", f"shape {[B, T, HV]}", f"shape {[B, T, HV, 1]}", cut("g", ..., None)),
    Row(ALL, "g", FLOATS, "float64", cast("g", torch.float64)),
    Row(ALL, "beta", f"a tensor {[B, T, HV]}", "float", to(beta=0.5)),
    Row(ALL, "beta", f"shape {[B, T, HV]}", f"shape {[B, T, H]}", cut("beta", ..., slice(H))),
    Row(ALL, "beta", f"one value a head, shape {[B, T, HV]}", "a beta per channel", lambda c: {"beta": c["v"].abs()}),
    Row(ALL, "beta", FLOATS, "int64", cast("beta", torch.int64)),
    Row(ALL, "beta", HERE, "one on meta", meta("beta")),
    Row(ALL, "g", "log gates g <= 0", "0.5", fill("g", 0.5)),
    Row(ALL, "g", "log gates g <= 0", "nan", fill("g", float("nan"))),
    Row(ALL, "g", "log gates g <= 0", "inf", fill("g", float("inf")), to(validate="values")),
    Row(ALL, "beta", "values in [0, 2]", "2.5", fill("beta", 2.5)),
    Row(ALL, "beta", "values in [0, 2]", "-0.25", fill("beta", -0.25), to(validate="values")),
    Row(ALL, "beta", "values in [0, 2]", "nan", fill("beta", float("nan"))),
]

OPTIONS = [
    Row(ALL, "A_log", "None unless use_gate_in_kernel=True", "a tensor", to(A_log=torch.zeros(HV))),
    Row(ALL, "dt_bias", "None unless use_gate_in_kernel=True", "a tensor", to(dt_bias=torch.zeros(HV))),
    Row(ALL, "A_log", f"a tensor [{HV}]", "NoneType", to(A_log=None), gated),
    *a_tensor(ALL, "A_log", f"[{HV}]", FLOATS, gated),
    *a_tensor(ALL, "dt_bias", f"[{HV}]", FLOATS, gated),
    *[Row(ALL, "scale", "a finite number or None", str(x), to(scale=x)) for x in (float("nan"), float("inf"), "big")],
    Row(ALL, "scale", "a finite number or None", "1000", to(scale=10**400)),
    *[
        Row(ALL, name, "True or False", "1", to(**{name: 1}))
        for name in (
            "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval",
            "batch_invariant",
        )
    ],
    Row(SEQUENCE, "output_final_state", "True or False", "None", to(output_final_state=None)),
    Row(
        ALL, "allow_neg_eigval", "use_beta_sigmoid_in_kernel=True beside it", "use_beta_sigmoid_in_kernel=False",
        to(use_beta_sigmoid_in_kernel=False), to(allow_neg_eigval=True, use_beta_sigmoid_in_kernel=True),
    ),
    *[Row(CHUNKED, "chunk_size", "16, 32 or 64", str(n), to(chunk_size=n), to(chunk_size=32)) for n in (0, 48, 128)],
    Row(ALL, "validate", "None, 'shapes' or 'values'", "'all'", to(validate="all"), to(validate="values")),
    Row(ALL, "out_init", "None or one of empty, zeros, poison", "'ones'", to(out_init="ones"), to(out_init="zeros")),
    Row(ALL, "state_layout", "'k_first' or 'v_first'", "'kv'", to(state_layout="kv"), to(state_layout="k_first")),
    Row(SEQUENCE, "state_v_first", "True or False", "yes", to(state_v_first="yes"), to(state_v_first=True)),
    Row(
        SEQUENCE, "state_layout", BOTH, "state_v_first beside it",
        to(state_layout=StateLayout.V_FIRST), to(state_v_first=True),
    ),
    Row(
        SEQUENCE, "transpose_state_layout", BOTH, "state_v_first beside it",
        to(transpose_state_layout=True), to(state_v_first=True),
    ),
    Row(
        SEQUENCE, "transpose_state_layout", BOTH, "state_layout beside it",
        to(transpose_state_layout=False), to(state_layout="v_first"),
    ),
    Row(SEQUENCE, "transpose_state_layout", "True or False", "yes", to(transpose_state_layout="yes")),
    Row((CHUNK,), "cp_context", "None: it is not supported yet", "dict", to(cp_context={})),
    Row((RECURRENT,), "gk", "None: it is not supported yet", "Tensor", lambda c: {"gk": c["v"]}),
    Row((RECURRENT,), "gv", "None: it is not supported yet", "Tensor", lambda c: {"gv": c["v"]}),
    Row((RECURRENT,), "g", "a tensor [B, T, HV], the raw input", "None", gated, to(g=None)),
    Row(
        (RECURRENT,), "beta", "a tensor [B, T, HV], the raw input", "None",
        to(use_beta_sigmoid_in_kernel=True), to(beta=None),
    ),
]  # fmt: skip

STATES = [
    Row(SEQUENCE, "initial_state", "a tensor or None", "list", to(initial_state=[0.0]), state(B, HV, K, V)),
    Row(
        SEQUENCE, "initial_state", f"shape {[B, HV, K, V]} in layout k_first", "the other layout",
        state(B, HV, V, K), state(B, HV, K, V),
    ),
    Row(
        SEQUENCE, "initial_state", f"shape {[B, HV, V, K]} in layout v_first", "the other layout",
        to(state_v_first=True), state(B, HV, K, V),
    ),
    Row(SEQUENCE, "initial_state", f"shape {[B, HV, K, V]}", f"shape {[1, HV, K, V]}", state(1, HV, K, V)),
    Row(SEQUENCE, "initial_state", f"shape {[B, HV, K, V]}", f"shape {[B, H, K, V]}", state(B, H, K, V)),
    Row(SEQUENCE, "initial_state", f"shape {[B, HV, K, V]}", f"shape {[HV, K, V]}", state(HV, K, V)),
    Row(SEQUENCE, "initial_state", f"shape {[2, HV, K, V]}", f"shape {[1, HV, K, V]}", state(1, HV, K, V), packed),
    Row(SEQUENCE, "initial_state", FLOATS, "float64", state(B, HV, K, V, dtype=torch.float64)),
    Row(SEQUENCE, "initial_state", HERE, "one on meta", state(B, HV, K, V, device="meta")),
]  # fmt: skip

PACKS = [
    *a_tensor(PACKED, "cu_seqlens", "[N + 1]", INTS, packed),
    Row(PACKED, "cu_seqlens", INTS, "int16", cast("cu_seqlens", torch.int16), packed),
    Row(PACKED, "cu_seqlens", "N + 1 bounds, at least one", "an empty tensor", cut("cu_seqlens", slice(0)), packed),
    Row(PACKED, "q", "B = 1 with cu_seqlens", "B = 2", lambda c: {**plain(CHUNK)}, packed),
    Row(PACKED, "cu_seqlens", "0 first", "1", bounds(1, 2, 5), packed),
    Row(PACKED, "cu_seqlens", "non-decreasing values", "4 then 2 at position 2", bounds(0, 4, 2), packed),
    Row(PACKED, "cu_seqlens", "a last value of at most T = 6", "7", bounds(0, 2, 7), packed),
    Row((CHUNK,), "cu_seqlens_cpu", "cu_seqlens beside it", "cu_seqlens=None", to(cu_seqlens_cpu=torch.arange(3))),
    Row((CHUNK,), "chunk_indices", "cu_seqlens beside it", "cu_seqlens=None", to(chunk_indices=torch.ones(2, 2))),
    Row((CHUNK,), "cu_seqlens", "a tensor [N + 1]", "list", to(cu_seqlens=[0, 2, 5]), with_cpu_bounds),
    *[
        Row((CHUNK,), "cu_seqlens_cpu", expected, got, change, with_cpu_bounds)
        for expected, got, change in [
            ("a tensor [3]", "list", to(cu_seqlens_cpu=[0, 2, 5])),
            ("shape [3]", "shape [2]", cut("cu_seqlens_cpu", slice(2))),
            (INTS, "float32", cast("cu_seqlens_cpu", torch.float32)),
            ("a tensor on cpu", "one on meta", meta("cu_seqlens_cpu")),
        ]
    ],
    *[
        Row((CHUNK,), "chunk_indices", expected, got, change, with_cpu_bounds)
        for expected, got, change in [
            ("a tensor [chunks, 2]", "list", to(chunk_indices=[[0, 0], [1, 0]])),
            ("shape [chunks, 2]", "shape [2, 1]", cut("chunk_indices", slice(None), slice(1))),
            (INTS, "float32", cast("chunk_indices", torch.float32)),
        ]
    ],
]  # fmt: skip

BACKENDS = [
    Row(ALL, "backend", f"one of {OWN}, FILE.py:ATTR or MODULE:ATTR", "'other'", by("other"), by("torch")),
    Row(ALL, "backend", "a file that exists", "nowhere.py", by("nowhere.py:Backend"), by(TORCH)),
    Row(ALL, "backend", "FILE.py:ATTR or MODULE:ATTR", "'.beside:Backend'", by(".beside:Backend"), by(TORCH)),
    Row(ALL, "backend", "FILE.py:ATTR or MODULE:ATTR", "':Backend'", by(":Backend"), by(TORCH)),
    Row(ALL, "backend", "a module that can be imported", "no_such_module", by("no_such_module:X"), by(TORCH)),
    Row(
        ALL, "backend", "an attribute of deltaproof.ops.gated_delta_rule.torch_backend", "'Nothing'",
        by(TORCH.replace("TorchBackend", "Nothing")), by(TORCH),
    ),
    Row(ALL, "backend", "a class with attribute 'name'", "Conventions", by(CONVENTIONS), by(TORCH)),
    Row(ALL, "backend", "a class with attribute 'name'", "7", to(backend=7), like_torch()),
    Row(ALL, "backend.conventions", "Conventions", "dict", like_torch(conventions={}), like_torch()),
    Row(ALL, "backend.unsupported", "to a reason", "['I2']", like_torch(unsupported=["I2"]), like_torch()),
    Row(
        ALL, "backend.unsupported", "to a reason", "{'I2': ''}",
        like_torch(unsupported={"I2": ""}), like_torch(unsupported={"I2": "sums in any order"}),
    ),
    Row(
        ALL, "backend.unsupported", "a clause or one of backward,", "'speed'",
        like_torch(unsupported={"speed": "slow"}), like_torch(unsupported={}),
    ),
    Row(
        ALL, "backend", "at least one method of chunk, recurrent, decode, prefill", "Changed",
        like_torch(chunk=None, recurrent=None, decode=None, prefill=None), like_torch(),
    ),
    Row(
        ALL, "operator", "one of causal_conv1d, gated_delta_rule", "'other_rule'",
        like_torch(operator="other_rule"), like_torch(),
    ),
    Row(
        ALL, "backend", "a backend of gated_delta_rule", "changed, a backend of other_rule",
        like_torch(operator="other_rule"), like_torch(), second_operator,
    ),
    Row(
        ALL, "backend", "a backend of gated_delta_rule", "TorchBackend, a backend of other_rule",
        by(TORCH), like_torch(), torch_backend_of_another_operator,
    ),
    Row(
        ALL, "backend", "a backend that takes log gates", "changed",
        like_torch(conventions=Conventions(gate=GateSpace.LINEAR)), like_torch(conventions=Conventions()),
    ),
    *[
        Row(
            (function,), "backend", f"a backend that supports {form}", f"changed has no form '{form}'",
            like_torch(**{form: None}), like_torch(),
        )
        for function, form in zip(ALL, ("chunk", "recurrent", "decode", "prefill"), strict=True)
    ],
    Row(
        ALL, "backend", "a backend that supports gva, unequal_head_sizes", "changed (gva: one head each; ",
        like_torch(unsupported={"gva": "one head each", "unequal_head_sizes": "square"}), like_torch(unsupported={}),
    ),
    Row(
        ALL, "backend", "a backend that supports layout:k_first", "not among its declared layouts",
        like_torch(conventions=Conventions(layouts=(StateLayout.V_FIRST,))), like_torch(conventions=Conventions()),
    ),
    Row(
        ALL, "backend", "a backend that supports batch_invariant", "torch (batch_invariant: built on library matmuls",
        to(batch_invariant=True), by("torch"),
    ),
    Row(
        ALL, "backend", "a backend that can make this call", "torch lacks batch_invariant (built on library",
        to(batch_invariant=True), to(batch_invariant=False),
    ),
]  # fmt: skip

ROWS = TOKENS + OPTIONS + STATES + PACKS + BACKENDS
