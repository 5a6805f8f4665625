"""What the segments of a sequence do to a state, for Hopper, in Gluon: all segments at once, before any is walked.

A segment makes of the state S before it A S + b. A program walks one segment's chunks with BV rows of a state,
transposed, as ``hopper_walk_kernel`` does, and makes no outputs: rows of b^T from a state of zeros, or rows of A^T from
those of the identity, with values of zero. A sequence's first segment starts from the state that it is given, so its b
is the state behind it, to the bit. ``stitch_kernel`` then makes every segment's state of them.

Where gates alone make every state before one of its chunks vanish, a segment has no A, and b is walked from the last
such chunk on. The chunks behind that one decide it, and nothing else. Shape legend: chunks of 64 tokens; H query/key
heads, HV value heads, K, V head sizes, V cut into blocks of BV; S slots.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from deltaproof.ops.common.hopper_copies import (
    copy_early,
    copy_first,
    copy_late,
    copy_strength,
    expect_early,
    expect_late,
    new_barrier,
    wait_for,
)
from deltaproof.ops.common.hopper_language import LOG2E, halves, plus
from deltaproof.ops.common.hopper_tiles import is_last, segment_place
from deltaproof.ops.common.hopper_triangles import copied_tile, turned
from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE

FORGOTTEN = gl.constexpr(MIN_LOG_GATE.value * LOG2E.value)
"""Binary logarithm of a decay below which a state counts as nothing.

A token's log gate may be clamped at -64 before it is summed (clause N1): e^-64 of a state is no part of what is
promised. What keys do to a state beside the decay makes it no longer, where beta * sum(k ** 2) is at most 2, as the
clause asks.
"""


@gluon.jit
def _log2(x):
    """Return the binary logarithm of x in one instruction, of 0 and of what is no normal number -inf."""
    return gl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def forgetting_chunk(
    gates, chunk_0, chunks, head,
    HV: gl.constexpr, STEP: gl.constexpr, FIRST: gl.constexpr, WIDTH: gl.constexpr, SPLIT: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Return the last of a segment's chunks from which on its gates leave nothing of a state; below 0: there is none.

    All decays are loaded at once and summed up from the last chunk back. No sum is taken to be below the one before it,
    and one that is no number forgets nothing. Of the STEP factors of a chunk and head, decays are WIDTH from FIRST on.
    """
    # a thread has a channel, or a chunk; [SPLIT, WIDTH]
    EACH: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [1, WARPS], [1, 0])
    LAYOUT: gl.constexpr = gl.BlockedLayout([SPLIT, 1], [1, 32], [1, WARPS], [1, 0]) if WIDTH > 1 else EACH
    back = gl.arange(0, SPLIT, gl.SliceLayout(1, LAYOUT))[:, None]
    at = gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))[None, :] + FIRST
    end = gates + ((chunk_0 + chunks - 1) * (HV * STEP) + head * STEP)
    decay = gl.load((end + at) - back * (HV * STEP), mask=back < chunks, other=1.0)
    total = gl.associative_scan(_log2(decay), 0, plus)
    # a bit a chunk
    remembers = gl.reduce_or(gl.sum(gl.where(total < FORGOTTEN, 0, 1).to(gl.int64) << back, 0), 0)
    back = gl.arange(0, SPLIT, gl.SliceLayout(1, EACH))
    return gl.max(gl.where(((remembers >> back.to(gl.int64)) & 1) == 0, chunks - 1 - back, -1), 0)


