"""The part of a chunked delta rule that walks the chunks of a sequence, forwards and backwards.

A program carries BV value columns of one head's state, [BK, BV] in fp32, from chunk to chunk. With a gate a head keys
and queries come as they are, and ``G`` is the cumulative log gate inside a chunk. With a gate a channel they come
decayed already, a value head each (so H = HV), and ``G`` is how much of the state a chunk leaves. Shape legend: C chunk
size, H query/key heads, HV value heads, K, V head sizes, S slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import dot, stored
from deltaproof.ops.common.triton_places import sequence_place


@triton.jit(do_not_specialize=["T", "slots", "M"])
def states_kernel(
    k,  # [B, T, H, K]; a gate a channel: exp(G_end - G) k
    w,  # [B, T, HV, K]
    u,  # [B, T, HV, V]
    G,  # [B, T, HV]; a gate a channel: exp(G_end) [chunks, HV, K]
    strength,  # [B, T, HV]
    errors,  # [B, T, HV, V] out: what the state answers wrongly, v - S'^T k; may be u itself
    states,  # [chunks, HV, K, V] out: the state before each chunk
    source,
    sink,
    checkpoint_index,  # [N, M]
    read_index,
    write_index,
    has_initial_state,
    cu_seqlens,
    chunk_offsets,
    T,
    slots,
    M,
    source_slot,
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
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    POOL: tl.constexpr,
    FRESH: tl.constexpr,
    READ: tl.constexpr,
    WRITE: tl.constexpr,
    EVERY: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    n = program // (BLOCKS * HV)
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    k_at = tl.arange(0, BK)
    v_at = block * BV + tl.arange(0, BV)
    k_in = k_at < K
    v_in = v_at < V
    inner = k_in[:, None] & v_in[None, :]
    low = k.dtype.element_ty
    first, length, chunk_0 = sequence_place(n, T, cu_seqlens, chunk_offsets, C, VARLEN)
    live = n >= 0
    read_slot = n
    write_slot = n
    if POOL:
        read_slot = tl.load(read_index + n).to(tl.int64)
        write_slot = tl.load(write_index + n).to(tl.int64)
        live = (read_slot >= 0) & (read_slot < slots)
    S = tl.zeros([BK, BV], tl.float32)  # [BK, BV]
    if READ:
        used = live
        if FRESH:
            used = used & (tl.load(has_initial_state + n).to(tl.int32) != 0)
        at = read_slot * source_slot + head * source_head + k_at[:, None] * source_k + v_at[None, :] * source_v
        S = tl.load(source + at, mask=inner & used, other=0.0).to(tl.float32)
    for c in range(0, tl.cdiv(length, C)):
        start = c * C
        inside = start + c_at < length
        token = first + start + c_at  # [C]
        k_mask = inside[:, None] & k_in[None, :]
        v_mask = inside[:, None] & v_in[None, :]
        row = (chunk_0 + c) * HV + head
        value = (token * HV + head)[:, None] * V + v_at[None, :]
        b_w = tl.load(w + (token * HV + head)[:, None] * K + k_at[None, :], mask=k_mask, other=0.0)  # [C, BK]
        b_k = tl.load(k + (token * H + group)[:, None] * K + k_at[None, :], mask=k_mask, other=0.0)  # [C, BK]
        b_u = tl.load(u + value, mask=v_mask, other=0.0)  # [C, BV]
        if PER_CHANNEL:
            left = tl.load(G + row * K + k_at, mask=k_in, other=0.0)[:, None]  # [BK, 1]
        else:
            end = tl.load(G + (first + tl.minimum(start + C, length) - 1) * HV + head)
            b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
        b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
        S_low = stored(S, low)
        tile = (row * K + k_at[:, None]) * V + v_at[None, :]
        if states.dtype.element_ty == low:
            tl.store(states + tile, S_low, mask=inner)
        else:
            tl.store(states + tile, stored(S, states.dtype.element_ty), mask=inner)
        b_e = b_u.to(tl.float32) - dot(b_w, S_low)  # [C, BV]
        tl.store(errors + value, stored(b_e, low), mask=v_mask)
        if PER_CHANNEL:
            kept = b_b[:, None]
        else:
            kept = tl.where(inside, b_b * tl.exp(end - b_G), 0.0)[:, None]
            left = tl.exp(end)
        S = S * left + dot(tl.trans(b_k), stored(b_e * kept, low))
        if EVERY > 0:
            done = start + C
            if (done % EVERY == 0) & (done <= length) & (done // EVERY <= M):
                slot = tl.load(checkpoint_index + n * M + done // EVERY - 1).to(tl.int64)
                keep = live & (slot >= 0) & (slot < slots)
                spot = slot * sink_slot + head * sink_head + k_at[:, None] * sink_k + v_at[None, :] * sink_v
                tl.store(sink + spot, stored(S, sink.dtype.element_ty), mask=inner & keep)
    if WRITE:
        kept_slot = live
        if POOL:
            kept_slot = kept_slot & (write_slot >= 0) & (write_slot < slots)
        at = write_slot * sink_slot + head * sink_head + k_at[:, None] * sink_k + v_at[None, :] * sink_v
        tl.store(sink + at, stored(S, sink.dtype.element_ty), mask=inner & kept_slot)


@triton.jit(do_not_specialize=["T"])
def reverse_states_kernel(
    q,  # [B, T, H, K]; a gate a channel: exp(G) q
    k,  # [B, T, H, K]; a gate a channel: exp(G_end - G) k
    w,  # [B, T, HV, K]
    G,  # [B, T, HV]; a gate a channel: exp(G_end) [chunks, HV, K]
    strength,  # [B, T, HV]
    do,  # [B, T, HV, V]
    d_errors,  # [B, T, HV, V] the part from inside the chunk; out: the whole gradient
    states,  # [chunks, HV, K, V] before each chunk
    d_states,  # [chunks, HV, K, V] out: the gradient of the state after each chunk
    fade,  # [N, HV, cdiv(V, BV)] or [..., K] out, fp32: the gradient of the last chunk's whole gate by the fading state
    source,  # initial state
    d_final,  # gradient of the final state
    d_initial,  # out: gradient of the initial state
    cu_seqlens,
    chunk_offsets,
    scale,
    T,
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
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    READ: tl.constexpr,
    FINAL: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    n = program // (BLOCKS * HV)
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    k_at = tl.arange(0, BK)
    v_at = block * BV + tl.arange(0, BV)
    k_in = k_at < K
    v_in = v_at < V
    inner = k_in[:, None] & v_in[None, :]
    low = k.dtype.element_ty
    first, length, chunk_0 = sequence_place(n, T, cu_seqlens, chunk_offsets, C, VARLEN)
    dS = tl.zeros([BK, BV], tl.float32)  # [BK, BV]
    if FINAL:
        at = n * final_slot + head * final_head + k_at[:, None] * final_k + v_at[None, :] * final_v
        dS = tl.load(d_final + at, mask=inner, other=0.0).to(tl.float32)
    chunks = tl.cdiv(length, C)
    # the final state's gradient is known unrounded, and so is the state before a single chunk
    row = (chunk_0 + chunks - 1) * HV + head
    tile = (row * K + k_at[:, None]) * V + v_at[None, :]
    S = tl.load(states + tile, mask=inner & (chunks > 1), other=0.0).to(tl.float32)  # [BK, BV]
    if READ:
        at = n * source_slot + head * source_head + k_at[:, None] * source_k + v_at[None, :] * source_v
        S += tl.load(source + at, mask=inner & (chunks == 1), other=0.0).to(tl.float32)
    if PER_CHANNEL:
        rest = tl.load(G + row * K + k_at, mask=k_in & (chunks > 0), other=0.0)  # [BK]
        tl.store(fade + program * K + k_at, rest * tl.sum(S * dS, 1), mask=k_in)
    else:
        end = tl.load(G + (first + length - 1) * HV + head, mask=chunks > 0, other=0.0)
        tl.store(fade + program, tl.exp(end) * tl.sum(S * dS))
    for i in range(0, chunks):
        start = (chunks - 1 - i) * C
        inside = start + c_at < length
        token = first + start + c_at  # [C]
        k_mask = inside[:, None] & k_in[None, :]
        v_mask = inside[:, None] & v_in[None, :]
        row = (chunk_0 + chunks - 1 - i) * HV + head
        value = (token * HV + head)[:, None] * V + v_at[None, :]
        key = (token * H + group)[:, None] * K + k_at[None, :]
        b_k = tl.load(k + key, mask=k_mask, other=0.0)  # [C, BK]
        b_q = tl.load(q + key, mask=k_mask, other=0.0)  # [C, BK]
        b_w = tl.load(w + (token * HV + head)[:, None] * K + k_at[None, :], mask=k_mask, other=0.0)  # [C, BK]
        b_do = tl.load(do + value, mask=v_mask, other=0.0)  # [C, BV]
        b_de = tl.load(d_errors + value, mask=v_mask, other=0.0)  # [C, BV]
        if PER_CHANNEL:
            left = tl.load(G + row * K + k_at, mask=k_in, other=0.0)[:, None]  # [BK, 1]
        else:
            end = tl.load(G + (first + tl.minimum(start + C, length) - 1) * HV + head)
            b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
        b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
        dS_low = stored(dS, low)
        tl.store(d_states + (row * K + k_at[:, None]) * V + v_at[None, :], dS_low, mask=inner)
        if PER_CHANNEL:
            kept = b_b[:, None]
        else:
            kept = tl.where(inside, b_b * tl.exp(end - b_G), 0.0)[:, None]
        b_de = stored(b_de.to(tl.float32) + kept * dot(b_k, dS_low), low)
        tl.store(d_errors + value, b_de, mask=v_mask)
        if PER_CHANNEL:
            b_do = stored(b_do.to(tl.float32) * scale, low)
        else:
            b_do = stored(b_do.to(tl.float32) * (scale * tl.exp(b_G))[:, None], low)
            left = tl.exp(end)
        dS = dS * left + dot(tl.trans(b_q), b_do) - dot(tl.trans(b_w), b_de)
    if READ:
        at = n * initial_slot + head * initial_head + k_at[:, None] * initial_k + v_at[None, :] * initial_v
        tl.store(d_initial + at, stored(dS, d_initial.dtype.element_ty), mask=inner)
