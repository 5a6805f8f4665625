"""The delta rule token by token, backwards.

The recurrence is not inverted (exp(g) underflows): a program walks its sequence forwards and keeps the state every
SEGMENT tokens, then, from the last segment to the first, forwards again from the kept state, noting the state before
every token, and backwards over these. One program carries BV value columns of one head's state. Shape legend: N
sequences, T tokens, H query/key heads, HV value heads, K, V head sizes rounded up to BK, BV; P = cdiv(V, BV).
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_language import normalized, stored
from deltaproof.ops.common.triton_places import sequence_bounds
from deltaproof.ops.common.triton_token import gate_at, gated, strengthened


@triton.jit
def _gates(
    g, beta, A_log, dt_bias, token, head, K: tl.constexpr, BK: tl.constexpr, HV: tl.constexpr, GATE: tl.constexpr,
    RATE: tl.constexpr, DT_BIAS: tl.constexpr, LOWER: tl.constexpr, PER_CHANNEL: tl.constexpr,
    BETA_SIGMOID: tl.constexpr, NEG_EIGVAL: tl.constexpr,
):  # fmt: skip
    """Return exp(log gate), of a gate a channel [1, BK], and the write strength of one token."""
    k_at = tl.arange(0, BK)
    if PER_CHANNEL:
        b_g = tl.load(g + (token * HV + head) * K + k_at, mask=k_at < K, other=0.0).to(tl.float32)[None, :]
    else:
        b_g = tl.load(g + token * HV + head).to(tl.float32)
    b_A_log, b_bias = gate_at(A_log, dt_bias, head, k_at[None, :], K, GATE, RATE, DT_BIAS, PER_CHANNEL)
    b_g = gated(b_g, b_A_log, b_bias, GATE, RATE, LOWER)
    strength = strengthened(tl.load(beta + token * HV + head).to(tl.float32), BETA_SIGMOID, NEG_EIGVAL)
    return tl.exp(tl.maximum(b_g, MIN_LOG_GATE)), strength


@triton.jit
def _key(x, token, group, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, NORMALIZE: tl.constexpr):
    """Return q or k [BK] of one token."""
    at = tl.arange(0, BK)
    b_x = tl.load(x + (token * H + group) * K + at, mask=at < K, other=0.0).to(tl.float32)
    if NORMALIZE:
        b_x = normalized(b_x)
    return b_x


@triton.jit(do_not_specialize=["T", "rows"])
def recurrence_backward_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    v,  # [B, T, HV, V]
    g,  # [B, T, HV] or [B, T, HV, K]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV] or [HV, K]
    do,  # [B, T, HV, V]
    source,  # initial state [N, HV, ., .]
    d_final,  # [N, HV, ., .]
    d_initial,  # [N, HV, ., .] out
    dq,  # [P, B, T, HV, K] out, fp32
    dk,  # [P, B, T, HV, K] out, fp32
    dv,  # [B, T, HV, V] out
    d_gate,  # [P, B, T, HV] or [P, B, T, HV, K] out, fp32
    d_strength,  # [P, B, T, HV] out, fp32
    kept,  # [segments, HV, V, K] fp32: states every SEGMENT tokens
    before,  # [N, SEGMENT, HV, V, K] fp32: states before each token of a segment
    cu_seqlens,
    scale,
    T,
    rows,  # B * T
    source_slot,  # strides in elements
    source_head,
    source_k,
    source_v,
    final_slot,
    final_head,
    final_k,
    final_v,
    initial_slot,
    initial_head,
    initial_k,
    initial_v,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    SEGMENT: tl.constexpr,
    VARLEN: tl.constexpr,
    READ: tl.constexpr,
    FINAL: tl.constexpr,
    WRITE: tl.constexpr,
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
    n = program // (BLOCKS * HV)
    group = head // (HV // H)
    k_at = tl.arange(0, BK)  # [BK]
    v_at = block * BV + tl.arange(0, BV)  # [BV]
    k_in = k_at < K
    v_in = v_at < V
    inner = v_in[:, None] & k_in[None, :]  # [BV, BK]
    if VARLEN:
        first, count = sequence_bounds(cu_seqlens, n, T)
    else:
        first = n * T
        count = tl.zeros([], tl.int64) + T
    tile = (head * V + v_at[:, None]) * K + k_at[None, :]
    kept += (first // SEGMENT + n) * HV * V * K
    before += n * SEGMENT * HV * V * K

    state = tl.zeros([BV, BK], tl.float32)  # [BV, BK]
    if READ:
        at = n * source_slot + head * source_head + v_at[:, None] * source_v + k_at[None, :] * source_k
        state = tl.load(source + at, mask=inner, other=0.0).to(tl.float32)
    for t in range(count):
        if t % SEGMENT == 0:
            tl.store(kept + (t // SEGMENT) * HV * V * K + tile, state, mask=inner)
        token = first + t
        fade, strength = _gates(
            g, beta, A_log, dt_bias, token, head, K, BK, HV, GATE, RATE, DT_BIAS, LOWER, PER_CHANNEL, BETA_SIGMOID,
            NEG_EIGVAL,
        )  # fmt: skip
        b_k = _key(k, token, group, H, K, BK, NORMALIZE)
        b_v = tl.load(v + (token * HV + head) * V + v_at, mask=v_in, other=0.0).to(tl.float32)  # [BV]
        state = state * fade
        state += ((b_v - tl.sum(state * b_k[None, :], 1)) * strength)[:, None] * b_k[None, :]

    d_state = tl.zeros([BV, BK], tl.float32)  # [BV, BK]
    if FINAL:
        at = n * final_slot + head * final_head + v_at[:, None] * final_v + k_at[None, :] * final_k
        d_state = tl.load(d_final + at, mask=inner, other=0.0).to(tl.float32)
    segments = (count + SEGMENT - 1) // SEGMENT
    for i in range(segments):
        start = (segments - 1 - i) * SEGMENT
        steps = tl.minimum(count - start, SEGMENT)
        # what other threads of the program have stored is read here and below
        tl.debug_barrier()
        state = tl.load(kept + (segments - 1 - i) * HV * V * K + tile, mask=inner, other=0.0)
        for t in range(steps):
            tl.store(before + t * HV * V * K + tile, state, mask=inner)
            token = first + start + t
            fade, strength = _gates(
                g, beta, A_log, dt_bias, token, head, K, BK, HV, GATE, RATE, DT_BIAS, LOWER, PER_CHANNEL, BETA_SIGMOID,
                NEG_EIGVAL,
            )  # fmt: skip
            b_k = _key(k, token, group, H, K, BK, NORMALIZE)
            b_v = tl.load(v + (token * HV + head) * V + v_at, mask=v_in, other=0.0).to(tl.float32)  # [BV]
            state = state * fade
            state += ((b_v - tl.sum(state * b_k[None, :], 1)) * strength)[:, None] * b_k[None, :]
        tl.debug_barrier()
        for j in range(steps):
            t = steps - 1 - j
            token = first + start + t
            fade, strength = _gates(
                g, beta, A_log, dt_bias, token, head, K, BK, HV, GATE, RATE, DT_BIAS, LOWER, PER_CHANNEL, BETA_SIGMOID,
                NEG_EIGVAL,
            )  # fmt: skip
            b_q = _key(q, token, group, H, K, BK, NORMALIZE)
            b_k = _key(k, token, group, H, K, BK, NORMALIZE)
            value = (token * HV + head) * V + v_at
            b_v = tl.load(v + value, mask=v_in, other=0.0).to(tl.float32)  # [BV]
            b_do = tl.load(do + value, mask=v_in, other=0.0).to(tl.float32) * scale  # [BV]
            state = tl.load(before + t * HV * V * K + tile, mask=inner, other=0.0) * fade
            error = b_v - tl.sum(state * b_k[None, :], 1)  # [BV]
            d_state += b_do[:, None] * b_q[None, :]
            b_dq = tl.sum((state + (strength * error)[:, None] * b_k[None, :]) * b_do[:, None], 0)  # [BK]
            d_error = tl.sum(d_state * b_k[None, :], 1)  # [BV]
            b_dk = tl.sum(d_state * (strength * error)[:, None], 0)  # [BK]
            b_dk -= tl.sum(state * (strength * d_error)[:, None], 0)
            d_state -= (strength * d_error)[:, None] * b_k[None, :]
            part = block * rows + token
            key = (part * HV + head) * K + k_at
            tl.store(dq + key, b_dq, mask=k_in)
            tl.store(dk + key, b_dk, mask=k_in)
            tl.store(dv + value, stored(strength * d_error, dv.dtype.element_ty), mask=v_in)
            tl.store(d_strength + part * HV + head, tl.sum(d_error * error))
            if PER_CHANNEL:
                tl.store(d_gate + key, tl.sum(state * d_state, 0), mask=k_in)
            else:
                tl.store(d_gate + part * HV + head, tl.sum(state * d_state))
            d_state = d_state * fade
    if WRITE:
        at = n * initial_slot + head * initial_head + v_at[:, None] * initial_v + k_at[None, :] * initial_k
        tl.store(d_initial + at, stored(d_state, d_initial.dtype.element_ty), mask=inner)
