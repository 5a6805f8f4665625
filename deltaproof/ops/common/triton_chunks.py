"""Cutting a call into chunks, and launching what every chunked delta rule has in common.

No launch depends on the contents of cu_seqlens: chunk grids use the bound cdiv(T, C) + N - 1, and which sequence a
chunk belongs to is worked out on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton

from deltaproof.ops.common.calls import PrefillCall, SequenceCall
from deltaproof.ops.common.triton_host import aligned, given, state_strides
from deltaproof.ops.common.triton_inputs import normalize_kernel
from deltaproof.ops.common.triton_places import chunk_table_kernel
from deltaproof.ops.common.triton_states import reverse_states_kernel, states_kernel
from deltaproof.ops.common.triton_tables import Launch
from deltaproof.ops.common.triton_transform import transform_kernel

Call = SequenceCall | PrefillCall
Saved = tuple[torch.Tensor, ...]
Forward = Callable[[Call, torch.Tensor, torch.Tensor | None, torch.Tensor | None], Saved]
"""An operator's chunked form: from a call, o, states to start from and to leave, to what a backward pass needs."""


def operand_dtype(call: Call) -> torch.dtype:
    """Return the dtype in which a call's q, k and v are multiplied."""
    return torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)


def inverse_dtype(operands: torch.dtype) -> torch.dtype:
    """Return the dtype in which a chunk's inverse is kept: the operands', but float64 for float32."""
    return torch.float64 if operands == torch.float32 else operands


def chunk_bound(call: Call) -> int:
    """Return the number of chunks of a call or, of a pack, a bound of it that needs no look at cu_seqlens."""
    B, T = call.q.shape[:2]
    C, N = call.options.chunk_size, call.sequences
    if call.cu_seqlens is None:
        return B * triton.cdiv(T, C)
    return triton.cdiv(T, C) + N - 1 if N and T else 0


@dataclass(frozen=True)
class Chunks:
    """A call cut into chunks: operands in one dtype and, for a pack, the device's own index of chunks."""

    call: Call
    q: torch.Tensor  # [B, T, H, K] normalised if asked
    k: torch.Tensor  # [B, T, H, K]
    v: torch.Tensor  # [B, T, HV, V]
    count: int  # bound of the number of chunks
    pack: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # cu_seqlens, chunk_offsets, chunk_sequence

    @classmethod
    def of(cls, call: Call, *, normalize: bool) -> Chunks:
        """Cast the operands, normalise q and k where ``normalize``, and index the chunks."""
        T, low = call.q.shape[1], operand_dtype(call)
        q, k, v = (aligned(x) for x in (call.q, call.k, call.v))
        if normalize:
            q, k = (_normalized(call, x, low) for x in (q, k))
        q, k, v = (x.to(low) for x in (q, k, v))
        C, N, cu_seqlens, bound = call.options.chunk_size, call.sequences, call.cu_seqlens, chunk_bound(call)
        if cu_seqlens is None:
            return cls(call, q, k, v, bound, (q, q, q))
        cu_seqlens = cu_seqlens.contiguous()
        offsets = call.allocate((N + 1,), dtype=torch.int32, device=q.device)
        sequence = call.allocate((bound,), dtype=torch.int32, device=q.device)
        chunk_table_kernel[(1,)](cu_seqlens, offsets, sequence, N, T, bound, C=C, BLOCK=128, num_warps=4)
        return cls(call, q, k, v, bound, (cu_seqlens, offsets, sequence))

    @property
    def flags(self) -> dict[str, Any]:
        """Return the constants that every chunk kernel takes."""
        _, _, H, HV, K, _ = self.call.dims
        varlen = self.call.cu_seqlens is not None
        return {"H": H, "HV": HV, "K": K, "C": self.call.options.chunk_size, "VARLEN": varlen}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Allocate a workspace, in the operands' dtype if none is given."""
        return self.call.allocate(shape, dtype=self.q.dtype if dtype is None else dtype, device=self.q.device)


