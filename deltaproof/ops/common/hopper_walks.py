"""Launching the walk over chunks on Hopper, whole sequences or their segments at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.hopper_ends import hopper_ends_kernel
from deltaproof.ops.common.hopper_stitch import stitch_kernel
from deltaproof.ops.common.hopper_tables import WalkTable, stitch_rows
from deltaproof.ops.common.hopper_triangles import copied_block, is_whole
from deltaproof.ops.common.hopper_walk import hopper_walk_kernel
from deltaproof.ops.common.triton_chunks import Chunks, Slots
from deltaproof.ops.common.triton_host import given, state_strides, zero_tail
from deltaproof.ops.common.triton_places import chunk_table_kernel


@dataclass(frozen=True)
class WalkOperands:
    """What the walk takes beside a call's values; see ``hopper_walk_kernel``."""

    queries: torch.Tensor
    keys: torch.Tensor
    kept: torch.Tensor
    factors: torch.Tensor
    strength: torch.Tensor
    inverse: torch.Tensor  # [chunks, HV, 64, 64], or folded
    attention: torch.Tensor  # the same, but folded it is transposed
    per_channel: bool


@dataclass(frozen=True)
class _Segments:
    """The parts of sequences that are walked at once.

    Attributes:
        split: chunks of a part; 0: a sequence is one.
        count: bound of their number.
        offsets, sequence: of a pack that is split, the first segment of each sequence and each segment's sequence.
    """

    split: int
    count: int
    offsets: torch.Tensor
    sequence: torch.Tensor

    @classmethod
    def of(cls, chunks: Chunks, split: int) -> _Segments:
        call, stand_in = chunks.call, chunks.q
        B, T = call.q.shape[:2]
        N = call.sequences
        if not split:
            return cls(0, N, stand_in, stand_in)
        if call.cu_seqlens is None:
            return cls(split, B * max(1, triton.cdiv(T, 64 * split)), stand_in, stand_in)
        bound = triton.cdiv(T, 64 * split) + N
        offsets, sequence = (chunks.new(size, dtype=torch.int32) for size in (N + 1, bound))
        chunk_table_kernel[(1,)](
            chunks.pack[0], offsets, sequence, N, T, bound, C=64 * split, BLOCK=128, LEAST=1, num_warps=4
        )
        return cls(split, bound, offsets, sequence)


LAYOUTS = {2: NVMMASharedLayout(128, 16, 2), 4: NVMMASharedLayout(0, 32, 2)}
"""How tiles lie in shared memory, by an element's bytes."""


def _described(chunks: Chunks, x: torch.Tensor, columns: int, block: tuple[int, int]) -> TensorDescriptor:
    """Return x, contiguous and on 16 bytes, as rows of ``columns`` numbers, of which blocks are copied.

    Kernels count rows in 32 bits: 2 ** 31 of them, of 128 bytes at least, are more than a GPU has room for.
    """
    rows = x.numel() // columns
    if not rows:
        # a descriptor has no dimension of 0; nobody reads what stands in
        rows, x = 1, chunks.new(1, columns, dtype=x.dtype)
    return TensorDescriptor(x, [rows, columns], [columns, 1], list(block), LAYOUTS[x.element_size()])


def _transitions(chunks: Chunks, o: torch.Tensor, segments: int) -> torch.Tensor:
    """Return room for transitions [segments, HV, 2, K, K] in bf16: o's if it is enough, as it is written after them."""
    _, _, _, HV, K, _ = chunks.call.dims
    shape = (segments, HV, 2, K, K)
    if o.numel() < math.prod(shape):
        return chunks.new(*shape, dtype=torch.bfloat16)
    return o.view(torch.bfloat16).flatten()[: math.prod(shape)].view(shape)


def walk(
    chunks: Chunks,
    known: WalkOperands,
    o: torch.Tensor,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> None:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; in segments where sequences are split."""
    if not chunks.call.sequences:
        return zero_tail(o, chunks.call.cu_seqlens)
    call, layout, slots = chunks.call, chunks.call.options.layout, Slots.of(chunks.call)
    _, T, _, HV, K, V = call.dims
    table = WalkTable.of(V, HV, 1 if call.options.batch_invariant else call.sequences)
    segments = _Segments.of(chunks, table.split)
    places = (*chunks.pack[:2], segments.offsets, segments.sequence)
    # [chunks, HV, K], or [chunks, HV, lines, 64]
    lines = math.prod(known.factors.shape[2:-1])
    common: dict[str, Any] = {
        **chunks.flags, **slots.flags, **({"H": HV} if known.per_channel else {}), "V": V,
        "SPLIT": table.split, "READ": source is not None, "PER_CHANNEL": known.per_channel,
        "LINES": lines, "WHOLE": is_whole(known.inverse),
    }  # fmt: skip
    q, k = (_described(chunks, x, x.shape[2] * K, (64, K)) for x in (known.queries, known.keys))
    kept = _described(chunks, known.kept, HV * K, (64, K)) if known.per_channel else known.kept
    v = _described(chunks, chunks.v, HV * V, (64, table.BV))
    inverse, attention = (_described(chunks, x, *copied_block(x)) for x in (known.inverse, known.attention))
    width = known.factors.shape[-1]
    factors = _described(chunks, known.factors, width, (lines, width))
    outputs = _described(chunks, o, HV * V, (64, table.BV))
    states = None if isinstance(call, PrefillCall) else call.chunk_states
    starts = known.factors
    # else a sequence is one segment, wherever it ends
    if 0 < 64 * table.split < T:
        # of a pool states before sequences' first segments are among them
        firsts = int(common["POOL"])
        starts = chunks.new(segments.count - 1 + firsts, HV, V, K, dtype=torch.float32)
        transitions = _transitions(chunks, o, segments.count)
        carried = chunks.new(segments.count, HV, dtype=torch.int32)
        hopper_ends_kernel[(segments.count * HV * ((V + K) // 64),)](
            k, kept, _described(chunks, chunks.v, HV * V, (64, 64)), factors, known.strength, inverse, known.factors,
            starts, transitions, carried, o if source is None else source,
            given(slots.read, o), given(slots.fresh, o), *places, T, call.sequences, slots.count,
            *state_strides(source, layout), **common, BV=64, num_warps=4,
        )  # fmt: skip
        BV = stitch_rows(V, HV)
        stitch_kernel[(call.sequences * HV * (V // BV),)](
            starts[firsts:], transitions, carried, segments.offsets, T, HV=HV, K=K, V=V, BV=BV, STAGES=3,
            SPLIT=table.split, VARLEN=call.cu_seqlens is not None, num_warps=BV // 4,
        )  # fmt: skip
    hopper_walk_kernel[(segments.count * HV * (V // table.BV),)](
        q, k, kept, v, factors, known.strength, inverse, attention, outputs, o, given(states, o), starts,
        o if source is None else source, o if sink is None else sink,
        *(given(x, o) for x in (slots.checkpoints, slots.read, slots.write, slots.fresh)), *places,
        call.options.scale, T, call.sequences, slots.count,
        0 if slots.checkpoints is None else slots.checkpoints.shape[1],
        0 if states is None else states.shape[0] * states.shape[1] * HV, *state_strides(source, layout),
        *state_strides(sink, layout), **common, BV=table.BV, WHOLE_A=is_whole(known.attention),
        WRITE=sink is not None, EVERY=slots.every, STATES=states is not None,
        V_FIRST=layout is StateLayout.V_FIRST, num_warps=table.BV // 16,
    )  # fmt: skip
