"""Registration of the causal convolution; imports no torch."""

from __future__ import annotations

from deltaproof.contracts.operator import POOL_FORMS, Operator

OPERATOR = Operator(
    name="causal_conv1d",
    title="Causal convolution over tokens, a channel at a time, from a window that is kept",
    contract_version=1,
    forms=POOL_FORMS,
    gate_per_channel=False,
    oracle="deltaproof.ops.causal_conv1d.oracle",
    backends={
        # in order of preference: without a GPU the second
        "triton": "deltaproof.ops.causal_conv1d.triton_backend:TritonBackend",
        "torch": "deltaproof.ops.causal_conv1d.torch_backend:TorchBackend",
    },
    family="causal_conv",
    check="deltaproof.ops.causal_conv1d.checks:check_call",
)
