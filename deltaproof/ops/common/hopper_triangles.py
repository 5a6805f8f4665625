"""How lower-triangular matrices of 64 tokens lie in memory, for Hopper: whole, [.., 64, 64], or folded, [.., 32, 96].

Beside a folded matrix's 32 long rows lie the 32 short ones, and the zeros of these are not stored: TMA makes them, as
they lie outside the tensor that it knows. A copy of [32, 128] is then two blocks of 64 columns, which lie one behind
the other in shared memory as the rows of a tile [64, 64], the later rows first:

    the inverse T'     [i + 32, j], then [i, j]       errors = x T'^T come with their later 32 tokens first
    attention, A^T     [j + 32, i], then [j, i]       and so do the rows of A^T that these are multiplied with

Short are an inverse's first rows, so its zeros are on the right; of A^T it is the last, and zeros are on the left.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

FOLDED = (32, 96)
"""The shape of a folded matrix."""


def is_whole(matrices: torch.Tensor) -> bool:
    """Return whether matrices [.., 64, 64] or [.., 32, 96] are the former."""
    return matrices.shape[-1] == 64


def copied_block(matrices: torch.Tensor) -> tuple[int, tuple[int, int]]:
    """Return how long the rows of matrices are in memory, and the block that a copy takes."""
    return matrices.shape[-1], (64, 64) if is_whole(matrices) else (32, 128)


@gluon.jit
def inverse_place(row, column, WHOLE: gl.constexpr):
    """Return where an element of an inverse lies, in the order of memory; folded, no such that row < 32 <= column."""
    at = row * 64
    if not WHOLE:
        at = gl.where(row < 32, row * 96 + 64, (row - 32) * 96)
    return at + column


@gluon.jit
def attention_place(row, column):
    """Return where an element of folded A^T lies; none such that column < 32 <= row does."""
    return gl.where(row < 32, row * 96 + 32, (row - 32) * 96 - 32) + column


@gluon.jit
def copied_tile(tiles, WHOLE: gl.constexpr):
    """Return tiles [stages, 64, 64] as matrices are copied to them."""
    if not WHOLE:
        SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        tiles = tiles._reinterpret(tiles.dtype, [tiles.shape[0], 32, 128], SHARED)
    return tiles


@gluon.jit
def copy_matrix(matrices, number, barrier, tile, COLUMN: gl.constexpr, WHOLE: gl.constexpr):
    """Ask for a matrix; of folded ones the tile begins at COLUMN: 0, of attention -32."""
    if WHOLE:
        tma.async_copy_global_to_shared(matrices, [number * 64, 0], barrier, tile)
    else:
        tma.async_copy_global_to_shared(matrices, [number * 32, COLUMN], barrier, tile)


@gluon.jit
def attention_right(tile, WHOLE: gl.constexpr):
    """Return attention's tile as the right factor of errors, A^T."""
    if WHOLE:
        tile = tile.permute([1, 0])
    return tile


@gluon.jit
def turned(errors, LAYOUT: gl.constexpr, ASKED: gl.constexpr):
    """Return errors [BV, 64], in LAYOUT, with the halves of their tokens exchanged if that is ASKED: in a thread."""
    x = errors
    if ASKED:
        one, other = errors.reshape([errors.shape[0], 2, 32]).permute([0, 2, 1]).split()
        x = gl.join(other, one).permute([0, 2, 1]).reshape([errors.shape[0], 64])
        x = gl.convert_layout(x, LAYOUT, assert_trivial=True)
    return x
