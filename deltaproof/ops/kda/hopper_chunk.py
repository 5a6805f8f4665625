"""Launching the chunk kernels for Hopper: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

import torch

from deltaproof.ops.common.hopper_walks import WalkOperands, walk
from deltaproof.ops.common.triton_chunks import Call, Saved
from deltaproof.ops.common.triton_host import zero_tail
from deltaproof.ops.kda.triton_chunk import cut, inverted, scores


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Saved:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; return what a backward pass needs."""
    chunks, table = cut(call)
    # its scores are multiplied by the strengths; the walk multiplies errors by them where they are written
    found = scores(chunks, table, backward=False)
    inverse = inverted(chunks, found.system)
    known = WalkOperands(
        found.queries, found.keys, found.kept, found.left, found.strength, inverse, found.attention, per_channel=True
    )
    walk(chunks, known, o, source, sink)
    zero_tail(o, call.cu_seqlens)
    return (inverse,)
