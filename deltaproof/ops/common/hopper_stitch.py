"""The states before a sequence's segments, from what each segment does to a state.

A program has BV value columns of one head's state, transposed, [BV, BK] in fp32, and goes from segment to segment.
Shape legend: HV value heads, K, V head sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot


@triton.jit(do_not_specialize=["T"])
def stitch_kernel(
    starts,  # [segments, HV, V, K] fp32: b^T of the segment before each; out: the state before each, but the first
    transitions,  # [segments, HV, K, K] fp32: A^T of segments that are neither first nor last
    segment_offsets,
    T,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    SPLIT: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = V // BV
    head = (program // BLOCKS) % HV
    n = program // (BLOCKS * HV)
    if VARLEN:
        first = tl.load(segment_offsets + n).to(tl.int64)
        count = tl.load(segment_offsets + n + 1).to(tl.int64) - first
    else:
        count = tl.zeros([], tl.int64) + (T + 64 * SPLIT - 1) // (64 * SPLIT)
        first = n * tl.maximum(count, 1)
    v_at = program % BLOCKS * BV + tl.arange(0, BV)
    k_at = tl.arange(0, K)
    for i in range(1, count - 1):
        known = starts + ((first + i) * HV + head) * V * K + v_at[:, None] * K
        later = known + HV * V * K
        S = tl.load(known + k_at[None, :])  # [BV, K]
        for start in range(0, K, BK):
            at = start + tl.arange(0, BK)
            A = tl.load(transitions + ((first + i) * HV + head) * K * K + k_at[:, None] * K + at[None, :])  # [K, BK]
            tl.store(later + at[None, :], tl.load(later + at[None, :]) + dot(S, A))
        # the next step reads what other threads stored
        tl.debug_barrier()
