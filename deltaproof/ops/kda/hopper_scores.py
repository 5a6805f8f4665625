"""What chunked Kimi delta attention needs without a state, for Hopper, in Gluon: a program a chunk and value head.

A thread has the 16 rows of a block for a few channels, so that a block's gates are summed up in registers, and a decay
is made of three exponentials: to a block's start, from its end, and back from its start. Decays between blocks are
products with exponentials of whole blocks' sums, which threads give each other. The scores are six products on the
tensor cores. The kernels that do the same elsewhere are ``channel_decay_kernel`` and ``channel_scores_kernel``; rows
whose gates are far below 0 are theirs here too. Shape legend: H query/key heads, HV value heads, K key size; chunks of
64 tokens, of 4 blocks of 16.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from deltaproof.ops.common.hopper_language import LOG2E, plus
from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE, write_strength
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.kda.triton_gates import MOST


@gluon.jit
def _inverse(x):
    """Return 1 / x to the last bit or two; x is not below 1."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _gate(x, b_A_log, b_bias, GATE: gl.constexpr, RATE: gl.constexpr, LOWER: gl.constexpr):
    """Return the binary logarithm of gates, which exp2 takes without another product; as ``gated``, times log2(e)."""
    if GATE:
        x = x + b_bias
        if LOWER == 0.0:
            small = gl.log2(1.0 + gl.exp2(gl.abs(x) * -LOG2E))
            x = -(gl.maximum(x, 0.0) * LOG2E + small)
            if RATE:
                x = gl.exp(b_A_log) * x
        else:
            rate = -LOG2E
            if RATE:
                rate = rate * gl.exp(b_A_log)
            # exp2 may be infinite, and its inverse 0
            x = (LOWER * LOG2E) * _inverse(1.0 + gl.exp2(rate * x))
    else:
        x = x * LOG2E
    return gl.maximum(x, MIN_LOG_GATE * LOG2E)


@gluon.jit
def _flat(x, K: gl.constexpr, TILE: gl.constexpr):
    """Return [4, 16, K] as [64, K], every element where it is."""
    return gl.convert_layout(x.reshape([64, K]), TILE, assert_trivial=True)


@gluon.jit
def _copy(x, tile, stride: gl.constexpr, count, K: gl.constexpr, LAYOUT: gl.constexpr):
    """Copy rows of K elements, ``stride`` apart, into shared memory: ``count`` of them, and zeros behind."""
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    at = x + row * stride + gl.arange(0, K, gl.SliceLayout(0, LAYOUT))[None, :]
    async_copy.async_copy_global_to_shared(tile, at, mask=row < count)
    async_copy.commit_group()


@gluon.jit
def _blocks(tile, K: gl.constexpr, TILE: gl.constexpr, BLOCKS: gl.constexpr):
    """Return a tile [64, K] of shared memory as fp32 [4, 16, K], each element to the thread that stored it."""
    return gl.convert_layout(tile.load(TILE).reshape([4, 16, K]), BLOCKS, assert_trivial=True).to(gl.float32)


@gluon.jit
def _sum_before(totals, own, COLUMN: gl.constexpr):
    """Return the sums over the blocks before each [4, K]."""
    found = gl.where(own > 0, totals.index(0).load(COLUMN)[None, :], 0.0)
    found += gl.where(own > 1, totals.index(1).load(COLUMN)[None, :], 0.0)
    return found + gl.where(own > 2, totals.index(2).load(COLUMN)[None, :], 0.0)


