"""Inverses of unit lower-triangular matrices I + L of 64 tokens, for Hopper, in Gluon: one or two in a program.

The diagonal blocks of 16 are inverted in fp32, from the last column to the first, a row a thread: of two matrices they
have as many rows as four warps have threads. The other blocks are products of finished ones, of operands in two bf16
pieces (16 bits). Only the finished inverse is rounded. What a step needs of L lies in shared memory as that step reads
it; see ``inverse_tiles``. Shape legend: P matrices in a program.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from deltaproof.ops.common.hopper_language import cut
from deltaproof.ops.common.hopper_triangles import inverse_place


@gluon.jit
def _product(a_1, a_2, b_1, b_2, like):
    """Return the products [P, M, N] of tiles in two bf16 pieces each, in the layout of ``like``, which is zero."""
    found = mma_v2(a_2, b_1, like)
    found = mma_v2(a_1, b_2, found)
    return mma_v2(a_1, b_1, found)


@gluon.jit
def _pieces(x):
    """Return fp32 x as the sum of two bf16 tensors, but for its last 8 bits."""
    wide, x_1 = cut(x)
    _, x_2 = cut(x - wide)
    return x_1, x_2


@gluon.jit
def _sides(x):
    """Return the left and the right half of a matrix [R, 2 W]."""
    W: gl.constexpr = x.shape[1] // 2
    return x.reshape([x.shape[0], 2, W]).permute([0, 2, 1]).split()


@gluon.jit
def _beside(a, b):
    """Return matrices [P, R, 2 W] of their left and right halves."""
    return gl.join(a, b).permute([0, 1, 3, 2]).reshape([a.shape[0], a.shape[1], 2 * a.shape[2]])


@gluon.jit
def _tile(x, ROW: gl.constexpr, COLUMN: gl.constexpr, SIZE: gl.constexpr):
    """Return the parts [P, SIZE, SIZE] of matrices in shared memory that begin at (ROW, COLUMN)."""
    return x.slice(ROW, SIZE, 1).slice(COLUMN, SIZE, 2)


@gluon.jit
def _eliminate(x, matrix, column, ROW: gl.constexpr, QUARTER: gl.constexpr):
    """Take the matrix's row times column ROW of the inverse, which is finished, off the columns before it."""
    # x + -0.0 is x to the bit, so the compiler makes no sum of this one
    done = gl.sum(gl.where(column == ROW % 4, x[ROW // 4], -0.0), 2)[:, :, None]
    row = matrix.slice(ROW, 1, 1)  # [4 P, 1, 16]
    x_0 = x[0] - row.slice(0, 4, 2).load(QUARTER) * done
    x_1 = x[1]
    x_2 = x[2]
    x_3 = x[3]
    if ROW > 4:
        x_1 = x_1 - row.slice(4, 4, 2).load(QUARTER) * done
    if ROW > 8:
        x_2 = x_2 - row.slice(8, 4, 2).load(QUARTER) * done
    if ROW > 12:
        x_3 = x_3 - row.slice(12, 4, 2).load(QUARTER) * done
    return x_0, x_1, x_2, x_3


@gluon.jit
def _places(
    step, ROW: gl.constexpr, COLUMN: gl.constexpr, SHAPE: gl.constexpr, EACH: gl.constexpr, WHOLE: gl.constexpr,
    C: gl.constexpr,
):  # fmt: skip
    """Return where tiles lie in matrices that are ``step`` apart: EACH along a diagonal, from (ROW, COLUMN) on."""
    n = gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, C)))[:, None][:, :, None]
    row = gl.arange(0, SHAPE[1], gl.SliceLayout(0, gl.SliceLayout(2, C)))[None, :][:, :, None]
    column = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(0, C)))[None, :][None, :, :]
    along = n % EACH * (64 // EACH)
    return n // EACH * step + inverse_place(along + ROW + row, along + COLUMN + column, WHOLE)


@gluon.jit
def _merge(left, above, below, SHAPE: gl.constexpr, C: gl.constexpr):
    """Return -below left above, the inverse's blocks left of those that are finished, in the layout C.

    Args:
        left: the matrix's own blocks [P, SIZE, SIZE] left of ``below``, in two pieces, in shared memory.
        above, below: finished blocks of the inverse, on the diagonal, alike.
    """
    A: gl.constexpr = gl.DotOperandLayout(0, C, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, C, 2)
    zero = gl.zeros(SHAPE, gl.float32, C)
    found = _product(below[0].load(A), below[1].load(A), left[0].load(B), left[1].load(B), zero)
    a_1, a_2 = _pieces(found)
    a_1 = gl.convert_layout(a_1, A, assert_trivial=True)
    a_2 = gl.convert_layout(a_2, A, assert_trivial=True)
    return -_product(a_1, a_2, above[0].load(B), above[1].load(B), zero)


@gluon.jit
def inverse_tiles(P: gl.constexpr):
    """Return shared memory for what is kept of P matrices.

    It has the diagonal blocks, fp32 [4 P, 16, 16]; in two pieces the blocks of 16 left of every other one of those, in
    the later half of [2 P, 32, 16]; and the left half's columns, of which the lower rows are read, [P, 64, 32].
    """
    PADDED: gl.constexpr = gl.PaddedSharedLayout.with_identity_for([[256, 16]], [4 * P, 16, 16], [2, 1, 0])
    NARROW: gl.constexpr = gl.SwizzledSharedLayout(8, 4, 2, [2, 1, 0])
    WIDE: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 4, [2, 1, 0])
    return (
        gl.allocate_shared_memory(gl.float32, [4 * P, 16, 16], PADDED),
        gl.allocate_shared_memory(gl.bfloat16, [2 * P, 32, 16], NARROW),
        gl.allocate_shared_memory(gl.bfloat16, [2 * P, 32, 16], NARROW),
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
    )


