"""The delta rule token by token in Triton: over sequences, or against a pool of states.

One program carries BV value columns of one head's state through the tokens of one row or sequence, in fp32 registers.
A state's layout is two strides. Counts are not specialised: a count of 1 would be compiled in, and the code for it
rounds otherwise (clause I3). Shape legend: N rows or sequences, T tokens, H query/key heads, HV value heads, K, V head
sizes rounded up to BK, BV; S slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import normalized, stored
from deltaproof.ops.common.triton_places import sequence_bounds
from deltaproof.ops.common.triton_token import advanced, gate_at, gated, strengthened, token_at


@triton.jit
def ask_ahead(
    pool, read_index, row, slots, slot_stride, inside, asks, AHEAD: tl.constexpr, PROGRAMS: tl.constexpr
):  # fmt: skip
    """Ask for a byte of the slot that the row AHEAD rows later reads, where ``asks``; ``inside`` is its place there.

    A row has PROGRAMS programs. Slots lie in any order, so a row's first access to its slot waits until its memory
    page's address is found. This load finds it before. Nothing comes of the byte, which may be written meanwhile. A
    prefetch would not do: on an H200 it is dropped where the address is not known yet.
    """
    if asks & (tl.program_id(0) < tl.num_programs(0) - AHEAD * PROGRAMS):
        slot = tl.load(read_index + row + AHEAD).to(tl.int64)
        if (slot >= 0) & (slot < slots):
            # as assembly, or a load that nobody uses is left out
            tl.inline_asm_elementwise(
                "ld.volatile.global.u8 $0, [$1];",
                "=r,l",
                [pool + slot * slot_stride + inside],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit(do_not_specialize=["T", "slots"])
def recurrence_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    v,  # [B, T, HV, V]
    g,  # [B, T, HV] or [B, T, HV, K]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV] or [HV, K]
    o,  # [B, T, HV, V]
    source,  # states read: [N or S, HV, ., .]
    sink,  # states written
    read_index,  # [N]
    write_index,  # [N] or [N, T]
    num_tokens,  # [N]
    has_initial_state,  # [N]
    cu_seqlens,  # [N + 1]
    scale,
    T,
    slots,
    source_slot,  # strides in elements
    source_head,
    source_k,
    source_v,
    sink_slot,
    sink_head,
    sink_k,
    sink_v,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    AHEAD: tl.constexpr,
    POOL: tl.constexpr,
    VARLEN: tl.constexpr,
    RAGGED: tl.constexpr,
    FRESH: tl.constexpr,
    READ: tl.constexpr,
    WRITE: tl.constexpr,
    WRITE_EACH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GATE: tl.constexpr,
    RATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    LOWER: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    row = program // (BLOCKS * HV)
    k_at = tl.arange(0, BK)  # [BK]
    v_at = block * BV + tl.arange(0, BV)  # [BV]
    v_in = v_at < V
    inner = v_in[:, None] & (k_at < K)[None, :]  # [BV, BK]

    if VARLEN:
        first, count = sequence_bounds(cu_seqlens, row, T)
    else:
        first = row * T
        count = tl.zeros([], tl.int64) + T
    # what waits for no slot is under way while slots come
    x_q, x_k, x_v, x_g, x_beta = token_at(
        q, k, v, g, beta, first, count > 0, head, k_at, v_at, H, HV, K, V, PER_CHANNEL
    )  # fmt: skip
    b_A_log, b_bias = gate_at(A_log, dt_bias, head, k_at, K, GATE, RATE, DT_BIAS, PER_CHANNEL)
    live = count >= 0
    read_slot = row
    write_slot = row
    if POOL:
        read_slot = tl.load(read_index + row).to(tl.int64)
        live = (read_slot >= 0) & (read_slot < slots)
        if not WRITE_EACH:
            write_slot = tl.load(write_index + row).to(tl.int64)
    steps = count
    if RAGGED:
        steps = tl.minimum(tl.maximum(tl.load(num_tokens + row).to(tl.int64), 0), count)
    steps = tl.where(live, steps, 0)

    state = tl.zeros([BV, BK], tl.float32)  # [BV, BK]
    if READ:
        used = live
        if FRESH:
            used = used & (tl.load(has_initial_state + row).to(tl.int32) != 0)
        at = read_slot * source_slot + head * source_head + v_at[:, None] * source_v + k_at[None, :] * source_k
        state = tl.load(source + at, mask=inner & used, other=0.0).to(tl.float32)
    if AHEAD:
        inside = head * source_head
        ask_ahead(source, read_index, row, slots, source_slot, inside, block == 0, AHEAD, BLOCKS * HV)

    for t in range(steps):
        token = first + t
        b_q = x_q.to(tl.float32)  # [BK]
        b_k = x_k.to(tl.float32)  # [BK]
        b_v = x_v.to(tl.float32)  # [BV]
        b_g = x_g.to(tl.float32)
        b_beta = x_beta.to(tl.float32)
        # the next token comes while this one is computed
        x_q, x_k, x_v, x_g, x_beta = token_at(
            q, k, v, g, beta, token + 1, t + 1 < steps, head, k_at, v_at, H, HV, K, V, PER_CHANNEL
        )  # fmt: skip
        if NORMALIZE:
            b_q = normalized(b_q)
            b_k = normalized(b_k)
        b_g = gated(b_g, b_A_log, b_bias, GATE, RATE, LOWER)
        state = advanced(state, b_k, b_v, b_g, strengthened(b_beta, BETA_SIGMOID, NEG_EIGVAL), PER_CHANNEL)
        b_o = tl.sum(state * b_q[None, :], 1) * scale  # [BV]
        tl.store(o + (token * HV + head) * V + v_at, stored(b_o, o.dtype.element_ty), mask=v_in)
        if WRITE_EACH:
            slot = tl.load(write_index + row * T + t).to(tl.int64)
            each = slot * sink_slot + head * sink_head + v_at[:, None] * sink_v + k_at[None, :] * sink_k
            tl.store(sink + each, stored(state, sink.dtype.element_ty), mask=inner & (slot >= 0) & (slot < slots))
    for t in range(steps, count):
        skipped = ((first + t) * HV + head) * V + v_at
        tl.store(o + skipped, tl.zeros([BV], tl.float32).to(o.dtype.element_ty), mask=v_in)
    if WRITE:
        kept = live
        if POOL:
            kept = kept & (write_slot >= 0) & (write_slot < slots)
        at = write_slot * sink_slot + head * sink_head + v_at[:, None] * sink_v + k_at[None, :] * sink_k
        tl.store(sink + at, stored(state, sink.dtype.element_ty), mask=inner & kept)
