"""The states before a sequence's segments, from what each segment does to a state, for Hopper, in Gluon.

A program has BV value rows of one head's state S, transposed, in fp32 registers, and goes from segment to segment:
S^T <- S^T A^T + b^T. The tensor cores take both factors as two bf16 pieces, 16 bits; the product of the second ones is
left out. Transitions are copied STAGES - 1 segments ahead, and those that a segment does not carry not at all. Shape
legend: HV value heads, K, V head sizes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from deltaproof.ops.common.hopper_language import halves
from deltaproof.ops.common.hopper_tiles import copy_rows


@gluon.jit
def _carries(flags, i, last, HV: gl.constexpr):
    """Return 1 if a segment carries a state to one behind it, else 0, as at ``last`` and behind it."""
    return gl.load(flags + i * HV, mask=i < last, other=0)


@gluon.jit(do_not_specialize=["T"])
def stitch_kernel(
    starts,  # [segments - 1, HV, V, K] fp32: b^T of each but the last; out: the state behind it
    transitions,  # [segments, HV, 2, K, K] bf16: A^T of segments neither first nor last that carry, in two pieces
    carried,  # [segments, HV]: whether anything of the state before a segment is left behind it
    segment_offsets,
    T,
    HV: gl.constexpr,
    K: gl.constexpr,
    V: gl.constexpr,
    BV: gl.constexpr,
    STAGES: gl.constexpr,
    SPLIT: gl.constexpr,
    VARLEN: gl.constexpr,
):
    WARPS: gl.constexpr = BV // 4
    BLOCKS: gl.constexpr = V // BV
    STATE: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [BV // 16, 4], [16, 8])  # [BV, K]
    LEFT: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, STATE, 2)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)

    program = gl.program_id(0).to(gl.int64)
    head = (program // BLOCKS) % HV
    n = program // (BLOCKS * HV)
    if VARLEN:
        first = gl.load(segment_offsets + n).to(gl.int64)
        count = (gl.load(segment_offsets + n + 1) - first).to(gl.int32)
    else:
        count = ((T + 64 * SPLIT - 1) // (64 * SPLIT)).to(gl.int32)
        first = n * gl.maximum(count, 1)
    last = count - 1
    if last < 2:
        return
    starts += (first * HV + head) * V * K
    transitions += (first * HV + head) * (2 * K * K)
    flags = carried + first * HV + head
    s_A = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 2 * K, K], SHARED)
    s_1 = gl.allocate_shared_memory(gl.bfloat16, [BV, K], SHARED)
    s_2 = gl.allocate_shared_memory(gl.bfloat16, [BV, K], SHARED)
    for early in gl.static_range(1, STAGES):
        transitions += HV * 2 * K * K
        rows = _carries(flags, early, last, HV) * (2 * K)
        copy_rows(transitions, s_A.index(early), K, rows, K, WARPS, 2 * K)
        async_copy.commit_group()
    v_at = program % BLOCKS * BV + gl.arange(0, BV, gl.SliceLayout(1, STATE)).to(gl.int64)[:, None]
    at = v_at * K + gl.arange(0, K, gl.SliceLayout(0, STATE)).to(gl.int64)[None, :]
    zero = gl.zeros([BV, K], gl.float32, STATE)
    S = gl.load(starts + at)
    later = starts + HV * V * K
    b = gl.load(later + at)
    # what a step decides by is loaded in the one before
    carries = _carries(flags, 1, last, HV)
    asked = _carries(flags, STAGES, last, HV)
    for i in range(1, last):
        async_copy.wait_group(STAGES - 2)
        ahead = i + STAGES - 1
        transitions += HV * 2 * K * K
        copy_rows(transitions, s_A.index(ahead % STAGES), K, asked * (2 * K), K, WARPS, 2 * K)
        async_copy.commit_group()
        carries_next = _carries(flags, i + 1, last, HV)
        asked = _carries(flags, ahead + 1, last, HV)
        b_next = gl.load(later + HV * V * K + at, mask=at < gl.where(i + 1 < last, V * K, 0), other=0.0)
        if carries != 0:
            # a thread's part of S becomes the rows that every warp multiplies
            S_1, S_2 = halves(S)
            s_1.store(S_1)
            s_2.store(S_2)
            A = s_A.index(i % STAGES)
            S_1 = s_1.load(LEFT)
            A_1 = A.slice(0, K, 0).load(RIGHT)
            small = mma_v2(s_2.load(LEFT), A_1, zero)
            S = mma_v2(S_1, A_1, zero)
            small = mma_v2(S_1, A.slice(K, K, 0).load(RIGHT), small)
            S = b + (S + small)
            gl.store(later + at, S)
        else:
            S = b
        later += HV * V * K
        b = b_next
        carries = carries_next
    async_copy.wait_group(0)
