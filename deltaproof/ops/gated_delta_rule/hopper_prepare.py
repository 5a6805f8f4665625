"""What the chunked gated delta rule needs without a state, for Hopper, in Gluon: a program a chunk and two value heads.

Value heads of one query/key head share its products. Each has its gates, the decayed scores, and the inverse T' of its
unit lower-triangular matrix I + L: the diagonal blocks of 16 in fp32, from the last column to the first, a row a
thread; the others by products of finished blocks, of operands in two bf16 pieces (16 bits). Only the finished inverse
is rounded. Shape legend: chunks of 64 tokens; H query/key heads, HV value heads, P of them in a program, K key size; G
cumulative log gates of a chunk.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from deltaproof.ops.common.hopper_language import LOG2E, cut, plus
from deltaproof.ops.common.hopper_tiles import copy_rows
from deltaproof.ops.common.triton_inputs import log_gate, write_strength
from deltaproof.ops.common.triton_places import chunk_place


@gluon.jit
def _exp2(x):
    """Return 2 ** x, 0 where that is no normal number, in one instruction."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


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
def _halves(x):
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
def _places(step, SHAPE: gl.constexpr, EACH: gl.constexpr, BETWEEN: gl.constexpr, C: gl.constexpr):
    """Return where tiles lie in matrices [64, 64] that are ``step`` apart: EACH of a matrix, BETWEEN apart."""
    n = gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, C)))[:, None][:, :, None]
    row = gl.arange(0, SHAPE[1], gl.SliceLayout(0, gl.SliceLayout(2, C)))[None, :][:, :, None]
    column = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(0, C)))[None, :][None, :, :]
    return n // EACH * step + n % EACH * BETWEEN + row * 64 + column


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


