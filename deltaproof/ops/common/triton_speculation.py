"""A speculative step of the delta rule in Triton: accepted drafts into the slot, then new tokens beside it.

One program carries BV value columns of one head's state, as in the recurrence. It replays the accepted drafts of the
slot, stores the state, and goes on through the row's tokens, of which it keeps the inputs and no state. Several
programs read a draft's key, so what is read and what is written lie in two halves of the slot (clause P7). Counts are
not specialised, as in the recurrence. Shape legend: N rows, T tokens, H query/key heads, HV value heads, K, V head
sizes rounded up to BK, BV; S slots, D drafts a slot can hold.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import normalized, stored
from deltaproof.ops.common.triton_token import advanced, gate_at, gated, strengthened


@triton.jit(do_not_specialize=["T", "D", "slots"])
def speculation_kernel(
    q,  # [N, T, H, K]
    k,  # [N, T, H, K]
    v,  # [N, T, HV, V]
    g,  # [N, T, HV] or [N, T, HV, K]
    beta,  # [N, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV] or [HV, K]
    o,  # [N, T, HV, V]
    pool,  # [S, HV, ., .]
    draft_k,  # [S, 2, D, H, K]
    draft_v,  # [S, 2, D, HV, V]
    draft_g,  # [S, 2, D, HV] or [S, 2, D, HV, K]
    draft_beta,  # [S, 2, D, HV]
    read_index,  # [N]
    write_index,  # [N]
    num_tokens,  # [N]
    has_initial_state,  # [N]
    draft_half,  # [N]
    accepted,  # [S]
    scale,
    T,
    D,
    slots,
    pool_slot,  # strides in elements
    pool_head,
    pool_k,
    pool_v,
    draft_k_slot,
    draft_v_slot,
    draft_g_slot,
    draft_beta_slot,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    RAGGED: tl.constexpr,
    FRESH: tl.constexpr,
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
    group = head // (HV // H)
    k_at = tl.arange(0, BK)  # [BK]
    v_at = block * BV + tl.arange(0, BV)  # [BV]
    k_in = k_at < K
    v_in = v_at < V
    inner = v_in[:, None] & k_in[None, :]  # [BV, BK]

    read_slot = tl.load(read_index + row).to(tl.int64)
    write_slot = tl.load(write_index + row).to(tl.int64)
    half = tl.load(draft_half + row).to(tl.int64)
    live = (read_slot >= 0) & (read_slot < slots)
    kept = live & (write_slot >= 0) & (write_slot < slots)
    replays = kept & (half >= 0) & (half < 2)
    count = tl.load(accepted + write_slot, mask=replays, other=0).to(tl.int64)
    count = tl.minimum(tl.maximum(count, 0), D)
    other = tl.where(replays, 1 - half, 0)
    steps = tl.zeros([], tl.int64) + T
    if RAGGED:
        steps = tl.minimum(tl.maximum(tl.load(num_tokens + row).to(tl.int64), 0), steps)
    steps = tl.where(live, steps, 0)

    used = live
    if FRESH:
        used = used & (tl.load(has_initial_state + row).to(tl.int32) != 0)
    inside = head * pool_head + v_at[:, None] * pool_v + k_at[None, :] * pool_k
    state = tl.load(pool + read_slot * pool_slot + inside, mask=inner & used, other=0.0).to(tl.float32)  # [BV, BK]

    # the bias is not: held through the loops it costs spills
    b_A_log, _ = gate_at(A_log, dt_bias, head, k_at, K, GATE, RATE, False, PER_CHANNEL)
    for t in range(count):
        token = half * D + t
        b_k = tl.load(draft_k + write_slot * draft_k_slot + (token * H + group) * K + k_at, mask=k_in, other=0.0)
        b_v = tl.load(draft_v + write_slot * draft_v_slot + (token * HV + head) * V + v_at, mask=v_in, other=0.0)
        if PER_CHANNEL:
            gate = draft_g + write_slot * draft_g_slot + (token * HV + head) * K + k_at
            b_g = tl.load(gate, mask=k_in, other=0.0).to(tl.float32)  # [BK]
        else:
            b_g = tl.load(draft_g + write_slot * draft_g_slot + token * HV + head).to(tl.float32)
        b_beta = tl.load(draft_beta + write_slot * draft_beta_slot + token * HV + head).to(tl.float32)
        b_k = b_k.to(tl.float32)
        if NORMALIZE:
            b_k = normalized(b_k)
        _, b_bias = gate_at(A_log, dt_bias, head, k_at, K, GATE, RATE, DT_BIAS, PER_CHANNEL)
        b_g = gated(b_g, b_A_log, b_bias, GATE, RATE, LOWER)
        b_v = b_v.to(tl.float32)
        state = advanced(state, b_k, b_v, b_g, strengthened(b_beta, BETA_SIGMOID, NEG_EIGVAL), PER_CHANNEL)
    tl.store(pool + write_slot * pool_slot + inside, stored(state, pool.dtype.element_ty), mask=inner & kept)

    # what several programs have at hand is stored by the first of them
    first = kept & (block == 0)
    leads = first & (head % (HV // H) == 0)
    for t in range(steps):
        token = row * T + t
        x_k = tl.load(k + (token * H + group) * K + k_at, mask=k_in, other=0.0)  # [BK]
        x_v = tl.load(v + (token * HV + head) * V + v_at, mask=v_in, other=0.0)  # [BV]
        if PER_CHANNEL:
            x_g = tl.load(g + (token * HV + head) * K + k_at, mask=k_in, other=0.0)  # [BK]
        else:
            x_g = tl.load(g + token * HV + head)
        x_beta = tl.load(beta + token * HV + head)
        b_q = tl.load(q + (token * H + group) * K + k_at, mask=k_in, other=0.0).to(tl.float32)  # [BK]
        b_k = x_k.to(tl.float32)
        if NORMALIZE:
            b_q = normalized(b_q)
            b_k = normalized(b_k)
        _, b_bias = gate_at(A_log, dt_bias, head, k_at, K, GATE, RATE, DT_BIAS, PER_CHANNEL)
        b_g = gated(x_g.to(tl.float32), b_A_log, b_bias, GATE, RATE, LOWER)
        b_beta = strengthened(x_beta.to(tl.float32), BETA_SIGMOID, NEG_EIGVAL)
        state = advanced(state, b_k, x_v.to(tl.float32), b_g, b_beta, PER_CHANNEL)
        b_o = tl.sum(state * b_q[None, :], 1) * scale  # [BV]
        tl.store(o + (token * HV + head) * V + v_at, stored(b_o, o.dtype.element_ty), mask=v_in)
        draft = other * D + t
        tl.store(draft_k + write_slot * draft_k_slot + (draft * H + group) * K + k_at, x_k, mask=k_in & leads)
        tl.store(draft_v + write_slot * draft_v_slot + (draft * HV + head) * V + v_at, x_v, mask=v_in & kept)
        if PER_CHANNEL:
            tl.store(draft_g + write_slot * draft_g_slot + (draft * HV + head) * K + k_at, x_g, mask=k_in & first)
        else:
            tl.store(draft_g + write_slot * draft_g_slot + draft * HV + head, x_g, mask=first)
        tl.store(draft_beta + write_slot * draft_beta_slot + draft * HV + head, x_beta, mask=first)
    for t in range(steps, T):
        skipped = ((row * T + t) * HV + head) * V + v_at
        tl.store(o + skipped, tl.zeros([BV], tl.float32).to(o.dtype.element_ty), mask=v_in)
