"""Where sequences and chunks lie in packed tokens, worked out on the device so that nothing waits for the host.

Chunks are numbered over all sequences: sequence n owns ``chunk_offsets[n]`` up to ``chunk_offsets[n + 1]``. Shape
legend: N sequences, T tokens, C chunk size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence_bounds(cu_seqlens, n, T):
    """Return a sequence's first token and its length, inside [0, T] whatever the bounds say (clause E1)."""
    first = tl.minimum(tl.maximum(tl.load(cu_seqlens + n).to(tl.int64), 0), T)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + n + 1).to(tl.int64), first), T)
    return first, end - first


@triton.jit(do_not_specialize=["N", "T", "bound"])
def chunk_table_kernel(
    cu_seqlens, chunk_offsets, chunk_sequence, N, T, bound, C: tl.constexpr, BLOCK: tl.constexpr,
    LEAST: tl.constexpr = 0,
):  # fmt: skip
    """Write chunk_offsets [N + 1] and the sequence of every chunk [bound]; one program, sequences in order.

    A sequence has LEAST chunks at least.
    """
    total = tl.zeros([], tl.int32)
    at = tl.arange(0, BLOCK)
    tl.store(chunk_offsets, total)
    for n in range(N):
        first, length = sequence_bounds(cu_seqlens, n, T)
        count = tl.minimum(tl.maximum((length + C - 1) // C, LEAST), bound - total).to(tl.int32)
        for start in range(0, count, BLOCK):
            tl.store(chunk_sequence + total + start + at, tl.zeros([BLOCK], tl.int32) + n, mask=start + at < count)
        total += count
        tl.store(chunk_offsets + n + 1, total)


@triton.jit
def chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C: tl.constexpr, VARLEN: tl.constexpr):
    """Return a chunk's sequence, its first token in [B * T] and its number of tokens (0: there is no such chunk)."""
    if VARLEN:
        used = chunk < tl.load(chunk_offsets + N)
        n = tl.load(chunk_sequence + chunk, mask=used, other=0).to(tl.int64)
        first, length = sequence_bounds(cu_seqlens, n, T)
        before = (chunk - tl.load(chunk_offsets + n)).to(tl.int64) * C
        first += before
        count = tl.where(used, tl.minimum(length - before, C), 0)
    else:
        chunks = (T + C - 1) // C
        n = chunk // chunks
        inside = (chunk % chunks) * C
        first = n * T + inside
        count = tl.minimum(T - inside, C).to(tl.int64)
    return n, first, count


@triton.jit
def sequence_place(n, T, cu_seqlens, chunk_offsets, C: tl.constexpr, VARLEN: tl.constexpr):
    """Return a sequence's first token in [B * T], its length and its first chunk."""
    if VARLEN:
        first, length = sequence_bounds(cu_seqlens, n, T)
        chunk = tl.load(chunk_offsets + n).to(tl.int64)
        length = tl.minimum(length, (tl.load(chunk_offsets + n + 1).to(tl.int64) - chunk) * C)
    else:
        first = n * T
        length = tl.zeros([], tl.int64) + T
        chunk = n * ((T + C - 1) // C)
    return first, length, chunk


@triton.jit(do_not_specialize=["N", "T"])
def zero_tail_kernel(o, cu_seqlens, N, T, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Zero the rows of o [T, WIDTH] that lie behind the last sequence; grid over blocks of rows."""
    end = tl.load(cu_seqlens + N).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first + BLOCK <= end:
        return
    rows = first + tl.arange(0, BLOCK)  # [BLOCK]
    for start in range(0, WIDTH, 128):
        at = start + tl.arange(0, 128)
        inside = ((rows >= end) & (rows < T))[:, None] & (at < WIDTH)[None, :]
        zeros = tl.zeros([BLOCK, 128], tl.float32).to(o.dtype.element_ty)
        tl.store(o + rows[:, None] * WIDTH + at[None, :], zeros, mask=inside)
