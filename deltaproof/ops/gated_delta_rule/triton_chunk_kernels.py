"""Kernels of the chunked gated delta rule: prepare (per chunk), states (per sequence), outputs (per chunk).

Shape legend: N sequences, C chunk size, H query/key heads, HV value heads, K, V head sizes rounded up to BK and cut
into blocks of BV. ``G`` is the cumulative log gate inside a chunk, T the inverse of the chunk's triangular matrix.
Chunks are numbered over all sequences: sequence n owns ``chunk_offsets[n]`` up to ``chunk_offsets[n + 1]``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_inverse import below, invert_16
from deltaproof.ops.common.triton_language import dot, softplus, stored

MIN_LOG_GATE = tl.constexpr(-64.0)


@triton.jit(do_not_specialize=["N"])
def chunk_table_kernel(cu_seqlens, chunk_offsets, chunk_sequence, N, C: tl.constexpr, BLOCK: tl.constexpr):
    """Write chunk_offsets [N + 1] and the sequence of every chunk [bound]; one program, sequences in order."""
    total = tl.zeros([], tl.int32)
    at = tl.arange(0, BLOCK)
    tl.store(chunk_offsets, total)
    for n in range(N):
        length = (tl.load(cu_seqlens + n + 1) - tl.load(cu_seqlens + n)).to(tl.int32)
        count = (length + C - 1) // C
        for start in range(0, count, BLOCK):
            tl.store(chunk_sequence + total + start + at, tl.zeros([BLOCK], tl.int32) + n, mask=start + at < count)
        total += count
        tl.store(chunk_offsets + n + 1, total)


@triton.jit
def _place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C: tl.constexpr, VARLEN: tl.constexpr):
    """Return a chunk's first token in [B * T], its number of tokens (0 where there is no such chunk)."""
    if VARLEN:
        used = chunk < tl.load(chunk_offsets + N)
        n = tl.load(chunk_sequence + chunk, mask=used, other=0)
        start = tl.load(cu_seqlens + n).to(tl.int64)
        end = tl.load(cu_seqlens + n + 1).to(tl.int64)
        first = start + (chunk - tl.load(chunk_offsets + n)).to(tl.int64) * C
        count = tl.where(used, tl.minimum(end - first, C), 0)
    else:
        chunks = (T + C - 1) // C
        inside = (chunk % chunks) * C
        first = (chunk // chunks) * T + inside
        count = tl.minimum(T - inside, C).to(tl.int64)
    return first, count


@triton.jit
def _log_gate(g, A_log, dt_bias, at, inside, head, GATE: tl.constexpr, DT_BIAS: tl.constexpr):
    """Return the clamped log gates of some tokens, 0 where there is no token."""
    x = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        if DT_BIAS:
            x += tl.load(dt_bias + head).to(tl.float32)
        x = -tl.exp(tl.load(A_log + head).to(tl.float32)) * softplus(x)
    return tl.where(inside, tl.maximum(x, MIN_LOG_GATE), 0.0)


@triton.jit
def _strength(beta, at, inside, BETA_SIGMOID: tl.constexpr, NEG_EIGVAL: tl.constexpr):
    """Return the write strengths of some tokens, 0 where there is no token."""
    x = tl.load(beta + at, mask=inside, other=0.0).to(tl.float32)
    if BETA_SIGMOID:
        x = 1.0 / (1.0 + tl.exp(-x))
        if NEG_EIGVAL:
            x = 2.0 * x
    return tl.where(inside, x, 0.0)


@triton.jit
def _lower(k_i, k_j, G_i, G_j, b_i, SAME: tl.constexpr):
    """Return beta_i (k_i . k_j) exp(G_i - G_j) for two blocks of 16 tokens, strictly lower on the diagonal."""
    a = dot(k_i, tl.trans(k_j)) * b_i[:, None]
    difference = G_i[:, None] - G_j[None, :]
    if SAME:
        at = tl.arange(0, 16)
        lower = at[:, None] > at[None, :]
        # masked before the exponential: above the diagonal the difference is positive and may overflow
        return tl.where(lower, a * tl.exp(tl.where(lower, difference, 0.0)), 0.0)
    return a * tl.exp(difference)


@triton.jit(do_not_specialize=["rows"])
def normalize_kernel(x, y, rows, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr):
    """y = x / sqrt(sum(x ** 2) + 1e-6) over rows [rows, K]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, BK)
    inside = (row < rows)[:, None] & (at < K)[None, :]
    b = tl.load(x + row[:, None] * K + at[None, :], mask=inside, other=0.0).to(tl.float32)  # [BLOCK, BK]
    b = b * (1.0 / tl.sqrt(tl.sum(b * b, 1) + 1e-6))[:, None]
    tl.store(y + row[:, None] * K + at[None, :], stored(b, y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "T"])
def prepare_kernel(
    k,  # [B, T, H, K]
    g,  # [B, T, HV]
    beta,  # [B, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    G,  # [B, T, HV] out, fp32
    strength,  # [B, T, HV] out, fp32
    inverse,  # [chunks, HV, C, C] out
    cu_seqlens,
    chunk_offsets,
    chunk_sequence,
    T,
    N,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    VARLEN: tl.constexpr,
    GATE: tl.constexpr,
    DT_BIAS: tl.constexpr,
    BETA_SIGMOID: tl.constexpr,
    NEG_EIGVAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    head = program % HV
    chunk = program // HV
    first, count = _place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    at = tl.arange(0, 16)
    k_at = tl.arange(0, BK)
    k_in = (k_at < K)[None, :]
    group = head // (HV // H)
    k += group * K
    out = inverse + program * C * C

    in_0 = at < count
    t_0 = (first + at) * HV + head
    G_0 = tl.cumsum(_log_gate(g, A_log, dt_bias, t_0, in_0, head, GATE, DT_BIAS), 0)  # [16]
    b_0 = _strength(beta, t_0, in_0, BETA_SIGMOID, NEG_EIGVAL)
    tl.store(G + t_0, G_0, mask=in_0)
    tl.store(strength + t_0, b_0, mask=in_0)
    k_0 = tl.load(k + (first + at)[:, None] * H * K + k_at[None, :], mask=in_0[:, None] & k_in, other=0.0)  # [16, BK]
    i_00 = invert_16(_lower(k_0, k_0, G_0, G_0, b_0, True))
    tile = at[:, None] * C + at[None, :]
    tl.store(out + tile, stored(i_00, inverse.dtype.element_ty))
    if C >= 32:
        in_1 = 16 + at < count
        t_1 = (first + 16 + at) * HV + head
        g_1 = _log_gate(g, A_log, dt_bias, t_1, in_1, head, GATE, DT_BIAS)
        G_1 = tl.min(G_0) + tl.cumsum(g_1, 0)
        b_1 = _strength(beta, t_1, in_1, BETA_SIGMOID, NEG_EIGVAL)
        tl.store(G + t_1, G_1, mask=in_1)
        tl.store(strength + t_1, b_1, mask=in_1)
        k_1 = tl.load(k + (first + 16 + at)[:, None] * H * K + k_at[None, :], mask=in_1[:, None] & k_in, other=0.0)
        a_10 = _lower(k_1, k_0, G_1, G_0, b_1, False)
        i_11 = invert_16(_lower(k_1, k_1, G_1, G_1, b_1, True))
        i_10 = below(i_11, a_10, i_00)
        zero = stored(tl.zeros([16, 16], tl.float32), inverse.dtype.element_ty)
        tl.store(out + tile + 16, zero)
        tl.store(out + tile + 16 * C, stored(i_10, inverse.dtype.element_ty))
        tl.store(out + tile + 16 * C + 16, stored(i_11, inverse.dtype.element_ty))
        if C == 64:
            in_2 = 32 + at < count
            in_3 = 48 + at < count
            t_2 = (first + 32 + at) * HV + head
            t_3 = (first + 48 + at) * HV + head
            G_2 = tl.min(G_1) + tl.cumsum(_log_gate(g, A_log, dt_bias, t_2, in_2, head, GATE, DT_BIAS), 0)
            G_3 = tl.min(G_2) + tl.cumsum(_log_gate(g, A_log, dt_bias, t_3, in_3, head, GATE, DT_BIAS), 0)
            b_2 = _strength(beta, t_2, in_2, BETA_SIGMOID, NEG_EIGVAL)
            b_3 = _strength(beta, t_3, in_3, BETA_SIGMOID, NEG_EIGVAL)
            tl.store(G + t_2, G_2, mask=in_2)
            tl.store(G + t_3, G_3, mask=in_3)
            tl.store(strength + t_2, b_2, mask=in_2)
            tl.store(strength + t_3, b_3, mask=in_3)
            k_2 = tl.load(k + (first + 32 + at)[:, None] * H * K + k_at[None, :], mask=in_2[:, None] & k_in, other=0.0)
            k_3 = tl.load(k + (first + 48 + at)[:, None] * H * K + k_at[None, :], mask=in_3[:, None] & k_in, other=0.0)
            i_22 = invert_16(_lower(k_2, k_2, G_2, G_2, b_2, True))
            i_33 = invert_16(_lower(k_3, k_3, G_3, G_3, b_3, True))
            a_20 = _lower(k_2, k_0, G_2, G_0, b_2, False)
            a_21 = _lower(k_2, k_1, G_2, G_1, b_2, False)
            a_30 = _lower(k_3, k_0, G_3, G_0, b_3, False)
            a_31 = _lower(k_3, k_1, G_3, G_1, b_3, False)
            a_32 = _lower(k_3, k_2, G_3, G_2, b_3, False)
            i_21 = below(i_22, a_21, i_11)
            i_32 = below(i_33, a_32, i_22)
            i_20 = -dot(i_22, dot(a_20, i_00) + dot(a_21, i_10))
            i_31 = -dot(i_33, dot(a_31, i_11) + dot(a_32, i_21))
            i_30 = -dot(i_33, dot(a_30, i_00) + dot(a_31, i_10) + dot(a_32, i_20))
            tl.store(out + tile + 32, zero)
            tl.store(out + tile + 48, zero)
            tl.store(out + tile + 16 * C + 32, zero)
            tl.store(out + tile + 16 * C + 48, zero)
            tl.store(out + tile + 32 * C + 48, zero)
            tl.store(out + tile + 32 * C, stored(i_20, inverse.dtype.element_ty))
            tl.store(out + tile + 32 * C + 16, stored(i_21, inverse.dtype.element_ty))
            tl.store(out + tile + 32 * C + 32, stored(i_22, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C, stored(i_30, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 16, stored(i_31, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 32, stored(i_32, inverse.dtype.element_ty))
            tl.store(out + tile + 48 * C + 48, stored(i_33, inverse.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "slots", "M"])
def states_kernel(
    k,  # [B, T, H, K]
    v,  # [B, T, HV, V]
    G,  # [B, T, HV]
    strength,  # [B, T, HV]
    inverse,  # [chunks, HV, C, C]
    new,  # [B, T, HV, V] out: new values
    states,  # [chunks, HV, K, V] out: the state before each chunk, or unused
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

    if VARLEN:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        length = tl.load(cu_seqlens + n + 1).to(tl.int64) - first
        chunk_0 = tl.load(chunk_offsets + n).to(tl.int64)
    else:
        first = n * T
        length = tl.zeros([], tl.int64) + T
        chunk_0 = n * ((T + C - 1) // C)
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
        row = (chunk_0 + c) * HV + head
        tl.store(states + (row * K + k_at[:, None]) * V + v_at[None, :], stored(S, states.dtype.element_ty), mask=inner)
        b_k = tl.load(
            k + (token * H + group)[:, None] * K + k_at[None, :], mask=inside[:, None] & k_in[None, :], other=0.0
        )
        b_v = tl.load(
            v + (token * HV + head)[:, None] * V + v_at[None, :], mask=inside[:, None] & v_in[None, :], other=0.0
        )
        b_i = tl.load(inverse + row * C * C + c_at[:, None] * C + c_at[None, :])  # [C, C]
        end = tl.load(G + (first + tl.minimum(start + C, length) - 1) * HV + head)
        b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
        b_b = tl.load(strength + token * HV + head, mask=inside, other=0.0)
        x = b_v.to(tl.float32) - tl.exp(b_G)[:, None] * dot(b_k, stored(S, low))
        x = stored(x * b_b[:, None], low)
        b_new = stored(dot(b_i, x), low)  # [C, BV]
        tl.store(new + (token * HV + head)[:, None] * V + v_at[None, :], b_new, mask=inside[:, None] & v_in[None, :])
        kept = stored(b_k.to(tl.float32) * tl.where(inside, tl.exp(end - b_G), 0.0)[:, None], low)
        S = S * tl.exp(end) + dot(tl.trans(kept), b_new)
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


@triton.jit(do_not_specialize=["N", "T", "slots"])
def outputs_kernel(
    q,  # [B, T, H, K]
    k,  # [B, T, H, K]
    new,  # [B, T, HV, V]
    G,  # [B, T, HV]
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
    first, count = _place(chunk, T, N, cu_seqlens, chunk_offsets, chunk_sequence, C, VARLEN)
    if count == 0:
        return
    live = chunk >= 0
    if POOL:
        if VARLEN:
            n = tl.load(chunk_sequence + chunk).to(tl.int64)
        else:
            n = chunk // ((T + C - 1) // C)
        slot = tl.load(read_index + n).to(tl.int64)
        live = (slot >= 0) & (slot < slots)
    group = head // (HV // H)
    c_at = tl.arange(0, C)
    k_at = tl.arange(0, BK)
    v_at = block * BV + tl.arange(0, BV)
    inside = c_at < count
    k_in = k_at < K
    v_in = v_at < V
    token = first + c_at
    qk = (token * H + group)[:, None] * K + k_at[None, :]
    b_q = tl.load(q + qk, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
    b_k = tl.load(k + qk, mask=inside[:, None] & k_in[None, :], other=0.0)  # [C, BK]
    row = chunk * HV + head
    S = tl.load(states + (row * K + k_at[:, None]) * V + v_at[None, :], mask=k_in[:, None] & v_in[None, :], other=0.0)
    at = (token * HV + head)[:, None] * V + v_at[None, :]
    b_new = tl.load(new + at, mask=inside[:, None] & v_in[None, :], other=0.0)  # [C, BV]
    b_G = tl.load(G + token * HV + head, mask=inside, other=0.0)
    lower = (c_at[:, None] >= c_at[None, :]) & inside[:, None]
    decay = tl.exp(tl.where(lower, b_G[:, None] - b_G[None, :], 0.0))
    attention = tl.where(lower, dot(b_q, tl.trans(b_k)) * decay, 0.0)  # [C, C]
    b_o = dot(b_q, S) * tl.exp(b_G)[:, None] + dot(stored(attention, b_new.dtype), b_new)
    b_o = tl.where(live, b_o * scale, 0.0)
    tl.store(o + at, stored(b_o, o.dtype.element_ty), mask=inside[:, None] & v_in[None, :])
