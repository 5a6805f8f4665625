"""Gradients of chunked Kimi delta attention inside a chunk, but for those through scores.

A program has a chunk and value head, and in two of the three kernels a block of V or of K.

The derivation stands in this folder's README. Shape legend: C chunk size, H query/key heads, HV value heads, K, V head
sizes, cut into blocks of BK, BV; P = 1 + cdiv(K, BK) parts of the strength's gradients. ``G`` is the cumulative log
gate inside a chunk; ``errors`` are v - S'^T k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import chunk_place


@triton.jit(do_not_specialize=["N", "T"])
def channel_local_gradients_kernel(
    attention,  # [chunks, HV, C, C]: scores of queries with keys
    do,  # [B, T, HV, V]
    strength,  # [B, T, HV]
    d_errors,  # [B, T, HV, V] out: the gradient of errors by the outputs of their own chunk
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    HV: tl.constexpr,
    V: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    row = program // BLOCKS  # the chunk's and head's
    n, first, count = chunk_place(row // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    c_at = tl.arange(0, C)
    v_at = program % BLOCKS * BV + tl.arange(0, BV)
    inside = c_at < count
    place = (first + c_at) * HV + row % HV
    mask = inside[:, None] & (v_at < V)[None, :]
    at = place[:, None] * V + v_at[None, :]
    b_a = tl.load(attention + row * C * C + c_at[:, None] * C + c_at[None, :])  # [C, C]
    b_b = tl.load(strength + place, mask=inside, other=0.0)
    b_do = tl.load(do + at, mask=mask, other=0.0).to(b_a.dtype)  # [C, BV]
    d = dot(tl.trans(b_a), b_do) * (b_b * scale)[:, None]
    tl.store(d_errors + at, stored(d, d_errors.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "T"])
def channel_system_gradients_kernel(
    do,  # [B, T, HV, V]
    strength,  # [B, T, HV]
    inverse,  # [chunks, HV, C, C]
    system,  # [chunks, HV, C, C]: scores of keys with keys
    attention,  # [chunks, HV, C, C]: scores of queries with keys
    errors,  # [B, T, HV, V]
    d_errors,  # [B, T, HV, V]
    dv,  # [B, T, HV, V] out
    d_system,  # [chunks, HV, C, C] out: gradient of the scores of keys with keys
    d_attention,  # [chunks, HV, C, C] out: gradient of the scores of queries with keys
    d_strength,  # [P, B, T, HV] out, fp32: gradient of the write strength, part 0
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    HV: tl.constexpr,
    V: tl.constexpr,
    BV: tl.constexpr,
    UNROLL: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    n, first, count = chunk_place(program // HV, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    c_at = tl.arange(0, C)
    inside = c_at < count
    place = (first + c_at) * HV + head
    low = errors.dtype.element_ty
    tile = program * C * C + c_at[:, None] * C + c_at[None, :]
    b_i = tl.trans(tl.load(inverse + tile))  # [C, C]
    b_da = tl.zeros([C, C], tl.float32)  # [C, C]
    b_ds = tl.zeros([C, C], tl.float32)  # [C, C]
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        v_at = start + tl.arange(0, BV)
        mask = inside[:, None] & (v_at < V)[None, :]
        at = place[:, None] * V + v_at[None, :]
        b_e = tl.load(errors + at, mask=mask, other=0.0)  # [C, BV]
        b_do = tl.load(do + at, mask=mask, other=0.0).to(low)  # [C, BV]
        b_dv = stored(dot(b_i, tl.load(d_errors + at, mask=mask, other=0.0).to(b_i.dtype)), low)  # [C, BV]
        tl.store(dv + at, b_dv, mask=mask)
        b_da += dot(b_do, tl.trans(b_e))
        b_ds -= dot(b_dv, tl.trans(b_e))
    b_da = tl.where(c_at[:, None] >= c_at[None, :], b_da * scale, 0.0)
    b_ds = tl.where(c_at[:, None] > c_at[None, :], b_ds, 0.0)
    b_b = tl.load(strength + place, mask=inside, other=0.0)
    both = b_da * tl.load(attention + tile).to(tl.float32) + b_ds * tl.load(system + tile).to(tl.float32)
    tl.store(d_strength + place, tl.sum(both, 0), mask=inside)
    tl.store(d_attention + tile, stored(b_da * b_b[None, :], low))
    tl.store(d_system + tile, stored(b_ds * b_b[None, :], low))


@triton.jit(do_not_specialize=["N", "T", "tokens"])
def channel_key_gradients_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    G,  # [B, T, HV, K]
    left,  # [chunks, HV, K]
    do,  # [B, T, HV, V]
    strength,  # [B, T, HV]
    lengths,  # [2, B, T, HV] of q and k where NORMALIZE
    states,  # [chunks, HV, K, V] before each chunk
    d_states,  # [chunks, HV, K, V] gradient of the state after each chunk
    errors,  # [B, T, HV, V]
    dv,  # [B, T, HV, V]
    fade,  # [N, HV, PARTS, K] fp32: the gradient of a last chunk's whole gate by the fading state
    dq_scores,  # [B, T, HV, K] fp32: what scores give the gradient of q
    dk_scores,  # [B, T, HV, K] fp32
    d_gate,  # [B, T, HV, K] fp32: what scores give the gradient of G; out: the gradient of the log gate
    dq,  # [B, T, HV, K] out, a value head each
    dk,  # [B, T, HV, K] out, a value head each
    d_strength,  # [P, B, T, HV] out, fp32: parts from 1 on
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    scale,
    T,
    N,
    tokens,  # B * T
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
    NORMALIZE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = program % BLOCKS
    row = program // BLOCKS  # the chunk's and head's
    head = row % HV
    chunk = row // HV
    n, first, count = chunk_place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    inside = c_at < count
    token = first + c_at
    place = token * HV + head
    k_at = block * BK + tl.arange(0, BK)
    k_in = k_at < K
    mask = inside[:, None] & k_in[None, :]
    low: tl.constexpr = k.dtype.element_ty
    q_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
    k_state = tl.zeros([C, BK], tl.float32)  # [C, BK]
    k_after = tl.zeros([C, BK], tl.float32)  # [C, BK]
    faded = tl.zeros([BK], tl.float32)  # [BK]
    for start in tl.range(0, V, BV, loop_unroll_factor=UNROLL):
        v_at = start + tl.arange(0, BV)
        v_mask = inside[:, None] & (v_at < V)[None, :]
        at = place[:, None] * V + v_at[None, :]
        s_at = (row * K + k_at[:, None]) * V + v_at[None, :]
        s_mask = k_in[:, None] & (v_at < V)[None, :]
        S = tl.load(states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
        dS = tl.load(d_states + s_at, mask=s_mask, other=0.0)  # [BK, BV]
        faded += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 1)
        q_state += dot(tl.load(do + at, mask=v_mask, other=0.0).to(low), tl.trans(S))
        k_state += dot(tl.load(dv + at, mask=v_mask, other=0.0), tl.trans(S))
        k_after += dot(tl.load(errors + at, mask=v_mask, other=0.0), tl.trans(dS))
    b_b = tl.load(strength + place, mask=inside, other=0.0)
    key = (token * H + group)[:, None] * K + k_at[None, :]
    b_q = tl.load(q + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
    b_k = tl.load(k + key, mask=mask, other=0.0).to(tl.float32)  # [C, BK]
    if NORMALIZE:
        q_length = tl.load(lengths + place, mask=inside, other=0.0)[:, None]
        k_length = tl.load(lengths + tokens * HV + place, mask=inside, other=0.0)[:, None]
        b_q = stored(b_q * q_length, low).to(tl.float32)
        b_k = stored(b_k * k_length, low).to(tl.float32)
    out = place[:, None] * K + k_at[None, :]
    b_G = tl.load(G + out, mask=mask, other=0.0)  # [C, BK]
    rest = tl.load(left + row * K + k_at, mask=k_in, other=0.0)  # [BK]
    end = tl.load(G + ((first + count - 1) * HV + head) * K + k_at, mask=k_in, other=0.0)  # [BK]
    grown = tl.exp(b_G)
    by_q = q_state * (scale * grown)
    by_k = -k_state * grown
    k_after = k_after * tl.where(mask, tl.exp(end[None, :] - b_G), 0.0)
    later = b_k * k_after
    tl.store(d_strength + (block + 1) * tokens * HV + place, tl.sum(later, 1), mask=inside)
    back = k_after * b_b[:, None]
    to_end = later * b_b[:, None]
    dG = b_q * by_q + b_k * by_k + tl.load(d_gate + out, mask=mask, other=0.0)
    if VARLEN:
        last = chunk == tl.load(chunk_offsets + n + 1) - 1
    else:
        last = (chunk + 1) % ((T + C - 1) // C) == 0
    if last:
        faded = tl.zeros([BK], tl.float32)
        for i in range(PARTS):
            faded += tl.load(fade + ((n * HV + head) * PARTS + i) * K + k_at, mask=k_in, other=0.0)
    else:
        faded = rest * faded
    # a key meets the chunk's end through the gates behind it alone
    dG = tl.cumsum(tl.where(mask, dG, 0.0), 0, reverse=True) + tl.cumsum(to_end, 0) - to_end + faded[None, :]
    tl.store(d_gate + out, dG, mask=mask)
    by_q += tl.load(dq_scores + out, mask=mask, other=0.0)
    by_k += back + tl.load(dk_scores + out, mask=mask, other=0.0)
    tl.store(dq + out, stored(by_q, dq.dtype.element_ty), mask=mask)
    tl.store(dk + out, stored(by_k, dk.dtype.element_ty), mask=mask)