def _normalized(call: Call, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = call.allocate(x.shape, dtype=dtype, device=x.device)
    K = x.shape[-1]
    rows = x.numel() // K
    if rows:
        BK = triton.next_power_of_2(K)
        block = max(1, 2048 // BK)
        normalize_kernel[(triton.cdiv(rows, block),)](x, y, rows, K=K, BK=BK, BLOCK=block, num_warps=4)
    return y


@dataclass(frozen=True)
class Operands:
    """What the walk over chunks takes, with a gate a head or, ``per_channel``, decayed beforehand."""

    queries: torch.Tensor  # [B, T, H, K]; a gate a channel: exp(G) q [B, T, HV, K]
    keys: torch.Tensor  # [B, T, H, K]; a gate a channel: exp(G) k [B, T, HV, K]
    kept: torch.Tensor  # [B, T, H, K]; a gate a channel: exp(G_end - G) k [B, T, HV, K]
    G: torch.Tensor  # [B, T, HV] cumulative log gates, fp32; a gate a channel: exp(G_end) [chunks, HV, K]
    strength: torch.Tensor  # [B, T, HV] fp32
    inverse: torch.Tensor  # [chunks, HV, C, C] in inverse_dtype
    per_channel: bool

    def flags(self, chunks: Chunks) -> dict[str, Any]:
        """Return the constants of kernels that take these."""
        heads = {"H": chunks.flags["HV"]} if self.per_channel else {}
        return {**chunks.flags, **heads, "V": chunks.v.shape[-1], "PER_CHANNEL": self.per_channel}


@dataclass(frozen=True)
class Slots:
    """What a pool adds to a call: tensors that the kernels' flags leave out where there is none, and the flags."""

    checkpoints: torch.Tensor | None = None
    read: torch.Tensor | None = None
    write: torch.Tensor | None = None
    fresh: torch.Tensor | None = None
    count: int = 0
    every: int = 0

    @classmethod
    def of(cls, call: Call) -> Slots:
        """Return what a call's pool adds; nothing for a call of the form ``chunk``."""
        if not isinstance(call, PrefillCall):
            return cls()
        write = call.read_index if call.write_index is None else call.write_index
        every = call.checkpoint_every or 0
        return cls(call.checkpoint_index, call.read_index, write, call.has_initial_state, call.pool.shape[0], every)

    @property
    def flags(self) -> dict[str, bool]:
        """Return the constants of kernels that take states from a pool or not."""
        return {"POOL": self.read is not None, "FRESH": self.fresh is not None}


def transform(chunks: Chunks, operands: Operands, launch: Launch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w [B, T, HV, K] and u [B, T, HV, V]: a chunk's errors are u - w S."""
    B, T, _, HV, K, V = chunks.call.dims
    w, u = chunks.new(B, T, HV, K), chunks.new(B, T, HV, V)
    if chunks.count:
        transform_kernel[(chunks.count * HV,)](
            operands.keys, chunks.v, operands.G, operands.inverse, w, u, *chunks.pack, T, chunks.call.sequences,
            **operands.flags(chunks), **launch.tiles, **launch.options,
        )  # fmt: skip
    return w, u


def states(
    chunks: Chunks,
    operands: Operands,
    w: torch.Tensor,
    u: torch.Tensor,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
    launch: Launch,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the states before each chunk [chunks, HV, K, V] in ``dtype``, and put the errors in the place of u."""
    call, layout = chunks.call, chunks.call.options.layout
    _, T, _, HV, K, V = call.dims
    found = chunks.new(chunks.count, HV, K, V, dtype=dtype)
    slots = Slots.of(call)
    if call.sequences:
        states_kernel[(call.sequences * HV * triton.cdiv(V, launch.BV),)](
            operands.kept, w, u, operands.G, operands.strength, u, found, u if source is None else source,
            u if sink is None else sink,
            *(given(x, u) for x in (slots.checkpoints, slots.read, slots.write, slots.fresh)), *chunks.pack[:2], T,
            slots.count, 0 if slots.checkpoints is None else slots.checkpoints.shape[1],
            *state_strides(source, layout), *state_strides(sink, layout), **operands.flags(chunks), BK=launch.BK,
            BV=launch.BV, **slots.flags, READ=source is not None, WRITE=sink is not None, EVERY=slots.every,
            **launch.options,
        )  # fmt: skip
    return found


def reverse_states(
    chunks: Chunks,
    operands: Operands,
    w: torch.Tensor,
    do: torch.Tensor,
    d_errors: torch.Tensor,
    before: torch.Tensor,
    d_final: torch.Tensor | None,
    launch: Launch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Complete ``d_errors``; return gradients of the states after each chunk, of fading and of the initial state."""
    call = chunks.call
    assert isinstance(call, SequenceCall)
    layout = call.options.layout
    _, T, _, HV, K, V = call.dims
    after = chunks.new(chunks.count, HV, K, V)
    parts = triton.cdiv(V, launch.BV)
    fade = chunks.new(call.sequences, HV, parts, *([K] if operands.per_channel else []), dtype=torch.float32)
    state = call.initial_state
    d_initial = None if state is None else call.allocate(state.shape, dtype=state.dtype, device=state.device)
    if call.sequences:
        reverse_states_kernel[(call.sequences * HV * parts,)](
            operands.queries, operands.kept, w, operands.G, operands.strength, do, d_errors, before, after, fade,
            do if state is None else state, do if d_final is None else d_final, do if d_initial is None else d_initial,
            *chunks.pack[:2], call.options.scale, T, *state_strides(state, layout), *state_strides(d_final, layout),
            *state_strides(d_initial, layout), **operands.flags(chunks), BK=launch.BK, BV=launch.BV,
            READ=state is not None, FINAL=d_final is not None, **launch.options,
        )  # fmt: skip
    return after, fade, d_initial


def chunk_forward(call: SequenceCall, forward: Forward) -> tuple[torch.Tensor, torch.Tensor | None, Saved]:
    """Run the form ``chunk``; return o, the final state and what a backward pass needs."""
    B, T, _, HV, K, V = call.dims
    device = call.q.device
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=device)
    state = None if call.initial_state is None else aligned(call.initial_state)
    final = None
    if call.output_final_state:
        shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
        dtype = torch.float32 if state is None else state.dtype
        final = call.allocate(shape, dtype=dtype, device=device)
    return o, final, forward(call, o, state, final)
