"""The gate of the gated delta rule: a scalar a head."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DeltaRuleCall
from deltaproof.ops.common.torch_inputs import softplus


def log_gate(call: DeltaRuleCall, dtype: torch.dtype) -> torch.Tensor:
    """Return the log gate [B, T, HV] in ``dtype``: g itself, or -exp(A_log) * softplus(g + dt_bias)."""
    g = call.g.to(dtype)
    if not call.options.gate_in_kernel:
        return g
    assert call.A_log is not None
    if call.dt_bias is not None:
        g = g + call.dt_bias.to(dtype)
    return -call.A_log.to(dtype).exp() * softplus(g)