@gluon.jit
def keep_matrix(tiles, x, h: gl.constexpr, C: gl.constexpr):
    """Keep matrix ``h``, fp32 [64, 64] in the layout C; on and above the diagonal it may be anything."""
    s_diagonal, s_left_1, s_left_2, s_half_1, s_half_2 = tiles
    r = gl.arange(0, 64, gl.SliceLayout(1, C))[:, None]
    c = gl.arange(0, 64, gl.SliceLayout(0, C))[None, :]
    block, _ = _sides(_sides(r // 16 + 0 * c)[0])  # [64, 16]: the block that a row is of
    below, _ = _sides(_sides(r % 16 - c % 16)[0])
    left, right = _sides(x)
    half_1, half_2 = _pieces(left)
    s_half_1.slice(h, 1, 0).store(half_1.reshape([1, 64, 32]))
    s_half_2.slice(h, 1, 0).store(half_2.reshape([1, 64, 32]))
    x_0, x_1 = _sides(left)  # [64, 16]
    x_2, x_3 = _sides(right)
    part = gl.where(block < 2, gl.where(block == 0, x_0, x_1), gl.where(block == 2, x_2, x_3))
    s_diagonal.slice(4 * h, 4, 0).store(gl.where(below > 0, part, 0.0).reshape([4, 16, 16]))
    left_1, left_2 = _pieces(gl.where(block == 1, x_0, x_2))
    s_left_1.slice(2 * h, 2, 0).store(left_1.reshape([2, 32, 16]))
    s_left_2.slice(2 * h, 2, 0).store(left_2.reshape([2, 32, 16]))


@gluon.jit
def store_inverses(tiles, inverse, step, P: gl.constexpr, WARPS: gl.constexpr, WHOLE: gl.constexpr):
    """Store the inverses of the matrices in ``tiles``, ``step`` elements apart, as ``hopper_triangles`` says."""
    LOW: gl.constexpr = inverse.dtype.element_ty
    QUARTER: gl.constexpr = gl.BlockedLayout([1, 1, 4], [2, 16, 1], [WARPS, 1, 1], [2, 1, 0])  # [4 P, 16, 4]
    BLOCKS: gl.constexpr = gl.BlockedLayout([1, 1, 16], [2, 16, 1], [WARPS, 1, 1], [2, 1, 0])  # [4 P, 16, 16]
    SMALL: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2 * P, 2 // P, 1], [1, 16, 8])  # [2 P, 16, 16]
    LARGE: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [P, 4 // P, 1], [1, 16, 8])  # [P, 32, 32]
    PACKED_16: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 16, 2], [WARPS, 1, 1], [2, 1, 0])  # [2 P, 16, 16]
    PACKED_32: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 8, 4], [1, WARPS, 1], [2, 1, 0])  # [P, 32, 32]
    WIDE: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 4, [2, 1, 0])

    s_diagonal, s_left_1, s_left_2, s_half_1, s_half_2 = tiles
    at = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, QUARTER)))[None, :][:, :, None]
    column = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(0, QUARTER)))[None, :][None, :, :]
    none = gl.zeros([4 * P, 16, 4], gl.float32, QUARTER)
    x = (
        gl.where(at == column, 1.0, none),
        gl.where(at == column + 4, 1.0, none),
        gl.where(at == column + 8, 1.0, none),
        gl.where(at == column + 12, 1.0, none),
    )
    for i in gl.static_range(15):
        x = _eliminate(x, s_diagonal, column, 15 - i, QUARTER)
    x = gl.convert_layout(_beside(_beside(x[0], x[1]), _beside(x[2], x[3])), BLOCKS, assert_trivial=True)
    gl.store(inverse + _places(step, 0, 0, [4 * P, 16, 16], 4, WHOLE, BLOCKS), x.to(LOW))
    # two blocks of the diagonal and the two beside them, zeros at first
    s_x_1 = gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE)
    s_x_2 = gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE)
    even = gl.arange(0, 4 * P, gl.SliceLayout(1, gl.SliceLayout(2, BLOCKS)))[:, None][:, :, None] % 2 == 0
    empty = gl.zeros([4 * P, 16, 16], gl.bfloat16, BLOCKS)
    x_1, x_2 = _pieces(x)
    s_x_1.store(_beside(gl.where(even, x_1, empty), gl.where(even, empty, x_1)).reshape([P, 64, 32]))
    s_x_2.store(_beside(gl.where(even, x_2, empty), gl.where(even, empty, x_2)).reshape([P, 64, 32]))
    pair_1, pair_2 = s_x_1.reshape([2 * P, 32, 32]), s_x_2.reshape([2 * P, 32, 32])
    found = _merge(
        (_tile(s_left_1, 16, 0, 16), _tile(s_left_2, 16, 0, 16)),
        (_tile(pair_1, 0, 0, 16), _tile(pair_2, 0, 0, 16)),
        (_tile(pair_1, 16, 16, 16), _tile(pair_2, 16, 16, 16)),
        [2 * P, 16, 16], SMALL,
    )  # fmt: skip
    x_1, x_2 = _pieces(found)
    _tile(pair_1, 16, 0, 16).store(x_1)
    _tile(pair_2, 16, 0, 16).store(x_2)
    gl.store(inverse + _places(step, 16, 0, [2 * P, 16, 16], 2, WHOLE, SMALL), found.to(LOW))
    above = gl.zeros([2 * P, 16, 16], LOW, PACKED_16)
    gl.store(inverse + _places(step, 0, 16, [2 * P, 16, 16], 2, WHOLE, PACKED_16), above)
    found = _merge(
        (_tile(s_half_1, 32, 0, 32), _tile(s_half_2, 32, 0, 32)),
        (_tile(s_x_1, 0, 0, 32), _tile(s_x_2, 0, 0, 32)),
        (_tile(s_x_1, 32, 0, 32), _tile(s_x_2, 32, 0, 32)),
        [P, 32, 32], LARGE,
    )  # fmt: skip
    s_y = gl.allocate_shared_memory(LOW, [P, 32, 32], WIDE)
    s_y.store(found.to(LOW))
    gl.store(inverse + _places(step, 32, 0, [P, 32, 32], 1, WHOLE, PACKED_32), s_y.load(PACKED_32))
    if WHOLE:
        above = gl.zeros([P, 32, 32], LOW, PACKED_32)
        gl.store(inverse + _places(step, 0, 32, [P, 32, 32], 1, WHOLE, PACKED_32), above)


@gluon.jit(do_not_specialize=["N", "count"])
def hopper_invert_kernel(
    system,  # [chunks, HV, 64, 64] fp32: L, strictly lower
    inverse,  # [chunks, HV, 64, 64] out: (I + L)^-1
    chunk_offsets,
    N,
    count,  # chunks * HV
    HV: gl.constexpr,
    VARLEN: gl.constexpr,
):
    P: gl.constexpr = 2
    WARPS: gl.constexpr = 4
    ROWS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [64, 64]
    first = gl.program_id(0).to(gl.int64) * P
    used = count.to(gl.int64)
    if VARLEN:
        used = gl.load(chunk_offsets + N).to(gl.int64) * HV
    if first >= used:
        return
    # of an odd number the last comes twice
    step = gl.minimum(used - 1 - first, 1) * 4096
    r = gl.arange(0, 64, gl.SliceLayout(1, ROWS))[:, None]
    at = r * 64 + gl.arange(0, 64, gl.SliceLayout(0, ROWS))[None, :]
    tiles = inverse_tiles(P)
    for h in gl.static_range(P):
        keep_matrix(tiles, gl.load(system + first * 4096 + h * step + at), h, ROWS)
    store_inverses(tiles, inverse + first * 4096, step, P, WARPS, True)