@gluon.jit(do_not_specialize=["N", "T", "tokens"])
def hopper_scores_kernel(
    q,  # [B, T, H, K] bf16
    k,  # [B, T, H, K] bf16
    g,  # [B, T, HV, K]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV, K]
    queries,  # [B, T, HV, K] out: exp(G) q
    keys,  # [B, T, HV, K] out: exp(G) k
    kept,  # [B, T, HV, K] out: exp(G_end - G) k
    G,  # [B, T, HV, K] out where KEEPS, fp32
    left,  # [chunks, HV, K] out, fp32: exp(G_end)
    strength,  # [B, T, HV] out, fp32
    lengths,  # [2, B, T, HV] out where NORMALIZE, fp32: what rows of q and k are multiplied by
    system,  # [chunks, HV, 64, 64] out, fp32: scores of keys with keys, strictly lower
    attention,  # [chunks, HV, 64, 64] out: scores of queries with keys, lower
    deep,  # [chunks, HV] out where CHECKED: whether a row's gates are too far below 0
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    tokens,  # B * T
    H: gl.constexpr,
    HV: gl.constexpr,
    K: gl.constexpr,
    C: gl.constexpr,
    CHECKED: gl.constexpr,
    SCALED: gl.constexpr,
    VARLEN: gl.constexpr,
    NORMALIZE: gl.constexpr,
    GATE: gl.constexpr,
    RATE: gl.constexpr,
    DT_BIAS: gl.constexpr,
    LOWER: gl.constexpr,
    BETA_SIGMOID: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
    KEEPS: gl.constexpr,
):
    SIDE: gl.constexpr = K // 64  # warps side by side, each with 64 channels
    BLOCKS: gl.constexpr = gl.BlockedLayout([1, 16, 2], [1, 1, 32], [4, 1, SIDE], [2, 1, 0])  # [4, 16, K]
    TILE: gl.constexpr = gl.BlockedLayout([16, 2], [1, 32], [4, SIDE], [1, 0])  # [64, K], the same places
    ROWS: gl.constexpr = gl.SliceLayout(2, BLOCKS)  # [4, 16]
    WHOLE: gl.constexpr = gl.SliceLayout(1, BLOCKS)  # [4, K]
    COPIED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4 * SIDE, 1], [1, 0])  # [64, K]
    WIDTH: gl.constexpr = g.dtype.element_ty.primitive_bitwidth
    EACH: gl.constexpr = 128 // WIDTH
    TOKENS: gl.constexpr = gl.BlockedLayout([1], [32], [4 * SIDE], [0])  # [64]
    CHANNELS: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(0, BLOCKS))  # [K]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, SIDE], [16, 64 // SIDE, 16])  # [64, 64]
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    program = gl.program_id(0)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk.to(gl.int64), T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    count = count.to(gl.int32)
    q += (first * H + head // (HV // H)) * K
    k += (first * H + head // (HV // H)) * K
    g += (first * HV + head) * K
    queries += (first * HV + head) * K
    keys += (first * HV + head) * K
    kept += (first * HV + head) * K
    place = first * HV + head

    # rows of a block are a thread's registers: its addresses are one, and numbers that the compiler knows
    start = gl.arange(0, 4, gl.SliceLayout(1, ROWS))[:, None] * 16  # [4, 1]
    row = gl.arange(0, 16, gl.SliceLayout(0, ROWS))[None, :]  # [1, 16]
    channel = gl.arange(0, K, CHANNELS)
    at = channel[None, :][None, :, :]  # [1, 1, K]
    inside = (row < count - start)[:, :, None]
    # queries and keys wait in shared memory, where registers of gates do not
    s_g = gl.allocate_shared_memory(g.dtype.element_ty, [64, K], gl.NVMMASharedLayout(128, WIDTH, 2))
    s_own = gl.allocate_shared_memory(gl.bfloat16, [64, K], SHARED)
    s_q = gl.allocate_shared_memory(gl.bfloat16, [64, K], SHARED)
    _copy(g, s_g, HV * K, count, K, gl.BlockedLayout([1, EACH], [32 * EACH // K, K // EACH], [4 * SIDE, 1], [1, 0]))
    _copy(k, s_own, H * K, count, K, COPIED)
    _copy(q, s_q, H * K, count, K, COPIED)
    token = gl.arange(0, 64, TOKENS)

    b_A_log = 0.0
    b_bias = 0.0
    if GATE:
        if RATE:
            b_A_log = gl.load(A_log + head).to(gl.float32)
        if DT_BIAS:
            b_bias = gl.load(dt_bias + head * K + channel).to(gl.float32)[None, :][None, :, :]
    async_copy.wait_group(2)
    x = gl.where(inside, _gate(_blocks(s_g, K, TILE, BLOCKS), b_A_log, b_bias, GATE, RATE, LOWER), 0.0)
    upto = gl.associative_scan(x, 1, plus)  # [4, 16, K]
    # gates are not above 0, so the last sum is the least
    total = gl.min(upto, 1)  # [4, K]
    if CHECKED:
        # which rows are mended is decided by sums that are rounded otherwise: none of them may go unnoticed here
        gl.store(deep + program, (gl.min(gl.min(total, 1), 0) < (1.0 - MOST) * LOG2E).to(gl.int32))
    totals = gl.allocate_shared_memory(gl.float32, [4, K], FLAT, total)._reinterpret(gl.float32, [4, K], LINE)
    COLUMN: gl.constexpr = gl.SliceLayout(0, WHOLE)
    whole = totals.index(0).load(COLUMN) + totals.index(1).load(COLUMN)  # [K]
    whole += totals.index(2).load(COLUMN) + totals.index(3).load(COLUMN)
    gl.store(left + program.to(gl.int64) * K + gl.arange(0, K, COLUMN), gl.exp2(whole))
    own = gl.arange(0, 4, gl.SliceLayout(1, WHOLE))[:, None]  # [4, 1]
    base = start[:, :, None] * (HV * K) + at
    out = row[:, :, None] * (HV * K)
    if KEEPS:
        gl.store(
            (G + (first * HV + head) * K + base) + out,
            (upto + _sum_before(totals, own, COLUMN)[:, None, :]) * (1.0 / LOG2E),
            mask=inside,
        )

    async_copy.wait_group(0)
    if NORMALIZE:
        b_k = _blocks(s_own, K, TILE, BLOCKS)
        length = gl.rsqrt(gl.sum(b_k * b_k, 2) + 1e-6)  # [4, 16]
        k_line = gl.allocate_shared_memory(gl.float32, [64], LINE, length.reshape([64]))
        s_own.store(_flat((b_k * length[:, :, None]).to(gl.bfloat16), K, TILE))
    after = gl.where(own < 3, totals.index(3).load(COLUMN)[None, :], 0.0)
    after += gl.where(own < 2, totals.index(2).load(COLUMN)[None, :], 0.0)
    after = gl.exp2(after + gl.where(own < 1, totals.index(1).load(COLUMN)[None, :], 0.0))[:, None, :]  # [4, 1, K]
    # with all of G to store, the same is made later: either way around one of the two kernels would spill
    if not KEEPS:
        before = gl.exp2(_sum_before(totals, own, COLUMN))[:, None, :]  # [4, 1, K]
    early = _blocks(s_own, K, TILE, BLOCKS) * gl.exp2(total[:, None, :] - upto)
    s_early = gl.allocate_shared_memory(gl.bfloat16, [64, K], SHARED, _flat(early.to(gl.bfloat16), K, TILE))
    gl.store((kept + base) + out, (early * after).to(gl.bfloat16), mask=inside)
    grown = _blocks(s_own, K, TILE, BLOCKS) * gl.exp2(gl.minimum(-upto, MOST * LOG2E))  # the factors above 1
    s_grown = gl.allocate_shared_memory(gl.bfloat16, [64, K], SHARED, _flat(grown.to(gl.bfloat16), K, TILE))
    faded = gl.exp2(upto)
    late = _blocks(s_own, K, TILE, BLOCKS) * faded
    s_k = gl.allocate_shared_memory(gl.bfloat16, [64, K], SHARED, _flat(late.to(gl.bfloat16), K, TILE))
    if KEEPS:
        before = gl.exp2(_sum_before(totals, own, COLUMN))[:, None, :]  # [4, 1, K]
    gl.store((keys + base) + out, (late * before).to(gl.bfloat16), mask=inside)

    b_q = _blocks(s_q, K, TILE, BLOCKS)
    if NORMALIZE:
        length = gl.rsqrt(gl.sum(b_q * b_q, 2) + 1e-6)  # [4, 16]
        q_line = gl.allocate_shared_memory(gl.float32, [64], LINE, length.reshape([64]))
        b_q = (b_q * length[:, :, None]).to(gl.bfloat16).to(gl.float32)
    late = b_q * faded
    s_q.store(_flat(late.to(gl.bfloat16), K, TILE))
    gl.store((queries + base) + out, (late * before).to(gl.bfloat16), mask=inside)
    if NORMALIZE:
        line = lengths + place + token * HV
        gl.store(line, q_line.load(TOKENS), mask=token < count)
        gl.store(line + tokens.to(gl.int64) * HV, k_line.load(TOKENS), mask=token < count)
    b_b = write_strength(beta, place + token * HV, token < count, BETA_SIGMOID, NEG_EIGVAL)
    gl.store(strength + place + token * HV, b_b, mask=token < count)
    fence_async_shared()
    none = gl.zeros([64, 64], gl.float32, SCORES)
    r = gl.arange(0, 64, gl.SliceLayout(1, SCORES))[:, None]
    c = gl.arange(0, 64, gl.SliceLayout(0, SCORES))[None, :]
    same = r // 16 == c // 16
    kk = warpgroup_mma(s_k, s_grown.permute([1, 0]), none, use_acc=False, is_async=True)
    kk_near = warpgroup_mma(s_k, s_early.permute([1, 0]), none, use_acc=False, is_async=True)
    kk, kk_near = warpgroup_mma_wait(0, deps=[kk, kk_near])
    kk = gl.where(same, kk, kk_near)
    qk = warpgroup_mma(s_q, s_grown.permute([1, 0]), none, use_acc=False, is_async=True)
    qk_near = warpgroup_mma(s_q, s_early.permute([1, 0]), none, use_acc=False, is_async=True)
    qk, qk_near = warpgroup_mma_wait(0, deps=[qk, qk_near])
    qk = gl.where(same, qk, qk_near)

    # from the middle of the chunk to a block, and back
    middle = gl.where(own == 0, totals.index(1).load(COLUMN)[None, :], 0.0)
    middle = gl.exp2(middle + gl.where(own == 3, totals.index(2).load(COLUMN)[None, :], 0.0))[:, None, :]
    wide = _flat(gl.broadcast(middle, upto)[0], K, TILE)
    s_q.store((s_q.load(TILE).to(gl.float32) * wide).to(gl.bfloat16))
    s_k.store((s_k.load(TILE).to(gl.float32) * wide).to(gl.bfloat16))
    s_early.store((s_early.load(TILE).to(gl.float32) * wide).to(gl.bfloat16))
    fence_async_shared()
    same = r // 32 == c // 32
    kk_far = warpgroup_mma(s_k, s_early.permute([1, 0]), none, use_acc=False, is_async=True)
    qk_far = warpgroup_mma(s_q, s_early.permute([1, 0]), none, use_acc=False, is_async=True)
    kk_far, qk_far = warpgroup_mma_wait(0, deps=[kk_far, qk_far])
    kk = gl.where(same, kk, kk_far)
    qk = gl.where(same, qk, qk_far)

    if SCALED:
        column = gl.arange(0, 64, gl.SliceLayout(0, SCORES))
        b_c = write_strength(beta, place + column * HV, column < count, BETA_SIGMOID, NEG_EIGVAL)[None, :]
        kk = kk * b_c
        qk = qk * b_c
    tile = program.to(gl.int64) * 4096 + r * 64 + c
    gl.store(system + tile, gl.where(r > c, kk, 0.0))
    gl.store(attention + tile, gl.where(r >= c, qk, 0.0).to(gl.bfloat16))
