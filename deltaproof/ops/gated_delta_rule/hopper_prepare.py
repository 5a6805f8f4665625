"""What the chunked gated delta rule needs without a state, for Hopper, in Gluon: a program a chunk and two value heads.

Value heads of one query/key head share its products. Each has its gates, the decayed scores, and the inverse T' of its
unit lower-triangular matrix. Of an odd number of them the last has a program to itself; where each is alone, and their
number even, those of two query/key heads share one. Shape legend: chunks of 64 tokens; H query/key heads, HV value
heads, P of them in a program, K key size; G cumulative log gates of a chunk.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from deltaproof.ops.common.hopper_inverse import inverse_tiles, keep_matrix, store_inverses
from deltaproof.ops.common.hopper_language import LOG2E, plus
from deltaproof.ops.common.hopper_tiles import copy_rows
from deltaproof.ops.common.hopper_triangles import attention_place
from deltaproof.ops.common.triton_inputs import log_gate, write_strength
from deltaproof.ops.common.triton_places import chunk_place


@gluon.jit
def _exp2(x):
    """Return 2 ** x, 0 where that is no normal number, in one instruction."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _copy(q, k, s_q, s_k, first, count, group, H: gl.constexpr, K: gl.constexpr, WARPS: gl.constexpr):
    """Ask for a chunk's queries and keys of one head."""
    copy_rows(k + (first * H + group) * K, s_k, H * K, count, K, WARPS)
    copy_rows(q + (first * H + group) * K, s_q, H * K, count, K, WARPS)
    async_copy.commit_group()


@gluon.jit
def _length(x, lines, FIRST: gl.constexpr, COUNT: gl.constexpr, LAYOUT: gl.constexpr):
    """Return 1 / sqrt(sum(x ** 2) + 1e-6) of rows x [64, K], from products x x^T, and keep it in COUNT lines."""
    r = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    c = gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))[None, :]
    found = gl.rsqrt(gl.sum(gl.where(r == c, x, 0.0), 1) + 1e-6)
    for i in gl.static_range(COUNT):
        lines.index(FIRST + i).store(found)
    return found[:, None]


@gluon.jit
def _scores(
    s_q, s_k, scale, of_q, of_k,
    FIRST: gl.constexpr, COUNT: gl.constexpr, NORMALIZE: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Return the products [64, 64] of what was asked for: scale q k^T, zero above the diagonal, and k k^T.

    Args:
        of_q, of_k: NORMALIZE: lines [P, 64], of which COUNT from FIRST on get what rows of q and k are multiplied with.
    """
    r = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    c = gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))[None, :]
    none = gl.zeros([64, 64], gl.float32, LAYOUT)
    async_copy.wait_group(0)
    fence_async_shared()
    row = scale
    if NORMALIZE:
        qq = warpgroup_mma(s_q, s_q.permute([1, 0]), none, use_acc=False, is_async=True)
        row = _length(warpgroup_mma_wait(0, deps=[qq]), of_q, FIRST, COUNT, LAYOUT) * scale
    qk = warpgroup_mma(s_q, s_k.permute([1, 0]), none, use_acc=False, is_async=True)
    kk = warpgroup_mma(s_k, s_k.permute([1, 0]), none, use_acc=False, is_async=True)
    qk, kk = warpgroup_mma_wait(0, deps=[qk, kk])
    if NORMALIZE:
        length = _length(kk, of_k, FIRST, COUNT, LAYOUT)
        column = of_k.index(FIRST).load(gl.SliceLayout(0, LAYOUT))[None, :]
        qk = qk * column
        kk = kk * (length * column)
    return gl.where(r >= c, qk * row, 0.0), kk


@gluon.jit
def _store_attention(attention, number, tile, LAYOUT: gl.constexpr):
    """Store A^T of a value head, by its number, from a tile [64, 64]."""
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    column = gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))[None, :]
    spot = attention + number.to(gl.int64) * (32 * 96) + attention_place(row, column)
    gl.store(spot, tile.load(LAYOUT), mask=(row < 32) | (column >= 32))


@gluon.jit
def _prepare(
    q, k, g, beta, A_log, dt_bias, G, strength, factors, inverse, attention, scale, chunk, first, count, group, one,
    P: gl.constexpr, APART: gl.constexpr, H: gl.constexpr, HV: gl.constexpr, K: gl.constexpr, GATE: gl.constexpr,
    DT_BIAS: gl.constexpr, BETA_SIGMOID: gl.constexpr, NEG_EIGVAL: gl.constexpr, NORMALIZE: gl.constexpr,
    KEEPS: gl.constexpr,
):  # fmt: skip
    """Make what a chunk's P value heads from ``one`` on need: of one query/key head or, APART, each of its own."""
    WARPS: gl.constexpr = 4
    LOW: gl.constexpr = k.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [64, 64]
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMN: gl.constexpr = gl.SliceLayout(0, SCORES)
    TOKENS: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [1, WARPS], [0, 1])  # [64, P]: a head a warp
    SQUARE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])  # [64, 64]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    LINES: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    # 32 bits, as registers are short
    number = chunk.to(gl.int32) * HV + one
    s_q = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    s_k = gl.allocate_shared_memory(LOW, [64, K], SHARED)
    _copy(q, k, s_q, s_k, first, count, group, H, K, WARPS)

    # gates and strengths while queries and keys come
    s_G = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
    s_b = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
    token = gl.arange(0, 64, gl.SliceLayout(1, TOKENS))[:, None]
    head = one + gl.arange(0, P, gl.SliceLayout(0, TOKENS))[None, :]
    place = (first + token) * HV + head
    inside = token < count
    b_G = gl.associative_scan(log_gate(g, A_log, dt_bias, place, inside, head, GATE, DT_BIAS), 0, plus)
    b_b = write_strength(beta, place, inside, BETA_SIGMOID, NEG_EIGVAL)  # [64, P]
    if KEEPS:
        gl.store(G + place, b_G, mask=inside)
        gl.store(strength + place, b_b, mask=inside)
    end = gl.min(b_G, 0)[None, :] * LOG2E
    b_G = b_G * LOG2E
    factor = factors + (number + head - one).to(gl.int64) * (256 if NORMALIZE else 128) + token
    if NORMALIZE:
        s_rk = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
        s_rq = gl.allocate_shared_memory(gl.float32, [P, 64], LINES)
        of_q, of_k = s_rq._reinterpret(gl.float32, [P, 64], LINE), s_rk._reinterpret(gl.float32, [P, 64], LINE)
    else:
        of_q, of_k = s_G, s_G
        gl.store(factor, _exp2(b_G))
        gl.store(factor + 64, b_b * _exp2(end - b_G))
    s_G.permute([1, 0]).store(b_G)
    s_b.permute([1, 0]).store(b_b)
    gates = s_G._reinterpret(gl.float32, [P, 64], LINE)
    strengths = s_b._reinterpret(gl.float32, [P, 64], LINE)

    qk, kk = _scores(s_q, s_k, scale, of_q, of_k, 0, 1 if APART else P, NORMALIZE, SCORES)
    if APART:
        # no warp may read the first head's any more
        gl.thread_barrier()
        _copy(q, k, s_q, s_k, first, count, group + 1, H, K, WARPS)
    s_low = gl.allocate_shared_memory(LOW, [1 if APART else P, 64, 64], SHARED)
    tiles = inverse_tiles(P)
    for h in gl.static_range(P):
        if APART and h > 0:
            _store_attention(attention, number, s_low.index(0), SQUARE)
            qk, kk = _scores(s_q, s_k, scale, of_q, of_k, 1, 1, NORMALIZE, SCORES)
        line = gates.index(h)
        # above the diagonal, where scores are 0, the difference is positive: its exponential must be finite
        decay = line.load(ROW)[:, None] - line.load(COLUMN)[None, :]
        decay = _exp2(gl.minimum(decay, 100.0)) * strengths.index(h).load(COLUMN)[None, :]
        s_low.index(h % s_low.shape[0]).permute([1, 0]).store((qk * decay).to(LOW))
        keep_matrix(tiles, kk * decay, h, SCORES)
    for h in gl.static_range(1 if APART else 0, P):
        _store_attention(attention, number + h, s_low.index(h % s_low.shape[0]), SQUARE)
    if NORMALIZE:
        b_G = s_G.permute([1, 0]).load(TOKENS)
        of_k = s_rk.permute([1, 0]).load(TOKENS)
        left = _exp2(b_G)
        gl.store(factor, left * of_k)
        gl.store(factor + 64, s_b.permute([1, 0]).load(TOKENS) * _exp2(gl.min(b_G, 0)[None, :] - b_G) * of_k)
        gl.store(factor + 128, left * s_rq.permute([1, 0]).load(TOKENS))
        gl.store(factor + 192, left)
    SIZE: gl.constexpr = 64 * 64 if KEEPS else 32 * 96
    store_inverses(tiles, inverse + number.to(gl.int64) * SIZE, SIZE, P, WARPS, KEEPS)


