"""The gate of Kimi delta attention: one for every channel of a key."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DeltaRuleCall
from deltaproof.ops.common.torch_inputs import sigmoid, softplus


def log_gate(call: DeltaRuleCall, dtype: torch.dtype) -> torch.Tensor:
    """Return the log gate [B, T, HV, K] in ``dtype``.

    It is g itself, or with the gate in the kernel -exp(A_log) * softplus(g + dt_bias), or with a lower bound L
    L * sigmoid(exp(A_log) * (g + dt_bias)). A_log [HV] of None leaves the factor exp(A_log) out; dt_bias is [HV, K].
    """
    g = call.g.to(dtype)
    options = call.options
    if not options.gate_in_kernel:
        return g
    if call.dt_bias is not None:
        g = g + call.dt_bias.to(dtype)
    rate = None if call.A_log is None else call.A_log.to(dtype).exp()[..., None]  # [HV, 1]
    if options.lower_bound is not None:
        return options.lower_bound * sigmoid(g if rate is None else rate * g)
    return -softplus(g) if rate is None else -rate * softplus(g)
