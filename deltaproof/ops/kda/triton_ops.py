"""The Triton forms of Kimi delta attention."""

from __future__ import annotations

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_chunks import Forward, Saved, chunk_bound, inverse_dtype, operand_dtype
from deltaproof.ops.common.triton_ops import ChunkRule, TritonOperators
from deltaproof.ops.kda.triton_chunk import forward
from deltaproof.ops.kda.triton_chunk_backward import backward


def _saved_like(call: SequenceCall) -> Saved:
    HV, C = call.v.shape[2], call.options.chunk_size
    return (call.v.new_empty(chunk_bound(call), HV, C, C, dtype=inverse_dtype(operand_dtype(call))),)


def chunk_rule(forward: Forward) -> ChunkRule:
    """Return the chunked form with this forward, which keeps what the Triton kernels' backward needs."""
    return ChunkRule(forward, forward, ("inverse",), _saved_like, backward)


OPERATORS = TritonOperators("kda", chunk_rule(forward))