@gluon.jit(do_not_specialize=["N", "T"])
def hopper_prepare_kernel(
    q,  # [B, T, H, K] bf16 or fp16, normalised unless NORMALIZE
    k,  # [B, T, H, K]
    g,  # [B, T, HV]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    G,  # [B, T, HV] out where KEEPS, fp32
    strength,  # [B, T, HV] out where KEEPS, fp32
    factors,  # [chunks, HV, 2 or 4, 64] out, fp32: see hopper_walk_kernel
    inverse,  # [chunks, HV, 64, 64] out: T', whole where KEEPS, else folded
    attention,  # [chunks, HV, 32, 96] out: A^T, folded, with A = scale M diag(beta)
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
    APART: gl.constexpr,
    NORMALIZE: gl.constexpr,
    KEEPS: gl.constexpr,
):
    # of two at a time, the diagonal blocks' rows are as many as the threads
    PAIRS: gl.constexpr = HV // H // 2
    ODD: gl.constexpr = HV // H % 2 != 0
    EACH: gl.constexpr = 1 if APART else PAIRS + ODD
    GROUPS: gl.constexpr = H // 2 if APART else H
    program = gl.program_id(0)
    part = program % EACH
    group = program // EACH % GROUPS * (H // GROUPS)
    chunk = (program // (EACH * GROUPS)).to(gl.int64)
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    count = count.to(gl.int32)
    one = group * (HV // H) + 2 * part
    if ODD and PAIRS > 0:  # noqa: SIM102 (a branch of its own is dropped where it is constant)
        if part == PAIRS:
            _prepare(
                q, k, g, beta, A_log, dt_bias, G, strength, factors, inverse, attention, scale, chunk, first, count,
                group, one, 1, False, H, HV, K, GATE, DT_BIAS, BETA_SIGMOID, NEG_EIGVAL, NORMALIZE, KEEPS,
            )  # fmt: skip
            return
    _prepare(
        q, k, g, beta, A_log, dt_bias, G, strength, factors, inverse, attention, scale, chunk, first, count, group, one,
        2 if APART or PAIRS > 0 else 1, APART, H, HV, K, GATE, DT_BIAS, BETA_SIGMOID, NEG_EIGVAL, NORMALIZE, KEEPS,
    )  # fmt: skip
