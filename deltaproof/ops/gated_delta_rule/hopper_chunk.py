"""Launching the chunk kernels for Hopper: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.triton_chunks import Call, Chunks
from deltaproof.ops.common.triton_host import aligned, given, state_strides, zero_tail
from deltaproof.ops.common.triton_places import chunk_table_kernel
from deltaproof.ops.gated_delta_rule.hopper_ends import hopper_ends_kernel
from deltaproof.ops.gated_delta_rule.hopper_prepare import hopper_prepare_kernel
from deltaproof.ops.gated_delta_rule.hopper_tables import WalkTable
from deltaproof.ops.gated_delta_rule.hopper_walk import hopper_walk_kernel
from deltaproof.ops.gated_delta_rule.triton_chunk import Prepared
from deltaproof.ops.gated_delta_rule.triton_stitch import stitch_kernel


@dataclass(frozen=True)
class _Slots:
    """What a pool adds to a call: tensors that the kernels' flags leave out where there is none, and the flags."""

    checkpoints: torch.Tensor | None = None
    read: torch.Tensor | None = None
    write: torch.Tensor | None = None
    fresh: torch.Tensor | None = None
    count: int = 0
    every: int = 0

    @classmethod
    def of(cls, call: Call) -> _Slots:
        if not isinstance(call, PrefillCall):
            return cls()
        write = call.read_index if call.write_index is None else call.write_index
        every = call.checkpoint_every or 0
        return cls(call.checkpoint_index, call.read_index, write, call.has_initial_state, call.pool.shape[0], every)

    @property
    def flags(self) -> dict[str, bool]:
        return {"POOL": self.read is not None, "FRESH": self.fresh is not None}


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


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Prepared:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; return what a backward pass needs."""
    chunks = Chunks.of(call, normalize=call.options.normalize_qk)
    options = call.options
    B, T, H, HV, K, V = call.dims
    G, strength = (chunks.new(B, T, HV, dtype=torch.float32) for _ in range(2))
    factors = chunks.new(chunks.count, HV, 2, 64, dtype=torch.float32)
    inverse, attention = (chunks.new(chunks.count, HV, 64, 64) for _ in range(2))
    g, beta = aligned(call.g), aligned(call.beta)
    if chunks.count:
        hopper_prepare_kernel[(chunks.count * H,)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), G, strength, factors, inverse,
            attention, *chunks.pack, options.scale, T, call.sequences, **chunks.flags, GATE=options.gate_in_kernel,
            DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval,
            num_warps=4,
        )  # fmt: skip
    if call.sequences:
        table = WalkTable.of(V, HV, 1 if options.batch_invariant else call.sequences)
        _walk(chunks, table, factors, inverse, attention, o, source, sink)
    zero_tail(o, call.cu_seqlens)
    return G, strength, inverse


def _walk(
    chunks: Chunks,
    table: WalkTable,
    factors: torch.Tensor,
    inverse: torch.Tensor,
    attention: torch.Tensor,
    o: torch.Tensor,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> None:
    """Make the outputs and what is left of states, segment by segment where sequences are split."""
    call, layout, slots = chunks.call, chunks.call.options.layout, _Slots.of(chunks.call)
    _, T, _, HV, K, V = call.dims
    segments = _Segments.of(chunks, table.split)
    places = (*chunks.pack[:2], segments.offsets, segments.sequence)
    common: dict[str, Any] = {
        **chunks.flags, **slots.flags, "V": V, "STAGES": table.stages, "SPLIT": table.split,
        "READ": source is not None,
    }  # fmt: skip
    starts = o
    if table.split:
        starts = chunks.new(segments.count, HV, V, K, dtype=torch.float32)
        transitions = chunks.new(segments.count, HV, K, K, dtype=torch.float32)
        hopper_ends_kernel[(segments.count * HV * ((V + K) // 64),)](
            chunks.k, chunks.v, factors, inverse, starts, transitions, o if source is None else source,
            given(slots.read, o), given(slots.fresh, o), *places, T, call.sequences, slots.count,
            *state_strides(source, layout), **common, BV=64, num_warps=4,
        )  # fmt: skip
        stitch_kernel[(call.sequences * HV * (V // 16),)](
            starts, transitions, segments.offsets, T, HV=HV, K=K, V=V, BK=32, BV=16, SPLIT=table.split,
            VARLEN=call.cu_seqlens is not None, num_warps=4,
        )  # fmt: skip
    hopper_walk_kernel[(segments.count * HV * (V // table.BV),)](
        chunks.q, chunks.k, chunks.v, factors, inverse, attention, o, starts, o if source is None else source,
        o if sink is None else sink,
        *(given(x, o) for x in (slots.checkpoints, slots.read, slots.write, slots.fresh)), *places,
        call.options.scale, T, call.sequences, slots.count,
        0 if slots.checkpoints is None else slots.checkpoints.shape[1], *state_strides(source, layout),
        *state_strides(sink, layout), **common, BV=table.BV, WRITE=sink is not None, EVERY=slots.every,
        num_warps=table.BV // 16,
    )  # fmt: skip