@gluon.jit(do_not_specialize=["N", "T"])
def hopper_prepare_kernel(
    q,  # [B, T, H, K] bf16 or fp16, normalised
    k,  # [B, T, H, K]
    g,  # [B, T, HV]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    G,  # [B, T, HV] out, fp32
    strength,  # [B, T, HV] out, fp32
    factors,  # [chunks, HV, 2, 64] out, fp32: e^G and beta e^{G_C - G}
    inverse,  # [chunks, HV, 64, 64] out: T'
    attention,  # [chunks, HV, 64, 64] out: scale M diag(beta)
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    H: gl.constexpr,
    HV: gl.constexpr,
    K: gl.constexpr,
    C: gl.constexpr,
    VARLEN: gl.constexpr,
    GATE: gl.constexpr,
    DT_BIAS: gl.constexpr,
    BETA_SIGMOID: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):
    WARPS: gl.constexpr = 4
    # value heads at a time: of two, the diagonal blocks' rows are as many as the threads
    P: gl.constexpr = 2 if HV > H else 1
    PAIRS: gl.constexpr = (HV // H + P - 1) // P
    LOW: gl.constexpr = k.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [64, 64]
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMN: gl.constexpr = gl.SliceLayout(0, SCORES)
    TOKENS: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [1, WARPS], [0, 1])  # [64, P]: a head a warp
    SQUARE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])  # [64, 64]
    QUARTER: gl.constexpr = gl.BlockedLayout([1, 1, 4], [2, 16, 1], [WARPS, 1, 1], [2, 1, 0])  # [4 P, 16, 4]
    BLOCKS: gl.constexpr = gl.BlockedLayout([1, 1, 16], [2, 16, 1], [WARPS, 1, 1], [2, 1, 0])  # [4 P, 16, 16]
    SMALL: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2 * P, 2 // P, 1], [1, 16, 8])  # [2 P, 16, 16]
    LARGE: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [P, 4 // P, 1], [1, 16, 8])  # [P, 32, 32]
    PACKED_16: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 16, 2], [WARPS, 1, 1], [2, 1, 0])  # [2 P, 16, 16]
    PACKED_32: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 8, 4], [1, WARPS, 1], [2, 1, 0])  # [P, 32, 32]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    LINES: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    PADDED: gl.constexpr = gl.PaddedSharedLayout.with_identity_for([[256, 16]], [4 * P, 16, 16], [2, 1, 0])
    NARROW: gl.constexpr = gl.SwizzledSharedLayout(8, 4, 2, [2, 1, 0])
    WIDE: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 4, [2, 1, 0])

    program = gl.program_id(0)
    pair = program % PAIRS * P
    group = program // PAIRS % H
    chunk = (program // (PAIRS * H)).to(gl.int64)
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    count = count.to(gl.int32)
    s_q = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    s_k = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    copy_rows(k + (first * H + group) * K, s_k, H * K, count, K, WARPS)
    copy_rows(q + (first * H + group) * K, s_q, H * K, count, K, WARPS)
    async_copy.commit_group()

    # gates and strengths of all value heads while queries and keys come
    s_G = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
    s_b = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
    token = gl.arange(0, 64, gl.SliceLayout(1, TOKENS))[:, None]
    # of an odd number the last comes twice
    head = gl.minimum(pair + gl.arange(0, P, gl.SliceLayout(0, TOKENS))[None, :], HV // H - 1) + group * (HV // H)
    place = (first + token) * HV + head
    inside = (token < count) & (head >= 0)
    b_G = gl.associative_scan(log_gate(g, A_log, dt_bias, place, inside, head, GATE, DT_BIAS), 0, plus)
    b_b = write_strength(beta, place, inside, BETA_SIGMOID, NEG_EIGVAL)  # [64, P]
    gl.store(G + place, b_G, mask=inside)
    gl.store(strength + place, b_b, mask=inside)
    factor = factors + (chunk * HV + head) * 128 + token
    end = gl.min(b_G, 0)[None, :] * LOG2E
    b_G = b_G * LOG2E
    gl.store(factor, _exp2(b_G))
    gl.store(factor + 64, b_b * _exp2(end - b_G))
    s_G.permute([1, 0]).store(b_G)
    s_b.permute([1, 0]).store(b_b)
    s_G = s_G._reinterpret(gl.float32, [P, 64], LINE)
    s_b = s_b._reinterpret(gl.float32, [P, 64], LINE)

    r = gl.arange(0, 64, ROW)[:, None]
    c = gl.arange(0, 64, COLUMN)[None, :]
    row_at = gl.arange(0, 64, gl.SliceLayout(1, SQUARE))[:, None]
    square = row_at * 64 + gl.arange(0, 64, gl.SliceLayout(0, SQUARE))[None, :]
    none = gl.zeros([64, 64], gl.float32, SCORES)
    block, _ = _halves(_halves(r // 16 + 0 * c)[0])  # [64, 16]: the block that a row is of
    below, _ = _halves(_halves(r % 16 - c % 16)[0])
    async_copy.wait_group(0)
    fence_async_shared()
    rows = (chunk * HV + group * (HV // H) + pair) * 4096
    step = 4096
    if (HV // H) % P != 0:
        step = (gl.minimum(pair + 1, HV // H - 1) - pair) * 4096
    # made again for each pair: held, they would cost 64 registers
    qk = warpgroup_mma(s_q, s_k.permute([1, 0]), none, use_acc=False, is_async=True)
    kk = warpgroup_mma(s_k, s_k.permute([1, 0]), none, use_acc=False, is_async=True)
    qk, kk = warpgroup_mma_wait(0, deps=[qk, kk])
    qk = gl.where(r >= c, qk * scale, 0.0)
    s_low = gl.allocate_shared_memory(LOW, [P, 64, 64], SHARED)
    # of each head's matrix: diagonal blocks of 16; in pieces, those left of every other one, and the left half
    s_diagonal = gl.allocate_shared_memory(gl.float32, [4 * P, 16, 16], PADDED)
    s_left = (
        gl.allocate_shared_memory(gl.bfloat16, [2 * P, 32, 16], NARROW),
        gl.allocate_shared_memory(gl.bfloat16, [2 * P, 32, 16], NARROW),
    )
    s_half = (
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
    )
    for h in gl.static_range(P):
        line = s_G.index(h)
        # above the diagonal, where scores are 0, the difference is positive: its exponential must be finite
        decay = line.load(ROW)[:, None] - line.load(COLUMN)[None, :]
        decay = _exp2(gl.minimum(decay, 100.0)) * s_b.index(h).load(COLUMN)[None, :]
        s_low.index(h).store((qk * decay).to(LOW))
        # what is read of it lies below the diagonal, but for the diagonal blocks
        left, right = _halves(kk * decay)
        half_1, half_2 = _pieces(left)
        s_half[0].slice(h, 1, 0).store(half_1.reshape([1, 64, 32]))
        s_half[1].slice(h, 1, 0).store(half_2.reshape([1, 64, 32]))
        x_0, x_1 = _halves(left)  # [64, 16]
        x_2, x_3 = _halves(right)
        part = gl.where(block < 2, gl.where(block == 0, x_0, x_1), gl.where(block == 2, x_2, x_3))
        s_diagonal.slice(4 * h, 4, 0).store(gl.where(below > 0, part, 0.0).reshape([4, 16, 16]))
        left_1, left_2 = _pieces(gl.where(block == 1, x_0, x_2))
        s_left[0].slice(2 * h, 2, 0).store(left_1.reshape([2, 32, 16]))
        s_left[1].slice(2 * h, 2, 0).store(left_2.reshape([2, 32, 16]))
    for h in gl.static_range(P):
        gl.store(attention + rows + h * step + square, s_low.index(h).load(SQUARE))

    # a row of the inverse of a diagonal block a thread: what is right of a column is finished when it is added
    at = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, QUARTER)))[None, :][:, :, None]
    column = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(0, QUARTER)))[None, :][None, :, :]
    none_4 = gl.zeros([4 * P, 16, 4], gl.float32, QUARTER)
    x = (
        gl.where(at == column, 1.0, none_4),
        gl.where(at == column + 4, 1.0, none_4),
        gl.where(at == column + 8, 1.0, none_4),
        gl.where(at == column + 12, 1.0, none_4),
    )
    for i in gl.static_range(15):
        x = _eliminate(x, s_diagonal, column, 15 - i, QUARTER)
    x = gl.convert_layout(_beside(_beside(x[0], x[1]), _beside(x[2], x[3])), BLOCKS, assert_trivial=True)
    a = gl.arange(0, 4 * P, gl.SliceLayout(1, gl.SliceLayout(2, BLOCKS)))[:, None][:, :, None]
    gl.store(inverse + rows + _places(step, [4 * P, 16, 16], 4, 16 * 65, BLOCKS), x.to(LOW))
    # pairs of blocks, with zeros beside them
    s_x = (
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
        gl.allocate_shared_memory(gl.bfloat16, [P, 64, 32], WIDE),
    )
    x_1, x_2 = _pieces(x)
    empty = gl.zeros([4 * P, 16, 16], gl.bfloat16, BLOCKS)
    s_x[0].store(_beside(gl.where(a % 2 == 0, x_1, empty), gl.where(a % 2 == 0, empty, x_1)).reshape([P, 64, 32]))
    s_x[1].store(_beside(gl.where(a % 2 == 0, x_2, empty), gl.where(a % 2 == 0, empty, x_2)).reshape([P, 64, 32]))
    pair_1, pair_2 = s_x[0].reshape([2 * P, 32, 32]), s_x[1].reshape([2 * P, 32, 32])
    found = _merge(
        (_tile(s_left[0], 16, 0, 16), _tile(s_left[1], 16, 0, 16)),
        (_tile(pair_1, 0, 0, 16), _tile(pair_2, 0, 0, 16)),
        (_tile(pair_1, 16, 16, 16), _tile(pair_2, 16, 16, 16)),
        [2 * P, 16, 16], SMALL,
    )  # fmt: skip
    x_1, x_2 = _pieces(found)
    _tile(pair_1, 16, 0, 16).store(x_1)
    _tile(pair_2, 16, 0, 16).store(x_2)
    gl.store(inverse + rows + _places(step, [2 * P, 16, 16], 2, 32 * 65, SMALL) + 16 * 64, found.to(LOW))
    above = gl.zeros([2 * P, 16, 16], LOW, PACKED_16)
    gl.store(inverse + rows + _places(step, [2 * P, 16, 16], 2, 32 * 65, PACKED_16) + 16, above)
    found = _merge(
        (_tile(s_half[0], 32, 0, 32), _tile(s_half[1], 32, 0, 32)),
        (_tile(s_x[0], 0, 0, 32), _tile(s_x[1], 0, 0, 32)),
        (_tile(s_x[0], 32, 0, 32), _tile(s_x[1], 32, 0, 32)),
        [P, 32, 32], LARGE,
    )  # fmt: skip
    s_y = gl.allocate_shared_memory(LOW, [P, 32, 32], WIDE)
    s_y.store(found.to(LOW))
    at = _places(step, [P, 32, 32], 1, 0, PACKED_32)
    gl.store(inverse + rows + at + 32, gl.zeros([P, 32, 32], LOW, PACKED_32))
    gl.store(inverse + rows + at + 32 * 64, s_y.load(PACKED_32))
