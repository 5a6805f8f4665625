"""The chunked forms of Kimi delta attention on Hopper; gradients are those of the Triton kernels."""

from __future__ import annotations

from deltaproof.ops.common.triton_ops import TritonOperators
from deltaproof.ops.kda.hopper_chunk import forward
from deltaproof.ops.kda.triton_ops import chunk_rule

OPERATORS = TritonOperators("kda_hopper", chunk_rule(forward))