@gluon.jit(do_not_specialize=["N", "T", "slots"])
def hopper_ends_kernel(
    k,  # [B, T, H, K] bf16 or fp16, normalised; a gate a channel: e^G k, and H = HV
    kept,  # a gate a channel: e^{G_C - G} k [B, T, H, K]
    v,  # [B, T, HV, V]
    factors,  # see hopper_walk_kernel
    strength,  # a gate a channel: beta [B, T, HV] fp32
    inverse,  # T' [chunks, HV, 64, 64] if it is WHOLE, else folded
    gates,  # the same as factors
    starts,  # [segments - 1, HV, V, K] out, fp32: b^T of each but the last. POOL: [segments, HV, V, K], a place later,
    # and of sequences' firsts the state that they begin with: its slot may be written before it is read
    transitions,  # [segments, HV, 2, K, K] out, bf16: A^T, in two pieces, of segments neither first nor last that carry
    carried,  # [segments, HV] out: whether anything of the state before a segment is left behind it
    source,
    read_index,
    has_initial_state,
    cu_seqlens,
    chunk_offsets,
    segment_offsets,
    segment_sequence,
    T,
    N,
    slots,
    source_slot,
    source_head,
    source_k,
    source_v,
    H: gl.constexpr,
    HV: gl.constexpr,
    K: gl.constexpr,
    V: gl.constexpr,
    BV: gl.constexpr,
    C: gl.constexpr,
    SPLIT: gl.constexpr,
    VARLEN: gl.constexpr,
    POOL: gl.constexpr,
    FRESH: gl.constexpr,
    READ: gl.constexpr,
    PER_CHANNEL: gl.constexpr,
    LINES: gl.constexpr,
    WHOLE: gl.constexpr,
):
    WARPS: gl.constexpr = BV // 16
    STAGES: gl.constexpr = 2
    BLOCKS: gl.constexpr = (V + K) // BV
    LOW: gl.constexpr = k.dtype
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, K, 16])  # [BV, K]
    TOKENS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [BV, 64]
    LEFT_K: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOKENS, 2)
    COLUMN: gl.constexpr = gl.SliceLayout(0, TOKENS)
    CHANNEL: gl.constexpr = gl.SliceLayout(0, STATE)
    SIZE: gl.constexpr = K if PER_CHANNEL else 64
    WHOLE_LINE: gl.constexpr = 3 if LINES == 4 else 0
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    PLAIN: gl.constexpr = gl.NVMMASharedLayout(0, 32, 2)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    program = gl.program_id(0).to(gl.int64)
    head = (program // BLOCKS) % HV
    segment = program // (BLOCKS * HV)
    n, index, first, length, before, chunk_0 = segment_place(
        segment, T, N, cu_seqlens, chunk_offsets, segment_offsets, segment_sequence, SPLIT, VARLEN
    )
    of_b = program % BLOCKS < V // BV
    if (n < 0) | ((index == 0) & (not of_b)):
        return
    if is_last(segment, n, index, T, segment_offsets, SPLIT, VARLEN):
        return
    block = gl.where(of_b, program % BLOCKS, program % BLOCKS - V // BV)
    # all chunks of a segment but a sequence's last are there and whole, unless cu_seqlens is corrupt
    chunks = gl.minimum((length + 63) // 64, SPLIT)
    begin = forgetting_chunk(
        gates, chunk_0, chunks, head, HV, LINES * SIZE, 0 if PER_CHANNEL else 64 * WHOLE_LINE + 63,
        K if PER_CHANNEL else 1, SPLIT, WARPS,
    )  # fmt: skip
    carries = begin < 0
    if of_b:
        if block == 0:
            gl.store(carried + segment * HV + head, carries.to(gl.int32))
    elif not carries:
        return
    begin = gl.maximum(begin, 0)
    first += begin * 64
    chunk_0 += begin
    chunks -= begin

    s_k = gl.allocate_shared_memory(LOW, [STAGES, 64, K], SHARED)
    s_v = gl.allocate_shared_memory(LOW, [STAGES, 64, BV], SHARED)
    s_i = gl.allocate_shared_memory(LOW, [STAGES, 64, 64], SHARED)
    s_factors = gl.allocate_shared_memory(gl.float32, [STAGES, LINES, SIZE], PLAIN)
    s_lines = s_factors._reinterpret(gl.float32, [STAGES * LINES, SIZE], LINE)
    s_kept = s_k
    if PER_CHANNEL:
        s_kept = gl.allocate_shared_memory(LOW, [STAGES, 64, K], SHARED)
        s_strength = gl.allocate_shared_memory(gl.float32, [STAGES, 64], LINE)
    b_k, b_v, b_i, b_factors = new_barrier(STAGES), new_barrier(STAGES), new_barrier(STAGES), new_barrier(STAGES)
    b_kept = b_k
    if PER_CHANNEL:
        b_kept = new_barrier(STAGES)
    fence_async_shared()
    gl.thread_barrier()
    early = ((k, k, kept, factors), (s_k, s_k, s_kept, s_factors), (b_k, b_k, b_kept, b_factors))
    i_tiles = copied_tile(s_i, WHOLE)
    late = ((v, inverse, inverse), (s_v, i_tiles, i_tiles), (b_v, b_i, b_i))
    row = first.to(gl.int32)
    # rows outside a tensor are zeros
    row_v = gl.where(of_b, row, -(2**24))
    matrix = chunk_0.to(gl.int32) * HV + head.to(gl.int32)
    key = (head // (HV // H)).to(gl.int32) * K
    value = head.to(gl.int32) * V + block.to(gl.int32) * BV
    if chunks > 0:
        copy_first(early, late, row, row_v, key, value, matrix, K, BV, False, PER_CHANNEL, WHOLE, WHOLE)
    if PER_CHANNEL:
        count = gl.where(chunks > 0, 64, 0)
        copy_strength(strength + first * HV + head, s_strength.index(0), count, HV, WARPS)

    v_at = block * BV + gl.arange(0, BV, gl.SliceLayout(1, STATE)).to(gl.int64)[:, None]
    k_at = gl.arange(0, K, gl.SliceLayout(0, STATE)).to(gl.int64)[None, :]
    S = gl.zeros([BV, K], gl.float32, STATE)
    if not of_b:
        S = gl.where(v_at == k_at, 1.0, S)
    if READ:
        read_slot = n
        # from a pool it is loaded even if nothing is left of it
        used = (index == 0) & (carries | POOL)
        if POOL:
            read_slot = gl.load(read_index + n).to(gl.int64)
            used = used & (read_slot >= 0) & (read_slot < slots)
        if FRESH:
            used = used & (gl.load(has_initial_state + n).to(gl.int32) != 0)
        if used:
            at = source + read_slot * source_slot + head * source_head
            S = gl.load(at + (v_at * source_v + k_at * source_k)).to(gl.float32)
        if POOL:
            if index == 0:
                gl.store(starts + (segment * HV + head) * V * K + (v_at * K + k_at), S)
            S = gl.where(carries, S, 0.0)
    zero = gl.zeros([BV, 64], gl.float32, TOKENS)
    # else the compiler has one in the loop, for what was asked for before it
    gl.thread_barrier()

    for c in range(chunks):
        stage = c % STAGES
        wait_for(b_k, c)
        low = gl.convert_layout(S.to(LOW), LEFT_K, assert_trivial=True)  # [BV, K]
        by_k = warpgroup_mma(low, s_k.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        for i in gl.static_range(2):
            wait_for(late[2][i], c)
            wait_for(early[2][2 + i], c)
        b_x = s_v.index(stage).permute([1, 0]).load(TOKENS)  # [BV, 64]
        if not PER_CHANNEL:
            left = s_lines.index(LINES * stage).load(COLUMN)[None, :]
            decay = s_lines.index(LINES * stage + WHOLE_LINE).slice(63, 1).load(CHANNEL)[None, :]
        ahead = c + 1
        there = ahead < chunks
        if there:
            expect_early(early, ahead, K, False, PER_CHANNEL)
            expect_late(late, ahead, BV, False)
        if PER_CHANNEL:
            async_copy.wait_group(0)
        # the last chunk is done with
        gl.thread_barrier()
        if there:
            ahead_row, ahead_matrix = row + ahead * 64, matrix + ahead * HV
            copy_early(early, ahead, ahead_row, key, ahead_matrix, False, PER_CHANNEL)
            copy_late(late, ahead, row_v + ahead * 64, value, ahead_matrix, False, WHOLE, WHOLE)
        if PER_CHANNEL:
            at = s_strength.index(ahead % STAGES)
            copy_strength(strength + (first + ahead * 64) * HV + head, at, gl.where(there, 64, 0), HV, WARPS)
            decay = s_lines.index(stage).load(CHANNEL)[None, :]
        S = S * decay
        by_k, low = warpgroup_mma_wait(0, deps=[by_k, low])
        x = b_x.to(gl.float32) - (by_k if PER_CHANNEL else by_k * left)
        x = gl.convert_layout(x.to(LOW), LEFT, assert_trivial=True)
        y = warpgroup_mma(x, s_i.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        y, x = warpgroup_mma_wait(0, deps=[y, x])
        y = (
            turned(y, TOKENS, not WHOLE)
            * (s_strength.index(stage) if PER_CHANNEL else s_lines.index(LINES * stage + 1)).load(COLUMN)[None, :]
        )
        written = gl.convert_layout(y.to(LOW), LEFT, assert_trivial=True)
        S = warpgroup_mma(written, s_kept.index(stage), S, is_async=True)
        S, written = warpgroup_mma_wait(0, deps=[S, written])
    if PER_CHANNEL:
        async_copy.wait_group(0)
    if of_b:
        gl.store(starts + ((segment + POOL) * HV + head) * V * K + (v_at * K + k_at), S)
    else:
        high, low = halves(S)
        place = transitions + (segment * HV + head) * (2 * K * K)
        gl.store(place + (v_at * K + k_at), high)
        gl.store(place + (K * K) + (v_at * K + k_at), low)
