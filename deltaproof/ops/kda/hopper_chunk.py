"""Launching the chunk kernels for Hopper: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.hopper_inverse import hopper_invert_kernel
from deltaproof.ops.common.hopper_walks import WalkOperands, walk
from deltaproof.ops.common.triton_chunks import Call, Chunks, Saved
from deltaproof.ops.kda.triton_chunk import cut, scores


def _inverted(chunks: Chunks, system: torch.Tensor) -> torch.Tensor:
    """Return the inverses [chunks, HV, 64, 64] of chunks' unit lower-triangular matrices."""
    call, HV = chunks.call, chunks.call.v.shape[2]
    inverse = chunks.new(chunks.count, HV, 64, 64)
    matrices = chunks.count * HV
    if matrices:
        hopper_invert_kernel[(triton.cdiv(matrices, 2),)](
            system, inverse, chunks.pack[1], call.sequences, matrices, HV=HV,
            VARLEN=call.cu_seqlens is not None, num_warps=4,
        )  # fmt: skip
    return inverse


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Saved:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; return what a backward pass needs."""
    chunks, table = cut(call)
    # its scores are multiplied by the strengths; the walk multiplies errors by them where they are written
    found = scores(chunks, table, backward=False)
    inverse = _inverted(chunks, found.system)
    known = WalkOperands(
        found.queries, found.keys, found.kept, found.left, found.strength, inverse, found.attention, per_channel=True
    )
    walk(chunks, known, o, source, sink)
    return (inverse,)
