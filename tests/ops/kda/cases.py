"""Small calls of Kimi delta attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, PrefillCall, SequenceCall
from tests.ops.gated_delta_rule import cases as by_head

GATES: dict[str, dict[str, Any]] = {
    "log gates": {},
    "the gate in the kernel": {"gate_in_kernel": True},
    "without A_log": {"gate_in_kernel": True, "A_log": False},
    "with a lower bound": {"gate_in_kernel": True, "lower_bound": -5.0},
    "with a lower bound, without A_log and dt_bias": {
        "gate_in_kernel": True, "lower_bound": -0.7, "A_log": False, "dt_bias": False,
    },
}  # fmt: skip


def sequence_call(
    seed: int,
    *,
    B: int = 2,
    T: int = 20,
    H: int = 2,
    HV: int = 4,
    K: int = 8,
    V: int = 6,
    A_log: bool = True,
    dt_bias: bool = True,
    cu_seqlens: list[int] | None = None,
    **options: Any,
) -> SequenceCall:
    """Return a call with drawn tensors in float32, its keys of norm 1 at most."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    k = normal(B, T, H, K)
    g, beta = normal(B, T, HV, K), normal(B, T, HV)
    inside = options.get("gate_in_kernel", False)
    chosen = DeltaRuleOptions(scale=K**-0.5, **options)
    return SequenceCall(
        q=normal(B, T, H, K),
        k=k / k.norm(dim=-1, keepdim=True).clamp(min=1.0),
        v=normal(B, T, HV, V),
        g=g if inside else -g.abs(),
        beta=beta if chosen.beta_sigmoid else beta.sigmoid(),
        options=chosen,
        A_log=normal(HV) if inside and A_log else None,
        dt_bias=normal(HV, K) if inside and dt_bias else None,
        initial_state=normal(B if cu_seqlens is None else len(cu_seqlens) - 1, HV, *chosen.layout.inner_shape(K, V)),
        output_final_state=True,
        cu_seqlens=None if cu_seqlens is None else torch.tensor(cu_seqlens),
    )


def pool_call(form: str, seed: int = 0, **about: Any) -> DecodeCall | PrefillCall:
    """Return the gated delta rule's call of decode or prefill, with a gate a channel."""
    call = by_head.pool_call(form, seed, **about)
    B, T, _, HV, K, _ = call.dims
    g = by_head.normal(seed + 3, B, T, HV, K)
    return call.with_(g=g if call.options.gate_in_kernel else -0.3 * g.abs())


def by_hand() -> SequenceCall:
    """Return the example of the operator's README."""
    half = -math.log(2)
    return SequenceCall(
        q=torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2),
        k=torch.tensor([[1.0, 0.0], [0.6, 0.8]]).view(1, 2, 1, 2),
        v=torch.tensor([4.0, 1.0]).view(1, 2, 1, 1),
        g=torch.tensor([[half, 0.0], [0.0, half]]).view(1, 2, 1, 2),
        beta=torch.tensor([0.5, 1.0]).view(1, 2, 1),
        options=DeltaRuleOptions(scale=1.0),
        initial_state=torch.tensor([2.0, 1.0]).view(1, 1, 2, 1),
        output_final_state=True,
    )
