"""Registration of the gated delta rule; imports no torch."""

from __future__ import annotations

from deltaproof.contracts.operator import FORMS, Operator

OPERATOR = Operator(
    name="gated_delta_rule",
    title="Gated delta rule: the delta rule with one gate a head",
    contract_version=1,
    forms=FORMS,
    gate_per_channel=False,
    oracle="deltaproof.ops.gated_delta_rule.oracle",
    backends={
        # in order of preference: without a GPU the last
        "hopper": "deltaproof.ops.gated_delta_rule.hopper_backend:HopperBackend",
        "triton": "deltaproof.ops.gated_delta_rule.triton_backend:TritonBackend",
        "torch": "deltaproof.ops.gated_delta_rule.torch_backend:TorchBackend",
    },
)
