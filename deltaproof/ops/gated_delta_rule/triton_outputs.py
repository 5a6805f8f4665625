"""The part of the chunked gated delta rule that needs finished states, and its gradients: a program a chunk and head.

Shape legend: C chunk size, H query/key heads, HV value heads, K, V head sizes, cut into blocks of BK, BV; S slots. ``G``
is the cumulative log gate inside a chunk; ``errors`` are v - S'^T k, so that a token writes beta * errors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit
def _decay(b_G, inside, C: tl.constexpr):
    """Return exp(G_i - G_j) [C, C] for j <= i, 0 elsewhere; masked before the exponential, which may overflow."""
    at = tl.arange(0, C)
    lower = (at[:, None] >= at[None, :]) & inside[:, None]
    return tl.where(lower, tl.exp(tl.where(lower, b_G[:, None] - b_G[None, :], 0.0)), 0.0)


@triton.jit(do_not_specialize=["N", "T", "slots"])
def outputs_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    errors,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    states,  # [chunks, HV, K, V]
    o,  # [B, T, HV, V] out
    read_index,
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    slots,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    POOL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    chunk = program // (BLOCKS * HV)
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    live = n >= 0
    if POOL:
        slot = tl.load(read_index + n).to(tl.int64)
        live = (slot >= 0) & (slot < slots)
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    v_at = block * BV + tl.arange(0, BV)
    inside = c_at < count
    v_in = v_at < V
    token = first + c_at
    row = chunk * HV + head
    b_o = tl.zeros([C, BV], tl.float32)  # [C, BV]
    attention = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.static_range(0, K, BK):
        k_at = start + tl.arange(0, BK)
        k_in = k_at < K
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
        at = (row * K + k_at[:, None]) * V + v_at[None, :]
        b_o += dot(b_q, tl.load(states + at, mask=k_in[:, None] & v_in[None, :], other=0.0))
        attention += dot(b_q, tl.trans(b_k))
    at = (token * HV + head)[:, None] * V + v_at[None, :]
    b_e = tl.load(errors + at, mask=inside[:, None] & v_in[None, :], other=0.0)  # [C, BV]
    b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
    b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
    attention = attention * _decay(b_G, inside, C) * b_b[None, :]
    b_o = b_o * tl.exp(b_G)[:, None] + dot(stored(attention, b_e.dtype), b_e)
    b_o = tl.where(live, b_o * scale, 0.0)
    tl.store(o + at, stored(b_o, o.dtype.element_ty), mask=inside[:, None] & v_in[None, :])


@triton.jit(do_not_specialize=["N", "T"])
def local_gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    do,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    d_errors,  # [B, T, HV, V] out: the gradient of errors by the outputs of their own chunk
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    low = k.dtype.element_ty
    attention = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.static_range(0, K, BK):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=mask, other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        attention += dot(b_q, tl.trans(b_k))
    b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
    b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
    attention = stored(attention * _decay(b_G, inside, C) * (b_b * scale)[None, :], low)
    for start in tl.static_range(0, V, BV):
        v_at = start + tl.arange(0, BV)
        mask = inside[:, None] & (v_at < V)[None, :]
        at = (token * HV + head)[:, None] * V + v_at[None, :]
        b_do = tl.load(do + at, mask=mask, other=0.0).to(low)  # [C, BV]
        tl.store(d_errors + at, stored(dot(tl.trans(attention), b_do), low), mask=mask)


@triton.jit(do_not_specialize=["N", "T"])
def gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    do,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    inverse,  # [chunks, HV, C, C]
    states,  # [chunks, HV, K, V] before each chunk
    d_states,  # [chunks, HV, K, V] gradient of the state after each chunk
    errors,  # [B, T, HV, V]
    d_errors,  # [B, T, HV, V]
    dq,  # [B, T, HV, K] out, a value head each
    dk,  # [B, T, HV, K] out, a value head each
    dv,  # [B, T, HV, V] out
    d_gate,  # [B, T, HV] out, fp32: gradient of the log gate
    d_strength,  # [B, T, HV] out, fp32: gradient of the write strength
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    low = k.dtype.element_ty
    gate = token * HV + head
    b_G = tl.load(G + gate, mask=inside, other=0.0)
    b_b = tl.load(strength + gate, mask=inside, other=0.0)
    end = tl.load(G + (first + count - 1) * HV + head)
    b_i = tl.load(inverse + program * C * C + c_at[:, None] * C + c_at[None, :])  # [C, C]
    b_i = tl.trans(b_i)

    d_attention = tl.zeros([C, C], tl.float32)  # [C, C]
    d_system = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.static_range(0, V, BV):
        v_at = start + tl.arange(0, BV)
        mask = inside[:, None] & (v_at < V)[None, :]
        at = gate[:, None] * V + v_at[None, :]
        b_e = tl.load(errors + at, mask=mask, other=0.0)  # [C, BV]
        b_do = tl.load(do + at, mask=mask, other=0.0).to(low)  # [C, BV]
        b_dx = dot(b_i, tl.load(d_errors + at, mask=mask, other=0.0))  # [C, BV]
        tl.store(dv + at, stored(b_dx, dv.dtype.element_ty), mask=mask)
        d_attention += dot(b_do, tl.trans(b_e))
        d_system -= dot(stored(b_dx, low), tl.trans(b_e))
    attention = tl.zeros([C, C], tl.float32)  # [C, C]
    system = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.static_range(0, K, BK):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        attention += dot(tl.load(q + key, mask=mask, other=0.0), tl.trans(b_k))
        system += dot(b_k, tl.trans(b_k))
    decay = _decay(b_G, inside, C)
    d_attention = d_attention * decay * scale
    d_system = tl.where(c_at[:, None] > c_at[None, :], d_system * decay, 0.0)
    both = d_attention * attention + d_system * system
    ds = tl.sum(both, 0)  # [C]
    both = both * b_b[None, :]
    dG = tl.sum(both, 1) - tl.sum(both, 0)  # [C]
    d_attention = stored(d_attention * b_b[None, :], low)
    d_system = d_system * b_b[None, :]
    d_system = stored(d_system + tl.trans(d_system), low)

    grown = tl.exp(b_G)
    kept = tl.where(inside, tl.exp(end - b_G), 0.0)
    d_end = tl.zeros([C], tl.float32)
    fade = tl.zeros([], tl.float32)
    for k_start in tl.static_range(0, K, BK):
        k_at = k_start + tl.arange(0, BK)
        k_in = k_at < K
        mask = inside[:, None] & k_in[None, :]
        q_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
        k_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
        k_after = tl.zeros([C, BK], tl.float32)  # [C, BK]
        for start in tl.static_range(0, V, BV):
            v_at = start + tl.arange(0, BV)
            v_mask = inside[:, None] & (v_at < V)[None, :]
            at = gate[:, None] * V + v_at[None, :]
            b_e = tl.load(errors + at, mask=v_mask, other=0.0)  # [C, BV]
            b_do = tl.load(do + at, mask=v_mask, other=0.0).to(low)  # [C, BV]
            b_dx = stored(dot(b_i, tl.load(d_errors + at, mask=v_mask, other=0.0)), low)  # [C, BV]
            s_at = (program * K + k_at[:, None]) * V + v_at[None, :]
            s_mask = k_in[:, None] & (v_at < V)[None, :]
            S = tl.load(states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
            dS = tl.load(d_states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
            q_state += dot(b_do, tl.trans(S))
            k_state += dot(b_dx, tl.trans(S))
            k_after += dot(b_e, tl.trans(dS))
            fade += tl.sum(S.to(tl.float32) * dS.to(tl.float32))
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=mask, other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        q_state *= (scale * grown)[:, None]
        k_state *= grown[:, None]
        k_after *= kept[:, None]
        r = tl.sum(b_k.to(tl.float32) * k_after, 1)  # [C]
        ds += r
        d_end += r * b_b
        dG += tl.sum(b_q.to(tl.float32) * q_state, 1) - tl.sum(b_k.to(tl.float32) * k_state, 1) - r * b_b
        out = gate[:, None] * K + k_at[None, :]
        tl.store(dq + out, stored(q_state + dot(d_attention, b_k), dq.dtype.element_ty), mask=mask)
        b_dk = k_after * b_b[:, None] - k_state + dot(tl.trans(d_attention), b_q) + dot(d_system, b_k)
        tl.store(dk + out, stored(b_dk, dk.dtype.element_ty), mask=mask)
    dG = tl.cumsum(tl.where(inside, dG, 0.0), 0, reverse=True) + tl.sum(d_end) + tl.exp(end) * fade
    tl.store(d_gate + gate, dG, mask=inside)
    tl.store(d_strength + gate, ds, mask=inside)
