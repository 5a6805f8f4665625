"""The Triton forms of the gated delta rule."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_chunks import Forward, chunk_bound, inverse_dtype, operand_dtype
from deltaproof.ops.common.triton_ops import ChunkRule, TritonOperators
from deltaproof.ops.gated_delta_rule.triton_chunk import Prepared, forward
from deltaproof.ops.gated_delta_rule.triton_chunk_backward import backward


def _saved_like(call: SequenceCall) -> Prepared:
    B, T, _, HV, _, _ = call.dims
    C = call.options.chunk_size
    G, strength = (call.v.new_empty(B, T, HV, dtype=torch.float32) for _ in range(2))
    return G, strength, call.v.new_empty(chunk_bound(call), HV, C, C, dtype=inverse_dtype(operand_dtype(call)))


def chunk_rule(forward: Forward, inference: Forward) -> ChunkRule:
    """Return the chunked form with this forward, which keeps what the Triton kernels' backward needs."""
    return ChunkRule(forward, inference, ("G", "strength", "inverse"), _saved_like, backward)


OPERATORS = TritonOperators("gated_delta_rule", chunk_rule(forward, forward))
