"""The chunked forms of the gated delta rule on Hopper; gradients are those of the Triton kernels."""

from __future__ import annotations

from deltaproof.ops.common.triton_ops import TritonOperators
from deltaproof.ops.gated_delta_rule.hopper_chunk import forward, inference
from deltaproof.ops.gated_delta_rule.triton_ops import chunk_rule

OPERATORS = TritonOperators("gated_delta_rule_hopper", chunk_rule(forward, inference))
