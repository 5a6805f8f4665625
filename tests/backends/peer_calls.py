"""Calls of the gated delta rule with heads of 128, and the oracle's answers, for stand-ins of peers."""

from __future__ import annotations

from typing import Any

import torch

from deltaproof import StateLayout
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, SequenceCall
from deltaproof.ops.gated_delta_rule import oracle

N = 2
"""Sequences of a pack."""


def _drawn(B: int, T: int, H: int, HV: int, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(B, T, H, 128, generator=draw).mul(0.1).to(dtype) for _ in range(2))
    v = torch.randn(B, T, HV, 128, generator=draw).to(dtype)
    g = -torch.rand(B, T, HV, generator=draw)
    return {"q": q, "k": k, "v": v, "g": g, "beta": torch.rand(B, T, HV, generator=draw)}


def _options(changes: dict[str, Any]) -> DeltaRuleOptions:
    known = {name: changes.pop(name) for name in list(changes) if name in DeltaRuleOptions.__dataclass_fields__}
    return DeltaRuleOptions(**{"scale": 0.25, **known})


def sequence(
    *, T: int = 5, H: int = 1, HV: int = 2, dtype: torch.dtype = torch.bfloat16, packed: bool = False,
    state: torch.dtype | None = torch.float32, grad: bool = False, seed: int = 0, **changes: Any,
) -> SequenceCall:  # fmt: skip
    """Return a call whose initial state, where it has one, is asymmetric."""
    options = _options(changes)
    drawn = _drawn(1 if packed else N, T, H, HV, dtype, seed)
    if packed:
        changes["cu_seqlens"] = torch.tensor([0, 2, T], dtype=torch.int32)
    if state is not None:
        # q and k are small: what comes from the state shows beside what comes from the values
        first = torch.randn(N, HV, 128, 128, generator=torch.Generator().manual_seed(seed + 1))
        changes["initial_state"] = (first + torch.arange(128.0) / 64).to(state)
    if grad:
        for x in (*drawn.values(), changes["initial_state"]):
            x.requires_grad_()
    return SequenceCall(**drawn, options=options, output_final_state=changes.pop("output_final_state", True), **changes)


def step(*, rows: int = 3, slots: int = 5, T: int = 1, seed: int = 0, **changes: Any) -> DecodeCall:
    """Return a call of decode with everything left to the kernel."""
    options = {"normalize_qk": True, "gate_in_kernel": True, "beta_sigmoid": True, "layout": StateLayout.V_FIRST}
    options = _options(changes := {**options, **changes})
    drawn = _drawn(rows, T, 1, 2, torch.bfloat16, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    given = {
        "pool": torch.randn(slots, 2, 128, 128, generator=draw) + torch.arange(128.0) / 64,
        "read_index": torch.tensor([3, 1, 4][:rows]),
        "A_log": torch.randn(2, generator=draw),
        "dt_bias": torch.randn(2, generator=draw),
        "g": torch.randn(rows, T, 2, generator=draw).bfloat16(),
        "beta": torch.randn(rows, T, 2, generator=draw).bfloat16(),
    }
    return DecodeCall(**{**drawn, **given, **changes}, options=options)


def off(call: SequenceCall, found: tuple[torch.Tensor, torch.Tensor | None]) -> float:
    """Return the largest error of outputs and states, relative to the largest entry."""
    want = oracle.sequence(call)
    return max(
        float((x.double() - y).abs().max() / y.abs().max())
        for x, y in zip(found, want, strict=True)
        if x is not None and y is not None
    )


BFLOAT16 = 2**-8
"""What a rounding to bfloat16 leaves of the largest entry."""
