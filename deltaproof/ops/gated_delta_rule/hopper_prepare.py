"""What the chunked gated delta rule needs without a state, for Hopper, in Gluon: a program a chunk and query/key head.

Queries and keys are loaded once for all value heads of a query/key head. Each of these has its gates, the decayed
scores, and the inverse T' of its unit lower-triangular matrix: the diagonal blocks of 16 by forward substitution in
fp32, a column a thread; the others by products of finished blocks, of operands in two bf16 pieces (16 bits). Only the
finished inverse is rounded. Shape legend: chunks of 64 tokens; H query/key heads, HV value heads, K key size; G
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
def _product(a, b, SIZE: gl.constexpr, WARPS: gl.constexpr):
    """Return the product of two fp32 tiles [SIZE, SIZE] in shared memory, of operands cut into two bf16 pieces."""
    C: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [SIZE // 16, WARPS * 16 // SIZE], [16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, C, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, C, 2)
    x, y = a.load(A), b.load(B)
    x_wide, x_1 = cut(x)
    y_wide, y_1 = cut(y)
    _, x_2 = cut(x - x_wide)
    _, y_2 = cut(y - y_wide)
    found = mma_v2(x_2, y_1, gl.zeros([SIZE, SIZE], gl.float32, C))
    found = mma_v2(x_1, y_2, found)
    return mma_v2(x_1, y_1, found)


@gluon.jit
def _tile(x, ROW: gl.constexpr, COLUMN: gl.constexpr, SIZE: gl.constexpr):
    """Return the part [SIZE, SIZE] of a matrix in shared memory that begins at (ROW, COLUMN)."""
    return x.slice(ROW, SIZE, 0).slice(COLUMN, SIZE, 1)


@gluon.jit
def _merge(x, y, START: gl.constexpr, SIZE: gl.constexpr, WARPS: gl.constexpr):
    """Put the inverse's block left of that of SIZE at START + SIZE, which is finished, in the place of the matrix's."""
    y = _tile(y, 0, 0, SIZE)
    left = _tile(x, START + SIZE, START, SIZE)
    y.store(_product(left, _tile(x, START, START, SIZE), SIZE, WARPS))
    found = _product(_tile(x, START + SIZE, START + SIZE, SIZE), y, SIZE, WARPS)
    left.store(-found)


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
    LOW: gl.constexpr = k.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [64, 64]
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMN: gl.constexpr = gl.SliceLayout(0, SCORES)
    TOKENS: gl.constexpr = gl.BlockedLayout([2], [32], [WARPS], [0])  # [64]
    SQUARE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])  # [64, 64]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    FLAT: gl.constexpr = gl.PaddedSharedLayout.with_identity_for([[64, 4]], [64, 64], [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    # the four diagonal blocks side by side: a thread has a column of one, all rows
    BLOCKS: gl.constexpr = gl.BlockedLayout([1, 16, 1], [2, 1, 16], [2, 1, 2], [2, 1, 0])  # [4, 16, 16]
    TILE: gl.constexpr = gl.BlockedLayout([1, 1, 2], [1, 4, 8], [1, WARPS, 1], [2, 1, 0])  # [1, 16, 16]

    program = gl.program_id(0)
    group = program % H
    chunk = (program // H).to(gl.int64)
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    count = count.to(gl.int32)
    s_q = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    s_k = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    copy_rows(k + (first * H + group) * K, s_k, H * K, count, K, WARPS)
    copy_rows(q + (first * H + group) * K, s_q, H * K, count, K, WARPS)
    async_copy.commit_group()
    # a value head's matrix, block by block replaced by its inverse
    s_x = gl.allocate_shared_memory(gl.float32, [64, 64], FLAT)
    s_low = gl.allocate_shared_memory(LOW, [64, 64], SHARED)
    s_y = gl.allocate_shared_memory(gl.float32, [32, 32], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    s_block = gl.allocate_shared_memory(gl.float32, [4, 16, 16], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    s_G = gl.allocate_shared_memory(gl.float32, [64], LINE)
    s_b = gl.allocate_shared_memory(gl.float32, [64], LINE)
    token = gl.arange(0, 64, TOKENS)
    r = gl.arange(0, 64, ROW)[:, None]
    c = gl.arange(0, 64, COLUMN)[None, :]
    row_at = gl.arange(0, 64, gl.SliceLayout(1, SQUARE))[:, None]
    square = row_at * 64 + gl.arange(0, 64, gl.SliceLayout(0, SQUARE))[None, :]
    none = gl.zeros([64, 64], gl.float32, SCORES)
    async_copy.wait_group(0)
    fence_async_shared()
    for j in range(HV // H):
        # made again for each value head: held, they would cost 64 registers
        qk = warpgroup_mma(s_q, s_k.permute([1, 0]), none, use_acc=False, is_async=True)
        head = group * (HV // H) + j
        place = (first + token) * HV + head
        x = log_gate(g, A_log, dt_bias, place, token < count, head, GATE, DT_BIAS)
        b_G = gl.associative_scan(x, 0, plus)  # [64]
        b_b = write_strength(beta, place, token < count, BETA_SIGMOID, NEG_EIGVAL)
        gl.store(G + place, b_G, mask=token < count)
        gl.store(strength + place, b_b, mask=token < count)
        row = chunk * HV + head
        end = gl.min(b_G, 0)
        b_G = b_G * LOG2E
        gl.store(factors + row * 128 + token, _exp2(b_G))
        gl.store(factors + row * 128 + 64 + token, b_b * _exp2(end * LOG2E - b_G))
        s_G.store(b_G)
        s_b.store(b_b)
        # masked before the exponential: above the diagonal the difference is positive and may overflow
        decay = s_G.load(ROW)[:, None] - s_G.load(COLUMN)[None, :]
        decay = _exp2(gl.where(r >= c, decay, 0.0)) * s_b.load(COLUMN)[None, :]
        qk = warpgroup_mma_wait(0, deps=[qk])
        scores = gl.where(r >= c, qk * decay * scale, 0.0).to(LOW)
        s_low.store(scores)
        gl.store(attention + row * 4096 + square, s_low.load(SQUARE))
        kk = warpgroup_mma(s_k, s_k.permute([1, 0]), none, use_acc=False)
        s_x.store(gl.where(r > c, kk * decay, 0.0))
        # columns of the diagonal blocks, so that a thread finds one in a row
        for i in gl.static_range(4):
            tile = _tile(s_x, i * 16, i * 16, 16).permute([1, 0]).load(gl.SliceLayout(0, TILE))
            s_block.slice(i, 1, 0).store(tile[None, :, :])
        at = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, BLOCKS)))[None, :][:, :, None]  # the row
        column = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(0, BLOCKS)))[None, :][None, :, :]
        x = gl.where(at == column, 1.0, 0.0) + gl.zeros([4, 16, 16], gl.float32, BLOCKS)
        for i in gl.static_range(15):
            # row i is finished; x + -0.0 is x to the bit, so the compiler makes no sum of this one
            done = gl.sum(gl.where(at == i, x, -0.0), 1)[:, None, :]  # [4, 1, 16]
            x = x - s_block.slice(i, 1, 1).permute([0, 2, 1]).load(BLOCKS) * done
        s_block.store(x)
        for i in gl.static_range(4):
            tile = s_block.slice(i, 1, 0).load(TILE).reshape([16, 16])
            _tile(s_x, i * 16, i * 16, 16).store(tile)
        _merge(s_x, s_y, 0, 16, WARPS)
        _merge(s_x, s_y, 32, 16, WARPS)
        _merge(s_x, s_y, 0, 32, WARPS)
        gl.store(inverse + row * 4096 + square, s_x.load(SQUARE).to(LOW))
