"""A speculative step of the delta rule for Hopper, in Gluon: all tokens of a row at once.

One warp has 16 value columns of one head's state. The state comes into shared memory and is not walked token by token.
With S the state and G the log gates summed from the first token on, the errors of all tokens, taken in and new, are

    u_j = beta_j (v_j - e^{G_j} S k_j - sum over i < j of e^{G_j - G_i} (k_i . k_j) u_i)

and a new token's answer is o_j = e^{G_j} S q_j + sum over i <= j of e^{G_j - G_i} (k_i . q_j) u_i: products of the
state with all keys and queries, products of keys with keys and queries, and a short elimination. The state is then
stored once, with what was taken in. That is exact algebra, as in the chunked form; the operator's README derives it.
Products run on the tensor cores, with fp32 operands cut into three bf16 pieces that hold all their bits.

Layouts are chosen so that nothing is shuffled: an accumulator's registers are an operand's. The kernel that goes token
by token does the same for other sizes, dtypes and layouts. Shape legend: N rows, T tokens, H query/key heads, HV value
heads, K, V head sizes; S slots, D drafts a slot can hold; PAD at least D; NK = 2 PAD keys, those of drafts first; BK,
BV blocks of K and V.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from deltaproof.ops.common.hopper_language import cut, plus
from deltaproof.ops.common.triton_inputs import MIN_LOG_GATE
from deltaproof.ops.common.triton_token import gate_at, gated, strengthened

QUERIES = gl.constexpr(8)
"""Queries a program answers: the narrowest operand there is."""


@gluon.jit
def _pieces(x, A: gl.constexpr):
    """Return an accumulator as three bf16 operands whose sum it is, the largest first."""
    wide, first = cut(x)
    rest = x - wide
    wide, second = cut(rest)
    _, third = cut(rest - wide)
    return gl.convert_layout(first, A), gl.convert_layout(second, A), gl.convert_layout(third, A)


@gluon.jit
def _eliminated(y_k, y_q, j, m_k, m_q, PAD: gl.constexpr, COLUMN: gl.constexpr):
    """Return errors [BV, NK] and answers [BV, QUERIES] with what token j, whose error is final, does to later ones."""
    token = gl.arange(0, 2 * PAD, COLUMN)
    asking = gl.arange(0, QUERIES, COLUMN) + PAD
    u_j = gl.sum(gl.where((token == j)[None, :], y_k, 0.0), 1)  # [BV]
    k_j = m_k.index(j).load(COLUMN)  # [NK]
    q_j = m_q.index(j).load(COLUMN)  # [QUERIES]
    # chosen, not multiplied by zero: a token's NaN is its own and its successors'
    y_k = gl.where((token > j)[None, :], y_k - u_j[:, None] * k_j[None, :], y_k)
    y_q = gl.where((asking >= j)[None, :], y_q + u_j[:, None] * q_j[None, :], y_q)
    return y_k, y_q


@gluon.jit(do_not_specialize=["T", "D", "slots"])
def hopper_speculation_kernel(
    q,  # [N, T, H, K] bf16
    k,  # [N, T, H, K] bf16
    v,  # [N, T, HV, V]
    g,  # [N, T, HV]
    beta,  # [N, T, HV]
    A_log,  # [HV]
    dt_bias,  # [HV]
    o,  # [N, T, HV, V]
    pool,  # [S, HV, V, K]
    draft_k,  # [S, 2, D, H, K] bf16
    draft_v,  # [S, 2, D, HV, V]
    draft_g,  # [S, 2, D, HV]
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
    pool_v,
    draft_k_slot,
    draft_v_slot,
    draft_g_slot,
    draft_beta_slot,
    H: gl.constexpr,
    HV: gl.constexpr,
    K: gl.constexpr,
    V: gl.constexpr,
    PAD: gl.constexpr,
    BK: gl.constexpr,
    RAGGED: gl.constexpr,
    FRESH: gl.constexpr,
    NORMALIZE: gl.constexpr,
    GATE: gl.constexpr,
    DT_BIAS: gl.constexpr,
    BETA_SIGMOID: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):
    BV: gl.constexpr = 16
    NK: gl.constexpr = 2 * PAD
    CHUNKS: gl.constexpr = K // BK
    BLOCKS: gl.constexpr = V // BV
    STATE: gl.constexpr = pool.dtype.element_ty
    C: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, C, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, C, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, C)
    COLUMN: gl.constexpr = gl.SliceLayout(0, C)
    LANE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    # 16 bytes a thread, a whole row after another
    TOKENS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [1, 1], [1, 0])
    WIDTH: gl.constexpr = 128 // STATE.primitive_bitwidth
    VALUES: gl.constexpr = gl.BlockedLayout([1, WIDTH], [32 * WIDTH // K, K // WIDTH], [1, 1], [1, 0])
    SWIZZLED: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    program = gl.program_id(0)
    block = program % BLOCKS
    head = (program // BLOCKS) % HV
    row = (program // (BLOCKS * HV)).to(gl.int64)
    group = head // (HV // H)

    b_A_log, b_bias = gate_at(A_log, dt_bias, head, 0, K, GATE, GATE, DT_BIAS, False)
    read_slot = gl.load(read_index + row).to(gl.int64)
    write_slot = gl.load(write_index + row).to(gl.int64)
    half = gl.load(draft_half + row).to(gl.int32)
    live = (read_slot >= 0) & (read_slot < slots)
    kept = live & (write_slot >= 0) & (write_slot < slots)
    replays = kept & (half >= 0) & (half < 2)
    count = gl.load(accepted + write_slot, mask=replays, other=0).to(gl.int32)
    used = live
    if FRESH:
        used = used & (gl.load(has_initial_state + row).to(gl.int32) != 0)
    steps = T.to(gl.int32)
    if RAGGED:
        steps = gl.minimum(gl.maximum(gl.load(num_tokens + row).to(gl.int32), 0), steps)
    steps = gl.where(live, steps, 0)
    away = gl.where(replays, 1 - 2 * half, 0) * D
    half = gl.where(replays, half, 0)

    k += row * T * H * K
    q += row * T * H * K
    v += row * T * HV * V
    o += row * T * HV * V
    g += row * T * HV
    beta += row * T * HV
    draft_k += write_slot * draft_k_slot + half * D * H * K
    draft_v += write_slot * draft_v_slot + half * D * HV * V
    draft_g += write_slot * draft_g_slot + half * D * HV
    draft_beta += write_slot * draft_beta_slot + half * D * HV

    # 16 rows are the least that a product takes, so with few drafts queries stand below the keys
    rows = gl.allocate_shared_memory(gl.bfloat16, [16, K], SWIZZLED)
    x = gl.arange(0, 16, gl.SliceLayout(1, TOKENS))
    x_k = gl.arange(0, K, gl.SliceLayout(0, TOKENS))[None, :]
    draft_at = draft_k + (x * H + group) * K
    x_new = gl.where(x < NK, x - PAD, x - NK)
    x_in = ((x < D) & (x < PAD) & replays) | ((x_new >= 0) & (x_new < steps))
    x_at = gl.where(x < PAD, draft_at, gl.where(x < NK, k, q) + (x_new * H + group) * K)
    async_copy.async_copy_global_to_shared(rows, x_at[:, None] + x_k, mask=x_in[:, None])
    if NK == 16:
        asked = gl.allocate_shared_memory(gl.bfloat16, [QUERIES, K], SWIZZLED)
        y = gl.arange(0, QUERIES, gl.SliceLayout(1, TOKENS))
        y_at = q + (y * H + group) * K
        async_copy.async_copy_global_to_shared(asked, y_at[:, None] + x_k, mask=(y < steps)[:, None])
        keys = rows
    else:
        asked = rows.slice(NK, QUERIES)
        keys = rows.slice(0, NK)
    async_copy.commit_group()
    values = gl.allocate_shared_memory(STATE, [BV, K], SWIZZLED)
    s_v = block * BV + gl.arange(0, BV, gl.SliceLayout(1, VALUES))
    s_k = gl.arange(0, K, gl.SliceLayout(0, VALUES))
    source = pool + read_slot * pool_slot + head.to(gl.int64) * pool_head
    async_copy.async_copy_global_to_shared(values, source + (s_v * pool_v)[:, None] + s_k[None, :], mask=used)
    async_copy.commit_group()

    # a lane has a token's scalars
    count = gl.minimum(gl.maximum(count, 0), D)
    token = gl.arange(0, 32, LANE)
    new = token - PAD
    is_new = (new >= 0) & (new < steps)
    may = is_new | ((token < D) & (token < PAD) & replays)
    raw_g = gl.load(gl.where(is_new, g + new * HV, draft_g + token * HV) + head, mask=may, other=0.0)
    raw_beta = gl.load(gl.where(is_new, beta + new * HV, draft_beta + token * HV) + head, mask=may, other=0.0)
    c = gl.arange(0, NK, COLUMN)
    c_new = c - PAD
    is_own = (c_new >= 0) & (c_new < steps)
    v_at = block * BV + gl.arange(0, BV, ROW)  # [BV]
    c_at = gl.where(is_own, v + (c_new * HV + head) * V, draft_v + (c * HV + head) * V)
    c_in = is_own | ((c < D) & (c < PAD) & replays)
    # deltaproof: ignore[HZ101] V is a multiple of BV; the index that is bounded by NK is another
    raw_v = gl.load(c_at[None, :] + v_at[:, None], mask=c_in[None, :], other=0.0)  # [BV, NK]

    # what several programs have at hand is stored by the first of them
    first = kept & (block == 0)
    gl.store(draft_g + (away + new) * HV + head, raw_g, mask=is_new & first)
    gl.store(draft_beta + (away + new) * HV + head, raw_beta, mask=is_new & first)
    own_v = draft_v + ((away + c_new) * HV + head) * V
    # deltaproof: ignore[HZ102] V is a multiple of BV; the index that is bounded by NK is another
    gl.store(own_v[None, :] + v_at[:, None], raw_v, mask=(is_own & kept)[None, :])
    counts = is_new | (token < count)
    b_g = gl.maximum(gated(raw_g.to(gl.float32), b_A_log, b_bias, GATE, GATE, 0.0), MIN_LOG_GATE)
    b_g = gl.where(counts, b_g, 0.0)
    b_beta = gl.where(counts, strengthened(raw_beta.to(gl.float32), BETA_SIGMOID, NEG_EIGVAL), 0.0)
    G = gl.allocate_shared_memory(gl.float32, [32], LINE, gl.associative_scan(b_g, 0, plus))
    strength = gl.allocate_shared_memory(gl.float32, [32], LINE, b_beta)
    whole = gl.sum(gl.where(token < count, b_g, 0.0), 0)

    async_copy.wait_group(1)
    if first & (head % (HV // H) == 0):
        own_k = draft_k + ((away + x_new) * H + group) * K
        own_in = (x >= PAD) & (x < NK) & (x_new < steps)
        gl.store(own_k[:, None] + x_k, rows.load(TOKENS), mask=own_in[:, None])
    kk = gl.zeros([16, NK], gl.float32, C)  # [16, NK] products of keys
    kq = gl.zeros([16, QUERIES], gl.float32, C)  # [16, QUERIES]
    for i in gl.static_range(CHUNKS):
        part = rows.slice(i * BK, BK, 1).load(A)
        kk = mma_v2(part, keys.slice(i * BK, BK, 1).permute([1, 0]).load(B), kk)
        kq = mma_v2(part, asked.slice(i * BK, BK, 1).permute([1, 0]).load(B), kq)
    r = gl.arange(0, 16, ROW)[:, None]
    e = gl.arange(0, QUERIES, COLUMN)
    G_r = G.slice(0, 16).load(ROW)  # [16]
    G_k = G.slice(0, NK).load(COLUMN)  # [NK]
    G_q = gl.sum(gl.where(r == e[None, :] + PAD, G_r[:, None], 0.0), 0)  # [QUERIES]
    beta_k = strength.slice(0, NK).load(COLUMN)  # [NK]
    m_k = kk * gl.exp(gl.minimum(G_k[None, :] - G_r[:, None], 0.0)) * beta_k[None, :]
    m_q = kq * gl.exp(gl.minimum(G_q[None, :] - G_r[:, None], 0.0))
    front_k = gl.exp(G_k)
    front_q = gl.exp(G_q)
    fade = gl.exp(gl.minimum(whole - G_k, 0.0))
    if NORMALIZE:
        own = gl.where(r == c[None, :], kk, 0.0)
        k_length = gl.rsqrt(gl.sum(own, 0) + 1e-6)  # [NK]
        r_length = gl.rsqrt(gl.sum(own, 1) + 1e-6)  # [16]
        if NK == 16:
            b_q = asked.load(TOKENS).to(gl.float32)
            squares = gl.allocate_shared_memory(
                gl.float32, [QUERIES], LINE, gl.convert_layout(gl.sum(b_q * b_q, 1), LANE)
            ).load(COLUMN)
        else:
            squares = gl.sum(gl.where(r == e[None, :] + NK, kq, 0.0), 0)
        q_length = gl.rsqrt(squares + 1e-6)  # [QUERIES]
        m_k = m_k * r_length[:, None] * k_length[None, :]
        m_q = m_q * r_length[:, None] * q_length[None, :]
        front_k = front_k * k_length
        front_q = front_q * q_length
        fade = fade * k_length
    m_k = gl.allocate_shared_memory(gl.float32, [16, NK], FLAT, m_k)._reinterpret(gl.float32, [16, NK], LINE)
    m_q = gl.allocate_shared_memory(gl.float32, [16, QUERIES], FLAT, m_q)._reinterpret(gl.float32, [16, QUERIES], LINE)

    async_copy.wait_group(0)
    y_k = gl.zeros([BV, NK], gl.float32, C)  # [BV, NK] the state's products with keys
    y_q = gl.zeros([BV, QUERIES], gl.float32, C)  # [BV, QUERIES]
    for i in gl.static_range(CHUNKS):
        state = values.slice(i * BK, BK, 1).load(C)  # [BV, BK]
        b_k = keys.slice(i * BK, BK, 1).permute([1, 0]).load(B)  # [BK, NK]
        b_q = asked.slice(i * BK, BK, 1).permute([1, 0]).load(B)  # [BK, QUERIES]
        if STATE.is_bf16():
            a_1 = gl.convert_layout(state, A)
        else:
            a_1, a_2, a_3 = _pieces(state.to(gl.float32), A)
            y_k = mma_v2(a_3, b_k, y_k)
            y_q = mma_v2(a_3, b_q, y_q)
            y_k = mma_v2(a_2, b_k, y_k)
            y_q = mma_v2(a_2, b_q, y_q)
        y_k = mma_v2(a_1, b_k, y_k)
        y_q = mma_v2(a_1, b_q, y_q)
    # from here on the keys that are taken in and zeros: others may hold anything
    async_copy.async_copy_global_to_shared(rows, draft_at[:, None] + x_k, mask=(x < count)[:, None])
    async_copy.commit_group()

    y_k = (raw_v.to(gl.float32) - y_k * front_k[None, :]) * beta_k[None, :]
    y_q = y_q * front_q[None, :]
    for j in range(0, count):
        y_k, y_q = _eliminated(y_k, y_q, j, m_k, m_q, PAD, COLUMN)
    added = gl.where((c < count)[None, :], y_k * fade[None, :], 0.0)  # [BV, NK]
    if NK == 8:
        added = gl.join(added, gl.zeros([BV, 8], gl.float32, C)).permute([0, 2, 1]).reshape([BV, 16])
        added = gl.convert_layout(added, C)
    for j in range(PAD, PAD + steps):
        y_k, y_q = _eliminated(y_k, y_q, j, m_k, m_q, PAD, COLUMN)
    answer = gl.where((e < steps)[None, :], y_q * scale, 0.0).to(o.dtype.element_ty)
    # deltaproof: ignore[HZ102] V is a multiple of BV; the index that is bounded by NK is another
    gl.store((o + (e * HV + head) * V)[None, :] + v_at[:, None], answer, mask=(e < T)[None, :])

    a_1, a_2, a_3 = _pieces(added, A)
    whole = gl.exp(whole)
    async_copy.wait_group(0)
    sink = pool + write_slot * pool_slot + head.to(gl.int64) * pool_head
    at = (v_at * pool_v)[:, None] + gl.arange(0, BK, COLUMN)[None, :]  # [BV, BK]
    for i in gl.static_range(CHUNKS):
        state = values.slice(i * BK, BK, 1).load(C).to(gl.float32) * whole  # [BV, BK]
        b_k = rows.slice(i * BK, BK, 1).load(B)  # [16, BK]
        state = mma_v2(a_3, b_k, state)
        state = mma_v2(a_2, b_k, state)
        state = mma_v2(a_1, b_k, state)
        # deltaproof: ignore[HZ102] V is a multiple of BV; the index that is bounded by NK is another
        gl.store(sink + at + i * BK, state.to(STATE), mask=kept)
