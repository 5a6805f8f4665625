"""Gradients of the chunked gated delta rule inside a chunk: a program a chunk and value head.

The derivation stands in this folder's README. Shape legend: C chunk size, H query/key heads, HV value heads, K, V head
sizes, cut into blocks of BK, BV; P = 1 + cdiv(K, BK) parts of the gate's gradients. ``G`` is the cumulative log gate
inside a chunk; ``errors`` are v - S'^T k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place
from deltaproof.ops.gated_delta_rule.triton_outputs import chunk_decay


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
    UNROLL: tl.constexpr,
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
    for start in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_q = tl.load(q + key, mask=mask, other=0.0)  # [C, BK]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        attention += dot(b_q, tl.trans(b_k))
    b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
    b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
    attention = stored(attention * chunk_decay(b_G, inside, C) * (b_b * scale)[None, :], low)
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        v_at = start + tl.arange(0, BV)
        mask = inside[:, None] & (v_at < V)[None, :]
        at = (token * HV + head)[:, None] * V + v_at[None, :]
        b_do = tl.load(do + at, mask=mask, other=0.0).to(low)  # [C, BV]
        tl.store(d_errors + at, stored(dot(tl.trans(attention), b_do), low), mask=mask)


@triton.jit(do_not_specialize=["N", "T"])
def score_gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    do,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    inverse,  # [chunks, HV, C, C]
    errors,  # [B, T, HV, V]
    d_errors,  # [B, T, HV, V]
    dv,  # [B, T, HV, V] out
    d_attention,  # [chunks, HV, C, C] out: gradient of q k^T
    d_system,  # [chunks, HV, C, C] out: gradient of k k^T, both triangles
    d_gate,  # [P, B, T, HV] out, fp32: gradient of the log gate, part 0
    d_strength,  # [P, B, T, HV] out, fp32: gradient of the write strength, part 0
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
    UNROLL: tl.constexpr,
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
    tile = program * C * C + c_at[:, None] * C + c_at[None, :]
    b_G = tl.load(G + gate, mask=inside, other=0.0)
    b_b = tl.load(strength + gate, mask=inside, other=0.0)
    b_i = tl.trans(tl.load(inverse + tile))  # [C, C]
    b_da = tl.zeros([C, C], tl.float32)  # [C, C]
    b_ds = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        v_at = start + tl.arange(0, BV)
        mask = inside[:, None] & (v_at < V)[None, :]
        at = gate[:, None] * V + v_at[None, :]
        b_e = tl.load(errors + at, mask=mask, other=0.0)  # [C, BV]
        b_do = tl.load(do + at, mask=mask, other=0.0).to(low)  # [C, BV]
        b_dv = stored(dot(b_i, tl.load(d_errors + at, mask=mask, other=0.0).to(b_i.dtype)), low)  # [C, BV]
        tl.store(dv + at, b_dv, mask=mask)
        b_da += dot(b_do, tl.trans(b_e))
        b_ds -= dot(b_dv, tl.trans(b_e))
    attention = tl.zeros([C, C], tl.float32)  # [C, C]
    system = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        k_at = start + tl.arange(0, BK)
        mask = inside[:, None] & (k_at < K)[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
        attention += dot(tl.load(q + key, mask=mask, other=0.0), tl.trans(b_k))
        system += dot(b_k, tl.trans(b_k))
    decay = chunk_decay(b_G, inside, C)
    b_da = b_da * decay * scale
    b_ds = tl.where(c_at[:, None] > c_at[None, :], b_ds * decay, 0.0)
    both = b_da * attention + b_ds * system
    tl.store(d_strength + gate, tl.sum(both, 0), mask=inside)
    both = both * b_b[None, :]
    dG = tl.where(inside, tl.sum(both, 1) - tl.sum(both, 0), 0.0)  # [C]
    tl.store(d_gate + gate, tl.cumsum(dG, 0, reverse=True), mask=inside)
    tl.store(d_attention + tile, stored(b_da * b_b[None, :], low))
    b_ds = b_ds * b_b[None, :]
    tl.store(d_system + tile, stored(b_ds + tl.trans(b_ds), low))


@triton.jit(do_not_specialize=["N", "T", "rows"])
def key_gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    do,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    states,  # [chunks, HV, K, V] before each chunk
    d_states,  # [chunks, HV, K, V] gradient of the state after each chunk
    errors,  # [B, T, HV, V]
    dv,  # [B, T, HV, V]
    d_attention,  # [chunks, HV, C, C]
    d_system,  # [chunks, HV, C, C]
    fade,  # [N, HV, PARTS] fp32: the gradient of a last chunk's whole gate by the fading state
    dq,  # [B, T, HV, K] out, a value head each
    dk,  # [B, T, HV, K] out, a value head each
    d_gate,  # [P, B, T, HV] out, fp32: parts from 1 on
    d_strength,  # [P, B, T, HV] out, fp32
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    rows,  # B * T
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    UNROLL: tl.constexpr,
    PARTS: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = program % BLOCKS
    place = program // BLOCKS  # the chunk's and head's
    head = place % HV
    chunk = place // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    gate = token * HV + head
    k_at = block * BK + tl.arange(0, BK)
    k_in = k_at < K
    mask = inside[:, None] & k_in[None, :]
    low = k.dtype.element_ty
    q_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
    k_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
    k_after = tl.zeros([C, BK], tl.float32)  # [C, BK]
    faded = tl.zeros([], tl.float32)
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        v_at = start + tl.arange(0, BV)
        v_mask = inside[:, None] & (v_at < V)[None, :]
        at = gate[:, None] * V + v_at[None, :]
        s_at = (place * K + k_at[:, None]) * V + v_at[None, :]
        s_mask = k_in[:, None] & (v_at < V)[None, :]
        S = tl.load(states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
        dS = tl.load(d_states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
        faded += tl.sum(S.to(tl.float32) * dS.to(tl.float32))
        q_state += dot(tl.load(do + at, mask=v_mask, other=0.0).to(low), tl.trans(S))
        k_state += dot(tl.load(dv + at, mask=v_mask, other=0.0), tl.trans(S))
        k_after += dot(tl.load(errors + at, mask=v_mask, other=0.0), tl.trans(dS))
    b_G = tl.load(G + gate, mask=inside, other=0.0)
    b_b = tl.load(strength + gate, mask=inside, other=0.0)
    end = tl.load(G + (first + count - 1) * HV + head)
    grown = tl.exp(b_G)
    key = (token * H + group)[:, None] * K + k_at[None, :]
    b_q = tl.load(q + key, mask=mask, other=0.0)  # [C, BK]
    b_k = tl.load(k + key, mask=mask, other=0.0)  # [C, BK]
    q_state = q_state * (scale * grown)[:, None]
    k_state = k_state * grown[:, None]
    k_after = k_after * tl.where(inside, tl.exp(end - b_G), 0.0)[:, None]
    later = tl.sum(b_k.to(tl.float32) * k_after, 1)  # [C]
    dG = tl.sum(b_q.to(tl.float32) * q_state, 1) - tl.sum(b_k.to(tl.float32) * k_state, 1)
    # a key meets the chunk's end through the gates behind it alone
    to_end = later * b_b
    dG = tl.cumsum(tl.where(inside, dG, 0.0), 0, reverse=True) + tl.cumsum(to_end, 0) - to_end
    if VARLEN:
        last = chunk == tl.load(chunk_offsets + n + 1) - 1
    else:
        last = (chunk + 1) % ((T + C - 1) // C) == 0
    if last:
        faded = tl.zeros([], tl.float32)
        for i in range(PARTS):
            faded += tl.load(fade + (n * HV + head) * PARTS + i, mask=block == 0, other=0.0)
    else:
        faded = tl.exp(end) * faded
    dG += faded
    part = (block + 1) * rows * HV + gate
    tl.store(d_gate + part, dG, mask=inside)
    tl.store(d_strength + part, later, mask=inside)
    tile = place * C * C + c_at[:, None] * C + c_at[None, :]
    b_da = tl.load(d_attention + tile)  # [C, C]
    b_ds = tl.load(d_system + tile)  # [C, C]
    out = gate[:, None] * K + k_at[None, :]
    tl.store(dq + out, stored(q_state + dot(b_da, b_k), dq.dtype.element_ty), mask=mask)
    b_dk = k_after * b_b[:, None] - k_state + dot(tl.trans(b_da), b_q) + dot(b_ds, b_k)
    tl.store(dk + out, stored(b_dk, dk.dtype.element_ty), mask=mask)
