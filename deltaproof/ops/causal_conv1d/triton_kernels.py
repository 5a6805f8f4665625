"""The causal convolution in Triton, against a pool of windows.

A program has a block of channels of one row (decode) or of a block of packed tokens (prefill). A window's layout is two
strides. Where the update is in place a program has read all it needs before it writes: in decode it alone has these
channels of the row, and in prefill windows are written by a second kernel. Counts are not specialised, as in the
recurrence. Shape legend: N rows or sequences, B batch, T tokens, C channels, W width in tokens, S slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltaproof.ops.common.triton_language import sigmoid, stored
from deltaproof.ops.common.triton_places import sequence_bounds


@triton.jit
def _finished(total, SILU: tl.constexpr):
    if SILU:
        total = total * sigmoid(total)
    return total


@triton.jit
def _keep(
    x,
    pool,
    first,
    length,
    read_slot,
    write_slot,
    live,
    used,
    slots,
    slot_step,
    time_step,
    channel_step,
    c_at,
    c_in,
    C: tl.constexpr,
    W: tl.constexpr,
    BW: tl.constexpr,
):
    """Store the last W - 1 inputs of a row whose tokens begin at ``first``."""
    w_at = tl.arange(0, BW)  # [BW]
    place = length - (W - 1) + w_at  # [BW]
    inner = (w_at < W - 1)[:, None] & c_in[None, :]  # [BW, BC]
    old = read_slot * slot_step + (place + W - 1)[:, None] * time_step + c_at[None, :] * channel_step
    past = tl.load(pool + old, mask=inner & (place < 0)[:, None] & used, other=0.0).to(tl.float32)
    now = tl.load(
        x + (first + place)[:, None] * C + c_at[None, :], mask=inner & (place >= 0)[:, None] & live, other=0.0
    )
    new = stored(tl.where((place < 0)[:, None], past, now.to(tl.float32)), pool.dtype.element_ty)
    kept = live & (write_slot >= 0) & (write_slot < slots)
    at = write_slot * slot_step + w_at[:, None] * time_step + c_at[None, :] * channel_step
    # another thread may read what this one writes
    tl.debug_barrier()
    tl.store(pool + at, new, mask=inner & kept)


@triton.jit(do_not_specialize=["T", "slots"])
def conv_decode_kernel(
    x,  # [N, T, C]
    weight,  # [C, W]
    bias,  # [C]
    y,  # [N, T, C]
    pool,  # [S, ., .]
    read_index,  # [N]
    write_index,  # [N]
    num_tokens,  # [N]
    has_initial_state,  # [N]
    T,
    slots,
    slot_step,  # strides in elements
    time_step,
    channel_step,
    C: tl.constexpr,
    W: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    RAGGED: tl.constexpr,
    FRESH: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Run up to 16 tokens of every row."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    row = program // BLOCKS
    c_at = (program % BLOCKS) * BC + tl.arange(0, BC)  # [BC]
    c_in = c_at < C
    read_slot = tl.load(read_index + row).to(tl.int64)
    write_slot = tl.load(write_index + row).to(tl.int64)
    live = (read_slot >= 0) & (read_slot < slots)
    used = live
    if FRESH:
        used = used & (tl.load(has_initial_state + row).to(tl.int32) != 0)
    steps = tl.zeros([], tl.int64) + T
    if RAGGED:
        steps = tl.minimum(tl.maximum(tl.load(num_tokens + row).to(tl.int64), 0), steps)
    steps = tl.where(live, steps, 0)

    for t in range(steps):
        total = tl.zeros([BC], tl.float32)  # [BC]
        if BIAS:
            total += tl.load(bias + c_at, mask=c_in, other=0.0).to(tl.float32)
        for j in tl.static_range(W):
            back = t - (W - 1) + j
            old = read_slot * slot_step + (back + W - 1) * time_step + c_at * channel_step
            past = tl.load(pool + old, mask=c_in & used & (back < 0), other=0.0).to(tl.float32)
            now = tl.load(x + (row * T + back) * C + c_at, mask=c_in & (back >= 0), other=0.0).to(tl.float32)
            total += tl.load(weight + c_at * W + j, mask=c_in, other=0.0).to(tl.float32) * tl.where(back < 0, past, now)
        tl.store(y + (row * T + t) * C + c_at, stored(_finished(total, SILU), y.dtype.element_ty), mask=c_in)
    for t in range(steps, T):
        tl.store(y + (row * T + t) * C + c_at, tl.zeros([BC], tl.float32).to(y.dtype.element_ty), mask=c_in)
    _keep(
        x, pool, row * T, steps, read_slot, write_slot, live, used, slots, slot_step, time_step, channel_step, c_at,
        c_in, C, W, BW,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "D", "slots"])
def conv_speculation_kernel(
    x,  # [N, T, C]
    weight,  # [C, W]
    bias,  # [C]
    y,  # [N, T, C]
    pool,  # [S, ., .]
    drafts,  # [S, 2, D, C]
    read_index,  # [N]
    write_index,  # [N]
    num_tokens,  # [N]
    has_initial_state,  # [N]
    draft_half,  # [N]
    accepted,  # [S]
    T,
    D,
    slots,
    slot_step,  # strides in elements
    time_step,
    channel_step,
    draft_step,
    C: tl.constexpr,
    W: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    RAGGED: tl.constexpr,
    FRESH: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Take accepted drafts into the window, and run up to 16 tokens of every row beside it (clause P7)."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    row = program // BLOCKS
    c_at = (program % BLOCKS) * BC + tl.arange(0, BC)  # [BC]
    c_in = c_at < C
    read_slot = tl.load(read_index + row).to(tl.int64)
    write_slot = tl.load(write_index + row).to(tl.int64)
    half = tl.load(draft_half + row).to(tl.int64)
    live = (read_slot >= 0) & (read_slot < slots)
    kept = live & (write_slot >= 0) & (write_slot < slots)
    replays = kept & (half >= 0) & (half < 2)
    count = tl.load(accepted + write_slot, mask=replays, other=0).to(tl.int64)
    count = tl.minimum(tl.maximum(count, 0), D)
    used = live
    if FRESH:
        used = used & (tl.load(has_initial_state + row).to(tl.int32) != 0)
    steps = tl.zeros([], tl.int64) + T
    if RAGGED:
        steps = tl.minimum(tl.maximum(tl.load(num_tokens + row).to(tl.int64), 0), steps)
    steps = tl.where(live, steps, 0)

    # the half of a slot that is read and the one that is written
    old_half = drafts + write_slot * draft_step + half * D * C
    new_half = drafts + write_slot * draft_step + tl.where(replays, 1 - half, 0) * D * C
    for t in range(steps):
        total = tl.zeros([BC], tl.float32)  # [BC]
        if BIAS:
            total += tl.load(bias + c_at, mask=c_in, other=0.0).to(tl.float32)
        for j in tl.static_range(W):
            back = t - (W - 1) + j
            draft = back + count
            old = read_slot * slot_step + (draft + W - 1) * time_step + c_at * channel_step
            past = tl.load(pool + old, mask=c_in & used & (draft < 0), other=0.0).to(tl.float32)
            between = tl.load(old_half + draft * C + c_at, mask=c_in & (draft >= 0) & (back < 0), other=0.0)
            now = tl.load(x + (row * T + back) * C + c_at, mask=c_in & (back >= 0), other=0.0).to(tl.float32)
            value = tl.where(draft < 0, past, tl.where(back < 0, between.to(tl.float32), now))
            total += tl.load(weight + c_at * W + j, mask=c_in, other=0.0).to(tl.float32) * value
        tl.store(y + (row * T + t) * C + c_at, stored(_finished(total, SILU), y.dtype.element_ty), mask=c_in)
        own = tl.load(x + (row * T + t) * C + c_at, mask=c_in, other=0.0)
        tl.store(new_half + t * C + c_at, own, mask=c_in & kept)
    for t in range(steps, T):
        tl.store(y + (row * T + t) * C + c_at, tl.zeros([BC], tl.float32).to(y.dtype.element_ty), mask=c_in)
    _keep(
        old_half, pool, 0, count, read_slot, write_slot, live, used, slots, slot_step, time_step, channel_step, c_at,
        c_in, C, W, BW,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "T", "slots", "halvings"])
def conv_outputs_kernel(
    x,  # [B, T, C]
    weight,  # [C, W]
    bias,  # [C]
    y,  # [B, T, C]
    pool,  # [S, ., .]
    read_index,  # [N]
    has_initial_state,  # [N]
    cu_seqlens,  # [N + 1]
    N,
    T,
    slots,
    slot_step,  # strides in elements
    time_step,
    channel_step,
    halvings,
    C: tl.constexpr,
    W: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    VARLEN: tl.constexpr,
    FRESH: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Write the outputs of a block of tokens, whatever sequences they belong to; tokens of nobody give 0."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    c_at = (program % BLOCKS) * BC + tl.arange(0, BC)  # [BC]
    c_in = c_at < C
    token = (program // BLOCKS) * BT + tl.arange(0, BT)  # [BT]
    if VARLEN:
        tokens = tl.zeros([], tl.int64) + T
        low = tl.zeros([BT], tl.int64)
        high = low + N
        # the first sequence that ends behind the token
        for _ in range(halvings):
            middle = (low + high) // 2
            behind = tl.load(cu_seqlens + tl.minimum(middle + 1, N)).to(tl.int64) > token
            high = tl.where(behind, middle, high)
            low = tl.where(behind, low, tl.minimum(middle + 1, high))
        owner = tl.minimum(low, N - 1)
        first, length = sequence_bounds(cu_seqlens, owner, T)
    else:
        tokens = (tl.zeros([], tl.int64) + N) * T
        owner = tl.minimum(token // T, N - 1)
        first = owner * T
        length = tl.zeros([BT], tl.int64) + T
    t_in = token < tokens
    place = token - first
    read_slot = tl.load(read_index + owner).to(tl.int64)  # [BT]
    live = (read_slot >= 0) & (read_slot < slots) & (place >= 0) & (place < length) & t_in
    used = live
    if FRESH:
        used = used & (tl.load(has_initial_state + owner).to(tl.int32) != 0)

    total = tl.zeros([BT, BC], tl.float32)  # [BT, BC]
    if BIAS:
        total += tl.load(bias + c_at, mask=c_in, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(W):
        back = place - (W - 1) + j  # [BT]
        old = read_slot[:, None] * slot_step + (back + W - 1)[:, None] * time_step + c_at[None, :] * channel_step
        past = tl.load(pool + old, mask=(used & (back < 0))[:, None] & c_in[None, :], other=0.0).to(tl.float32)
        new = (token - (W - 1) + j)[:, None] * C + c_at[None, :]
        now = tl.load(x + new, mask=(live & (back >= 0))[:, None] & c_in[None, :], other=0.0).to(tl.float32)
        factor = tl.load(weight + c_at * W + j, mask=c_in, other=0.0).to(tl.float32)
        total += factor[None, :] * tl.where((back < 0)[:, None], past, now)
    result = tl.where(live[:, None], _finished(total, SILU), 0.0)
    tl.store(
        y + token[:, None] * C + c_at[None, :],
        stored(result, y.dtype.element_ty),
        mask=t_in[:, None] & c_in[None, :],
    )


@triton.jit(do_not_specialize=["T", "slots"])
def conv_windows_kernel(
    x,  # [B, T, C]
    pool,  # [S, ., .]
    read_index,  # [N]
    write_index,  # [N]
    has_initial_state,  # [N]
    cu_seqlens,  # [N + 1]
    T,
    slots,
    slot_step,  # strides in elements
    time_step,
    channel_step,
    C: tl.constexpr,
    W: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    VARLEN: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Write the window behind the last token of every sequence."""
    program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    n = program // BLOCKS
    c_at = (program % BLOCKS) * BC + tl.arange(0, BC)  # [BC]
    if VARLEN:
        first, length = sequence_bounds(cu_seqlens, n, T)
    else:
        first = n * T
        length = tl.zeros([], tl.int64) + T
    read_slot = tl.load(read_index + n).to(tl.int64)
    write_slot = tl.load(write_index + n).to(tl.int64)
    live = (read_slot >= 0) & (read_slot < slots)
    used = live
    if FRESH:
        used = used & (tl.load(has_initial_state + n).to(tl.int32) != 0)
    _keep(
        x, pool, first, length, read_slot, write_slot, live, used, slots, slot_step, time_step, channel_step, c_at,
        c_at < C, C, W, BW,
    )  # fmt: skip
