"""Registration of Kimi delta attention; imports no torch."""

from __future__ import annotations

from deltaproof.contracts.operator import FORMS, Operator

OPERATOR = Operator(
    name="kda",
    title="Kimi delta attention: the delta rule with a gate for every key channel",
    contract_version=1,
    forms=FORMS,
    gate_per_channel=True,
    oracle="deltaproof.ops.kda.oracle",
    chunk_states=True,
    backends={
        # in order of preference: without a GPU the last
        "hopper": "deltaproof.ops.kda.hopper_backend:HopperBackend",
        "triton": "deltaproof.ops.kda.triton_backend:TritonBackend",
        "torch": "deltaproof.ops.kda.torch_backend:TorchBackend",
    },
)
