"""The part of a chunked delta rule that walks the chunks of a sequence, for Hopper, in Gluon.

A program carries BV value rows of one head's state, transposed, [BV, K] in fp32, from chunk to chunk, and makes the
outputs on the way: neither states nor errors go to memory. Transposed, every product has a state, errors or outputs on
its left, [BV, .], and chunks of tokens on its right. An accumulator's registers are then the next product's operand,
and what is computed never passes through shared memory, but for outputs on their way out: those of a chunk are made and
stored while the next one is begun. What is loaded comes a chunk ahead, by TMA. With S the state before a chunk, in the
notation of the gated delta rule's README:

    Y^T = (V^T - (S^T K^T) diag(e^G)) T'^T
    O^T = scale (S^T Q^T) diag(e^G) + Y^T A^T        A = scale M diag(beta)
    S^T <- e^{G_C} S^T + Y^T diag(beta e^{G_C - G}) K

With a gate a channel queries and keys come decayed, a value head each: e^G stands in Q and K, e^{G_C - G} in the keys
that are written, and e^{G_C} is a number a channel. Shape legend: chunks of 64 tokens; H query/key heads, HV value
heads, K, V head sizes, V cut into blocks of BV; N sequences, S slots, M checkpoints of a sequence.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from deltaproof.ops.common.hopper_copies import (
    copy_early,
    copy_first,
    copy_late,
    copy_strength,
    expect_early,
    expect_late,
    new_barrier,
    wait_for,
    zero_behind,
)
from deltaproof.ops.common.hopper_tiles import is_last, segment_place, zero_rows
from deltaproof.ops.common.hopper_triangles import attention_right, copied_tile, turned


@gluon.jit
def _keep(states, S, number, count, v_at, k_at, K: gl.constexpr, V: gl.constexpr, V_FIRST: gl.constexpr):
    """Store S^T among states before chunks, by the number of its chunk and head, if there are so many."""
    if number < count:
        # 64 bits: places in 32, which are needed before the loop too, would be held over it
        row, column = v_at.to(gl.int64), k_at.to(gl.int64)
        # each one address, and numbers that the compiler knows
        place = row * K + column if V_FIRST else (column // 8 * (8 * V) + row) + column % 8 * V
        gl.store((states + number.to(gl.int64) * (K * V)) + place, S.to(states.dtype.element_ty))


@gluon.jit(do_not_specialize=["N", "T", "slots", "M", "kept_states"])
def hopper_walk_kernel(
    q,  # [B, T, H, K] bf16 or fp16, normalised; a gate a channel: e^G q, and H = HV
    k,  # [B, T, H, K]; a gate a channel: e^G k
    kept,  # a gate a channel: e^{G_C - G} k [B, T, H, K]
    v,  # [B, T, HV, V]
    factors,  # [chunks, HV, 2, 64] fp32: e^G and beta e^{G_C - G}; a gate a channel: e^{G_C} [chunks, HV, K];
    # of 4 LINES: these divided by the keys' lengths, e^G by the queries', and e^G [chunks, HV, 4, 64]
    strength,  # a gate a channel: beta [B, T, HV] fp32
    inverse,  # T' [chunks, HV, 64, 64] if it is WHOLE, else folded
    attention,  # A [chunks, HV, 64, 64] if it is WHOLE_A, else A^T, folded; a gate a channel: A / scale
    outputs,  # [B, T, HV, V] out: a descriptor
    o,  # the same
    states,  # [.., HV, K, V] or [.., HV, V, K] out, where STATES: the state before each chunk
    starts,  # [segments - 1, HV, V, K] fp32, where SPLIT: the state before each segment but the first; of sequences'
    # firsts nothing. POOL: [segments, HV, V, K], and of firsts too, but for those that are last as well
    source,
    sink,
    checkpoint_index,  # [N, M]
    read_index,
    write_index,
    has_initial_state,
    cu_seqlens,
    chunk_offsets,
    segment_offsets,
    segment_sequence,
    scale,
    T,
    N,
    slots,
    M,
    kept_states,  # how many states there are room for, times HV
    source_slot,
    source_head,
    source_k,
    source_v,
    sink_slot,
    sink_head,
    sink_k,
    sink_v,
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
    WRITE: gl.constexpr,
    EVERY: gl.constexpr,
    STATES: gl.constexpr,
    V_FIRST: gl.constexpr,
    PER_CHANNEL: gl.constexpr,
    LINES: gl.constexpr,
    WHOLE: gl.constexpr,
    WHOLE_A: gl.constexpr,
):
    WARPS: gl.constexpr = BV // 16
    BLOCKS: gl.constexpr = V // BV
    LOW: gl.constexpr = k.dtype
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, K, 16])  # [BV, K]
    TOKENS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16])  # [BV, 64]
    LEFT_K: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOKENS, 2)
    COLUMN: gl.constexpr = gl.SliceLayout(0, TOKENS)
    CHANNEL: gl.constexpr = gl.SliceLayout(0, STATE)
    SIZE: gl.constexpr = K if PER_CHANNEL else 64
    OF_Q: gl.constexpr = 2 if LINES == 4 else 0
    WHOLE_LINE: gl.constexpr = 3 if LINES == 4 else 0
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    PLAIN: gl.constexpr = gl.NVMMASharedLayout(0, 32, 2)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    # a thread's rows lie in registers, as those that it copies
    ROWS: gl.constexpr = 256 // BV * WARPS
    VALUES: gl.constexpr = gl.BlockedLayout(
        [64 // ROWS, 1, 8], [1, 256 // BV, BV // 8], [1, WARPS, 1], [2, 1, 0]
    )  # [64 / ROWS, ROWS, BV]

    program = gl.program_id(0).to(gl.int64)
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    segment = program // (BLOCKS * HV)
    n, index, first, length, before, chunk_0 = segment_place(
        segment, T, N, cu_seqlens, chunk_offsets, segment_offsets, segment_sequence, SPLIT, VARLEN
    )
    if n < 0:
        return
    chunks = (length + 63) // 64

    s_q = gl.allocate_shared_memory(LOW, [2, 64, K], SHARED)
    s_k = gl.allocate_shared_memory(LOW, [2, 64, K], SHARED)
    s_v = gl.allocate_shared_memory(LOW, [1, 64, BV], SHARED)
    s_i = gl.allocate_shared_memory(LOW, [1, 64, 64], SHARED)
    s_a = gl.allocate_shared_memory(LOW, [2, 64, 64], SHARED)
    s_o = gl.allocate_shared_memory(LOW, [64, BV], SHARED)
    s_factors = gl.allocate_shared_memory(gl.float32, [2, LINES, SIZE], PLAIN)
    s_lines = s_factors._reinterpret(gl.float32, [2 * LINES, SIZE], LINE)
    b_q, b_k, b_v, b_i, b_a, b_factors = (
        new_barrier(2), new_barrier(2), new_barrier(1), new_barrier(1), new_barrier(2), new_barrier(2)
    )  # fmt: skip
    s_kept = s_k
    b_kept = b_k
    if PER_CHANNEL:
        s_kept = gl.allocate_shared_memory(LOW, [2, 64, K], SHARED)
        s_strength = gl.allocate_shared_memory(gl.float32, [2, 64], LINE)
        b_kept = new_barrier(2)
    fence_async_shared()
    gl.thread_barrier()
    early = ((k, q, kept, factors), (s_k, s_q, s_kept, s_factors), (b_k, b_q, b_kept, b_factors))
    late = ((v, inverse, attention), (s_v, copied_tile(s_i, WHOLE), copied_tile(s_a, WHOLE_A)), (b_v, b_i, b_a))
    row = first.to(gl.int32)
    matrix = chunk_0.to(gl.int32) * HV + head.to(gl.int32)
    key = (head // (HV // H)).to(gl.int32) * K
    value = head.to(gl.int32) * V + block.to(gl.int32) * BV
    if chunks > 0:
        copy_first(early, late, row, row, key, value, matrix, K, BV, True, PER_CHANNEL, WHOLE, WHOLE_A)
    if PER_CHANNEL:
        copy_strength(strength + (first * HV + head), s_strength.index(0), length, HV, WARPS)
    if VARLEN:  # noqa: SIM102 (a branch of its own is dropped where it is constant)
        if (n == N - 1) & (index == 0):
            # what lies behind the pack
            end = gl.minimum(gl.maximum(gl.load(cu_seqlens + N).to(gl.int64), 0), T)
            zero_rows(o + (end * (HV * V) + head * V + block * BV), T - end, HV * V, BV, WARPS)

    v_at = block.to(gl.int32) * BV + gl.arange(0, BV, gl.SliceLayout(1, STATE))[:, None]
    k_at = gl.arange(0, K, gl.SliceLayout(0, STATE))[None, :]
    far = gl.arange(0, 64 // ROWS, gl.SliceLayout(1, gl.SliceLayout(2, VALUES)))[:, None][:, :, None] * ROWS
    near = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, VALUES)))[None, :][:, :, None]
    inner = near * (HV * V) + gl.arange(0, BV, gl.SliceLayout(0, gl.SliceLayout(0, VALUES)))[None, :][None, :, :]
    read_slot = n
    if POOL:
        read_slot = gl.load(read_index + n).to(gl.int64)
        if (read_slot < 0) | (read_slot >= slots):
            # nothing may come to the shared memory of who is next
            if chunks > 0:
                for i in gl.static_range(4):
                    if PER_CHANNEL or i != 2:
                        wait_for(early[2][i], 0)
                for i in gl.static_range(3):
                    wait_for(late[2][i], 0)
            if PER_CHANNEL:
                async_copy.wait_group(0)
            zero_rows(o + (first * (HV * V) + value), length, HV * V, BV, WARPS)
            return
    S = gl.zeros([BV, K], gl.float32, STATE)
    found = index > 0
    if POOL and SPLIT > 0:
        # another segment's program may write the slot before this one has read it
        found = found | ~is_last(segment, n, index, T, segment_offsets, SPLIT, VARLEN)
    if READ:
        used = ~found
        if FRESH:
            used = used & (gl.load(has_initial_state + n).to(gl.int32) != 0)
        if used:
            at = source + read_slot * source_slot + head * source_head
            S = gl.load(at + (v_at * source_v + k_at * source_k)).to(gl.float32)
    if SPLIT > 0:  # noqa: SIM102 (a branch of its own is dropped where it is constant)
        if found:
            S = gl.load(starts + ((segment - 1 + POOL) * HV + head) * V * K + (v_at * K + k_at))
    zero = gl.zeros([BV, 64], gl.float32, TOKENS)
    low = gl.convert_layout(S.to(LOW), LEFT_K, assert_trivial=True)  # [BV, K]
    errors = gl.convert_layout(zero.to(LOW), LEFT, assert_trivial=True)
    by_q = zero
    gl.thread_barrier()

    for c in range(chunks):
        stage = c % 2
        start = c * 64
        if STATES:
            _keep(states, S, matrix + c * HV, kept_states, v_at, k_at, K, V, V_FIRST)
        wait_for(b_k, c)
        if length - start < 64:
            # 0 times what lies there may not be 0
            wait_for(b_v, c)
            zero_behind(s_k.index(stage), length - start, K, WARPS)
            zero_behind(s_v.index(0), length - start, BV, WARPS)
            if PER_CHANNEL:
                wait_for(b_kept, c)
                zero_behind(s_kept.index(stage), length - start, K, WARPS)
            fence_async_shared()
            gl.thread_barrier()
        by_k = warpgroup_mma(low, s_k.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        # the outputs of the chunk before; nothing, at first
        if c > 0:
            wait_for(b_a, c - 1)
        out = warpgroup_mma(errors, attention_right(s_a.index((c + 1) % 2), WHOLE_A), by_q, is_async=True)
        ahead = c + 1
        there = ahead < chunks
        if there:
            expect_early(early, ahead, K, True, PER_CHANNEL)
        if PER_CHANNEL:
            async_copy.wait_group(0)
        # the last chunk's keys, queries and numbers are done with
        gl.thread_barrier()
        if there:
            copy_early(early, ahead, row + ahead * 64, key, matrix + ahead * HV, True, PER_CHANNEL)
        if PER_CHANNEL:
            at = s_strength.index(ahead % 2)
            place = strength + ((row + ahead * 64).to(gl.int64) * HV + head)
            copy_strength(place, at, length - ahead * 64, HV, WARPS)
        wait_for(b_factors, c)
        wait_for(b_v, c)
        b_x = s_v.index(0).permute([1, 0]).load(TOKENS)  # [BV, 64]
        if not PER_CHANNEL:
            # rows behind the chunk's end have no gate, so the last is the whole chunk's
            S = S * s_lines.index(LINES * stage + WHOLE_LINE).slice(63, 1).load(CHANNEL)[None, :]
        by_k, low = warpgroup_mma_wait(1, deps=[by_k, low])
        if not PER_CHANNEL:
            by_k = by_k * s_lines.index(LINES * stage).load(COLUMN)[None, :]
        x = gl.convert_layout((b_x.to(gl.float32) - by_k).to(LOW), LEFT, assert_trivial=True)
        wait_for(b_i, c)
        y = warpgroup_mma(x, s_i.index(0).permute([1, 0]), zero, use_acc=False, is_async=True)
        y, x, out, errors = warpgroup_mma_wait(0, deps=[y, x, out, errors])
        if there:
            expect_late(late, ahead, BV, True)
        # so are its values, its inverse and the attention before it; and outputs have left shared memory
        tma.store_wait(0)
        gl.thread_barrier()
        if there:
            copy_late(late, ahead, row + ahead * 64, value, matrix + ahead * HV, True, WHOLE, WHOLE_A)
        kept_y = (
            turned(y, TOKENS, not WHOLE)
            * (s_strength.index(stage) if PER_CHANNEL else s_lines.index(LINES * stage + 1)).load(COLUMN)[None, :]
        )
        written = gl.convert_layout(kept_y.to(LOW), LEFT, assert_trivial=True)
        errors = gl.convert_layout(turned(y, TOKENS, WHOLE != WHOLE_A).to(LOW), LEFT, assert_trivial=True)
        if PER_CHANNEL:
            # K numbers: beside the first products there is no room for them
            S = S * s_lines.index(stage).load(CHANNEL)[None, :]
            wait_for(b_kept, c)
        S = warpgroup_mma(written, s_kept.index(stage), S, is_async=True)
        wait_for(b_q, c)
        by_q = warpgroup_mma(low, s_q.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        if PER_CHANNEL:
            out = out * scale
        s_o.permute([1, 0]).store(out.to(LOW))
        fence_async_shared()
        gl.thread_barrier()
        if c > 0:
            tma.async_copy_shared_to_global(outputs, [row + start - 64, value], s_o)
        S, written, by_q, low = warpgroup_mma_wait(0, deps=[S, written, by_q, low])
        if EVERY > 0:
            done = before.to(gl.int32) + start + 64
            if (done % EVERY == 0) & (start + 64 <= length) & (done // EVERY <= M):
                slot = gl.load(checkpoint_index + n * M + done // EVERY - 1).to(gl.int64)
                if (slot >= 0) & (slot < slots):
                    spot = sink + slot * sink_slot + head * sink_head
                    gl.store(
                        spot + (v_at.to(gl.int64) * sink_v + k_at.to(gl.int64) * sink_k), S.to(sink.dtype.element_ty)
                    )
        low = gl.convert_layout(S.to(LOW), LEFT_K, assert_trivial=True)
        if not PER_CHANNEL:
            by_q = by_q * (s_lines.index(LINES * stage + OF_Q).load(COLUMN)[None, :] * scale)
    if chunks > 0:
        c = chunks - 1
        start = c * 64
        wait_for(b_a, c)
        out = warpgroup_mma(errors, attention_right(s_a.index(c % 2), WHOLE_A), by_q, is_async=True)
        out, errors = warpgroup_mma_wait(0, deps=[out, errors])
        if PER_CHANNEL:
            out = out * scale
        tma.store_wait(0)
        gl.thread_barrier()
        s_o.permute([1, 0]).store(out.to(LOW))
        place = o + ((row + start).to(gl.int64) * (HV * V) + value)
        b_o = s_o.reshape([64 // ROWS, ROWS, BV]).load(VALUES).to(o.dtype.element_ty)
        gl.store((place + inner) + far * (HV * V), b_o, mask=near < length - start - far)
    if PER_CHANNEL:
        async_copy.wait_group(0)
    if WRITE:
        kept_slot = is_last(segment, n, index, T, segment_offsets, SPLIT, VARLEN)
        write_slot = n
        if POOL:
            write_slot = gl.load(write_index + n).to(gl.int64)
            kept_slot = kept_slot & (write_slot >= 0) & (write_slot < slots)
        if kept_slot:
            spot = sink + write_slot * sink_slot + head * sink_head
            gl.store(spot + (v_at * sink_v + k_at * sink_k), S.to(sink.dtype.element_ty))
