"""What kernels in Gluon that walk chunks share: where a sequence's part lies, and what is loaded ahead.

A sequence is walked whole or in segments of SPLIT chunks. Shape legend: chunks of 64 tokens; H query/key heads, HV
value heads, K, V head sizes, V cut into blocks of BV; N sequences.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from deltaproof.ops.common.triton_places import sequence_bounds


@gluon.jit
def segment_place(
    segment, T, N, cu_seqlens, chunk_offsets, segment_offsets, segment_sequence,
    SPLIT: gl.constexpr, VARLEN: gl.constexpr,
):  # fmt: skip
    """Return where a segment lies; with SPLIT = 0 each sequence is one, and ``segment`` is its number.

    Returns:
        its sequence (-1: there is no such segment) and its number in it; its first token in [B * T], how many it has,
        and how many of the sequence come before it; its first chunk.
    """
    n = segment
    index = segment * 0
    if VARLEN:
        if SPLIT > 0:
            used = segment < gl.load(segment_offsets + N)
            n = gl.where(used, gl.load(segment_sequence + segment, mask=used, other=0).to(gl.int64), 0)
            index = segment - gl.load(segment_offsets + n)
        first, length = sequence_bounds(cu_seqlens, n, T)
        chunk = gl.load(chunk_offsets + n).to(gl.int64)
        length = gl.minimum(length, (gl.load(chunk_offsets + n + 1).to(gl.int64) - chunk) * 64)
        if SPLIT > 0:
            n = gl.where(used, n, -1)
    else:
        if SPLIT > 0:
            segments = gl.maximum((T + 64 * SPLIT - 1) // (64 * SPLIT), 1)
            n = segment // segments
            index = segment % segments
        first = n * T
        length = T.to(gl.int64)
        chunk = n * ((T + 63) // 64)
    before = index * (64 * SPLIT)
    length = length - before
    if SPLIT > 0:
        length = gl.minimum(length, 64 * SPLIT)
    return n, index, first + before, length.to(gl.int32), before, chunk + index * SPLIT


@gluon.jit
def is_last(segment, n, index, T, segment_offsets, SPLIT: gl.constexpr, VARLEN: gl.constexpr):
    """Return whether a segment is its sequence's last; worked out where it is asked for, and not held until then."""
    if SPLIT == 0:
        last = index == 0
    elif VARLEN:
        last = segment + 1 == gl.load(segment_offsets + n + 1)
    else:
        last = (index + 1) * (64 * SPLIT) >= T
    return last


@gluon.jit
def copy_rows(
    x, tile, stride: gl.constexpr, count, WIDTH: gl.constexpr, WARPS: gl.constexpr, LENGTH: gl.constexpr = 64
):  # fmt: skip
    """Copy rows of WIDTH elements, ``stride`` apart, into shared memory: ``count`` of LENGTH, and zeros behind.

    A thread's rows lie in registers, so it has one address, and numbers that the compiler knows.
    """
    ROWS: gl.constexpr = 256 // WIDTH * WARPS
    LAYOUT: gl.constexpr = gl.BlockedLayout(
        [LENGTH // ROWS, 1, 8], [1, 256 // WIDTH, WIDTH // 8], [1, WARPS, 1], [2, 1, 0]
    )  # [64 / ROWS, ROWS, WIDTH]
    far = gl.arange(0, LENGTH // ROWS, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None][:, :, None] * ROWS
    near = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :][:, :, None]
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, gl.SliceLayout(0, LAYOUT)))[None, :][None, :, :]
    place = (x + (near * stride + column)) + far * stride
    async_copy.async_copy_global_to_shared(tile.reshape([LENGTH // ROWS, ROWS, WIDTH]), place, mask=near < count - far)


@gluon.jit
def zero_rows(x, count, stride: gl.constexpr, WIDTH: gl.constexpr, WARPS: gl.constexpr):
    """Store zeros to ``count`` rows of WIDTH elements, ``stride`` apart."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [WARPS, 1], [1, 0])  # [64, WIDTH]
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    place = row * stride + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))[None, :]
    zeros = gl.zeros([64, WIDTH], gl.float32, LAYOUT).to(x.dtype.element_ty)
    for start in range(0, count, 64):
        gl.store(x + place, zeros, mask=row < count - start)
        x += 64 * stride


@gluon.jit
def copy_line(x, tile, stride: gl.constexpr, count, SIZE: gl.constexpr, WARPS: gl.constexpr):
    """Copy SIZE numbers, ``stride`` apart, into shared memory: ``count`` of them, and zeros behind."""
    at = gl.arange(0, SIZE, gl.BlockedLayout([1], [32], [WARPS], [0]))
    async_copy.async_copy_global_to_shared(tile, x + at * stride, mask=at < count)
