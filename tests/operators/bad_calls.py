"""Small legal calls of the delta rules' public functions, and the changes that spoil them.

Shape legend: B batch, T tokens, H query/key heads, HV value heads, K, V head sizes, S slots.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

SEQUENCE = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")
POOL = ("gated_delta_rule_decode", "gated_delta_rule_prefill")
CHUNK, RECURRENT = SEQUENCE
DECODE, PREFILL = POOL
ALL = SEQUENCE + POOL
KDA = ("chunk_kda", "fused_recurrent_kda", "kda_decode", "kda_prefill")
KDA_CHUNK, KDA_RECURRENT, KDA_DECODE, KDA_PREFILL = KDA
B, T, H, HV, K, V, S = 2, 3, 2, 4, 4, 8, 6

FLOATS = "float32 or bfloat16 or float16"
INTS = "int32 or int64"
HERE = "a tensor on cpu, where q is"

Call = dict[str, Any]
Change = Callable[[Call], Call]


def same(call: Call) -> Call:
    """Change nothing."""
    return {}


class Row(NamedTuple):
    """One bad call: the plain call with ``legal`` is accepted, with ``spoil`` on top it is refused."""

    functions: tuple[str, ...]
    argument: str
    expected: str
    got: str
    spoil: Change
    legal: Change = same
    context: Callable[[], AbstractContextManager[None]] = nullcontext


def plain(function: str, tokens: int = T) -> Call:
    """Return the arguments of a small legal call."""
    gen = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, tokens, H, K, generator=gen) for _ in range(2))
    call = {
        "q": q,
        "k": k / k.norm(dim=-1, keepdim=True),
        "v": torch.randn(B, tokens, HV, V, generator=gen),
        "g": -torch.rand(B, tokens, HV, generator=gen),
        "beta": torch.rand(B, tokens, HV, generator=gen),
    }
    if function in KDA:
        call["g"] = -torch.rand(B, tokens, HV, K, generator=gen)
    if function in (*POOL, KDA_DECODE, KDA_PREFILL):
        call |= {"pool": torch.randn(S, HV, K, V, generator=gen), "read_index": torch.tensor([1, 4])}
    return call


def cut(name: str, *index: Any) -> Change:
    return lambda c: {name: c[name][index]}


def cast(name: str, dtype: torch.dtype) -> Change:
    return lambda c: {name: c[name].to(dtype)}


def meta(name: str) -> Change:
    return lambda c: {name: c[name].to("meta")}


def fill(name: str, value: float) -> Change:
    return lambda c: {name: c[name].clone().index_fill_(1, torch.tensor([1]), value)}


def to(**values: Any) -> Change:
    return lambda c: values


def sized(q: tuple[int, ...], v: tuple[int, ...]) -> Change:
    return lambda c: {"q": torch.zeros(q), "k": torch.zeros(q), "v": torch.zeros(v)}


def with_grad(name: str) -> Change:
    return lambda c: {name: c[name].clone().requires_grad_()}


def gated(c: Call) -> Call:
    return {"use_gate_in_kernel": True, "A_log": torch.zeros(HV), "dt_bias": torch.zeros(HV)}


def packed(c: Call) -> Call:
    """Return the same tokens as one pack of two sequences and a token in none."""
    tokens = {name: c[name].flatten(0, 1)[None] for name in ("q", "k", "v", "g", "beta")}
    return tokens | {"cu_seqlens": torch.tensor([0, 2, 5])}


def a_tensor(functions: tuple[str, ...], name: str, legend: str, dtypes: str, legal: Change = same) -> list[Row]:
    """Return the rows every tensor has: no tensor, another rank, a dtype of no use, another device."""
    return [
        Row(functions, name, f"a tensor {legend}", "list", to(**{name: [1.0]}), legal),
        Row(functions, name, f"shape {legend}", "shape [1, 1, ", lambda c: {name: c[name][None, None]}, legal),
        Row(functions, name, dtypes, "complex64", cast(name, torch.complex64), legal),
        Row(functions, name, HERE, "one on meta", meta(name), legal),
    ]
