"""HZ105: addresses that lack an offset or use the wrong stride."""

from __future__ import annotations

from deltaproof.audit.rules.hz105_missing_base_offset import RULE
from tests.audit.rules.snippets import examples, hits

SPLIT = """
@triton.jit
def kernel(v, o, T, H: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr):
    i_v, i_bh = tl.program_id(0), tl.program_id(1)
    for i_t in range(0, T, BT):
        p_v = tl.make_block_ptr(v + i_bh * V, (T, V), (H * V, 1), (i_t, i_v * BV), (BT, BV), (1, 0))
        b_v = tl.load(p_v, boundary_check=(0, 1))
    p_o = tl.make_block_ptr(o + i_bh * V, (V,), (1,), ({start},), (BV,), (0,))
    tl.store(p_o, tl.sum(b_v, 0), boundary_check=(0,))
"""

LENGTH = """
@triton.jit
def kernel(x, o, cu, T, B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, VARLEN: tl.constexpr):
    i_v, i_n, i_t = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    {before}
    if VARLEN:
        bos, eos = tl.load(cu + i_n), tl.load(cu + i_n + 1)
        T = eos - bos
    else:
        bos, eos = i_n * T, i_n * T + T
    {after}
    r = tl.arange(0, K)
    tl.store(o + (i_v * whole * H + bos) * K + r, tl.load(x + bos * K + r))
"""

GRID = """
@triton.jit
def kernel(q, o, T, H: tl.constexpr, HQ: tl.constexpr, K: tl.constexpr):
    i_bh = tl.program_id(0)
    i_b, i_h = i_bh // {count}, i_bh % {count}
    r = tl.arange(0, K)
    tl.store(o + (i_b * T + i_h) * K + r, tl.load(q + (i_b * T + i_h) * K + r))


def run(q, o, B, T, H, HQ, K):
    def grid(meta):
        return (B * HQ,)
    kernel[grid](q, o, T=T, H=H, HQ=HQ, K=K)
"""

STRIDES = """
@triton.jit
def kernel(x, o, B: tl.constexpr, T, H: tl.constexpr, HQ: tl.constexpr, V: tl.constexpr):
    i_k, i_t = tl.program_id(0), tl.program_id(1)
    o += i_k * B * T * {count} * V
    r = tl.arange(0, V)
    tl.store(o + i_t * HQ * V + r, tl.load(x + i_t * H * V + r))
"""

EVERY = """
@triton.jit
def kernel(k, h, NT, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr):
    i_h = tl.program_id(0)
    r = tl.arange(0, K)
    b_h = tl.zeros([K], dtype=tl.float32)
    for i_t in range(NT):
        i_s = i_t // (BS // BT)
        p_h = h + ((i_h + {index}) * H + i_h) * K + r
        if i_t % (BS // BT) == 0:
            tl.store(p_h, b_h)
        b_h += tl.load(k + (i_t * H + i_h) * K + r)
"""

TWINS = """
@cute.kernel
def wide(state, q, k, v, T, steps, HV):
    n, t, h = cute.arch.block_idx()
    flat = n * steps * HV + t * HV + h
    state[flat] = q[n]


@cute.kernel
def narrow(state, q, k, v, T, {steps}HV):
    n, t, h = cute.arch.block_idx()
    flat = n * {stride} * HV + t * HV + h
    state[flat] = q[n]
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`g`" in hit.message and "`k`" in hit.message
    assert hits(RULE, good) == []


def test_an_output_tile_starts_where_its_program_does():
    (hit,) = hits(RULE, SPLIT.format(start="0"))
    assert "`i_v`" in hit.message and "`o`" in hit.message
    assert hits(RULE, SPLIT.format(start="i_v * BV")) == []


def test_a_loop_over_tiles_from_zero_is_no_missing_offset():
    code = SPLIT.format(start="i_v * BV").replace("(i_t, i_v * BV)", "(0, i_v * BV)")
    assert hits(RULE, code) == []


def test_the_whole_batchs_size_is_computed_before_the_length_shrinks():
    (hit,) = hits(RULE, LENGTH.format(before="pass", after="whole = B * T"))
    assert "`B * T`" in hit.message and "one sequence's length" in hit.message
    assert hits(RULE, LENGTH.format(before="whole = B * T", after="pass")) == []


def test_a_length_is_followed_through_a_count_of_blocks():
    code = LENGTH.format(before="pass", after="rows = tl.cdiv(T, 16)\n    whole = B * rows")
    (hit,) = hits(RULE, code)
    assert "`B * rows`" in hit.message


def test_a_program_id_is_split_by_what_the_grid_counts():
    (hit,) = hits(RULE, GRID.format(count="H"))
    assert "`HQ`" in hit.message and any("B * HQ" in quote.module.quote(quote.node) for quote in hit.quotes)
    assert hits(RULE, GRID.format(count="HQ")) == []


def test_a_program_id_that_a_helper_returns_is_split_by_what_the_grid_counts():
    helper = """
@triton.jit
def digits(X):
    pid = tl.program_id(0)
    return pid % X, pid // X

"""
    code = helper + GRID.format(count="H").replace("i_bh = tl.program_id(0)", "i_k, i_bh = digits(tl.cdiv(K, 16))")
    code = code.replace("(B * HQ,)", "(triton.cdiv(K, 16) * B * HQ,)")
    (hit,) = hits(RULE, code)
    assert "`HQ`" in hit.message
    assert hits(RULE, code.replace("// H,", "// HQ,").replace("% H\n", "% HQ\n")) == []


def test_the_index_of_a_head_is_no_number_of_heads():
    code = (
        STRIDES.format(count="H").replace("T * H * V", "T * H * V + H * head_idx").replace("B: tl", "head_idx, B: tl")
    )
    code = code.replace("T * H * V +", "T * HQ * V +").replace("H * head_idx", "B * head_idx")
    assert hits(RULE, code) == []


def test_a_tensor_has_one_number_of_heads():
    (hit,) = hits(RULE, STRIDES.format(count="H"))
    assert "`o`" in hit.message
    assert hits(RULE, STRIDES.format(count="HQ")) == []


def test_a_store_once_in_several_iterations_counts_stores():
    (hit,) = hits(RULE, EVERY.format(index="i_t"))
    assert hit.verdict == "possible" and "`h`" in hit.message
    assert hits(RULE, EVERY.format(index="i_s")) == []


def test_a_sibling_left_behind_with_the_old_stride():
    (hit,) = hits(RULE, TWINS.format(steps="", stride="T"))
    assert "`wide`" in hit.message and "`steps`" in hit.message
    assert hits(RULE, TWINS.format(steps="steps, ", stride="steps")) == []


def test_a_sibling_that_is_given_a_stride_has_another_layout_perhaps():
    assert hits(RULE, TWINS.format(steps="", stride="T").replace("steps", "stride_steps")) == []


def test_a_sibling_with_a_buffer_of_its_own_is_no_missing_stride():
    code = TWINS.format(steps="steps, ", stride="steps").replace(
        "flat = n * steps * HV + t * HV + h", "p = state + n", 1
    )
    assert hits(RULE, code) == []


def test_a_kernel_that_covers_all_heads_by_a_range_needs_no_head_index():
    code = """
    @triton.jit
    def kernel(x, g, o, H: tl.constexpr, BH: tl.constexpr):
        i_t, i_h = tl.program_id(0), tl.program_id(1)
        o_h = tl.arange(0, BH)
        b_g = tl.load(g + i_t * H + o_h, mask=o_h < H)
        tl.store(o + (i_t * H + i_h), tl.load(x + (i_t * H + i_h)) + tl.sum(b_g))
    """
    assert hits(RULE, code) == []


SEQUENCE = """
@triton.jit
def kernel(q, k, v, g, o, cu, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    bos = {start}
    r = tl.arange(0, K)
    b_q = tl.load(q + ((bos + i_t) * H + i_h) * K + r)
    b_k = tl.load(k + ((bos + i_t) * H + i_h) * K + r)
    b_v = tl.load(v + ((bos + i_t) * H + i_h) * K + r)
    b_g = tl.load(g + ({row} * H + i_h) * K + r)
    tl.store(o + ((bos + i_t) * H + i_h) * K + r, b_q * b_k * b_v * b_g)
"""


def test_a_token_address_without_the_sequences_start():
    (hit,) = hits(RULE, SEQUENCE.format(start="i_n * BT", row="i_t"))
    assert "`g` is not advanced by `i_n`" in hit.message
    assert hits(RULE, SEQUENCE.format(start="i_n * BT", row="(bos + i_t)")) == []


def test_a_parameter_of_the_heads_has_no_sequence():
    assert hits(RULE, SEQUENCE.format(start="i_n * BT", row="0").replace("(0 * H + i_h) * K", "i_h * K")) == []


STEPS = """
@triton.jit
def kernel(q, k, g, o, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    bos, eos = tl.load(cu_seqlens + i_n).to(tl.int64), tl.load(cu_seqlens + i_n + 1).to(tl.int64)
    T = eos - bos
    base = (bos * H + i_h) * K
    o_t, o_k = i_t * BT + tl.arange(0, BT), tl.arange(0, BK)
    p_q = tl.make_block_ptr(q + base, (T, K), (H * K, 1), (i_t * BT, 0), (BT, BK), (1, 0))
    p_k = k + base + o_t[:, None] * H * K + o_k[None, :]
    b_g = tl.load(g + base + {row}, mask=o_k < K)
    b_q = tl.load(p_q, boundary_check=(0, 1)) + tl.load(p_k, mask=(o_t < T)[:, None] & (o_k < K)[None, :])
    tl.store(o + base + {out} + o_k[None, :], b_q * b_g, mask=(o_t < T)[:, None] & (o_k < K)[None, :])
"""
OWN_ROWS = "o_t[:, None] * H * K"


def test_rows_go_by_the_stride_of_the_sequence() -> None:
    found = hits(RULE, STEPS.format(row="(i_t * BT + BT // 2) * K + o_k", out=OWN_ROWS))
    assert [hit.verdict for hit in found] == ["likely"]
    assert "`g` starts a sequence at" in found[0].message and "`BT * K`" in found[0].message
    assert hits(RULE, STEPS.format(row="(i_t * BT + BT // 2) * H * K + o_k", out=OWN_ROWS)) == []


def test_rows_of_a_tile_go_by_the_stride_of_its_start() -> None:
    good = "(i_t * BT + BT // 2) * H * K + o_k"
    found = hits(RULE, STEPS.format(row=good, out="i_t * BT * H * K + tl.arange(0, BT)[:, None] * K"))
    assert len(found) == 1 and "`o` has tiles of `BT` rows" in found[0].message
    assert hits(RULE, STEPS.format(row=good, out="i_t * BT * H * K + tl.arange(0, BT)[:, None] * K * H")) == []


def test_a_block_on_the_diagonal_has_its_tile_in_rows_and_columns() -> None:
    code = """
    @triton.jit
    def kernel(q, k, A, cu_seqlens, T, H: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
        i_t, i_i, i_n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        bos = tl.load(cu_seqlens + i_n)
        o_r = i_t * BT + i_i * BC + tl.arange(0, BC)
        b = tl.load(q + bos * H + o_r * H) + tl.load(k + bos * H + o_r * H)
        for j in range(BC):
            tl.store(A + (bos + o_r) * H * BT + i_i * BC + j, b)
    """
    assert hits(RULE, code) == []


def test_the_rows_of_a_block_pointer_go_by_the_stride_of_its_base() -> None:
    code = """
    @triton.jit
    def kernel(v, o, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr):
        i_n = tl.program_id(0)
        bos = tl.load(cu_seqlens + i_n)
        p_v = tl.make_block_ptr(v + bos * H * V, (T, V), (STRIDE, 1), (0, 0), (64, BV), (1, 0))
        p_o = tl.make_block_ptr(o + bos * H * V, (T, V), (H * V, 1), (0, 0), (64, BV), (1, 0))
        tl.store(p_o, tl.load(p_v, boundary_check=(0, 1)), boundary_check=(0, 1))
    """
    found = hits(RULE, code.replace("STRIDE", "H * K"))
    assert len(found) == 1 and "its rows are `H * K` apart" in found[0].message
    assert hits(RULE, code.replace("STRIDE", "H * V")) == []


def test_a_head_index_goes_with_its_own_count() -> None:
    code = """
    @triton.jit
    def kernel(v, o, cu_seqlens, T, H: tl.constexpr, HV: tl.constexpr, V: tl.constexpr):
        i_nh = tl.program_id(0)
        i_n, i_hv = i_nh // HV, i_nh % HV
        bos = tl.load(cu_seqlens + i_n)
        o_v = tl.arange(0, V)
        tl.store(o + (bos * HV + i_hv) * V + o_v, tl.load(v + (bos * COUNT + i_hv) * V + o_v))
    """
    found = hits(RULE, code.replace("COUNT", "H"))
    assert any("`v` has rows of `H` heads, but the head index counts `HV`" in hit.message for hit in found)
    assert hits(RULE, code.replace("COUNT", "HV")) == []


LOCAL = """
@triton.jit
def kernel(q, k, A, h, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, IS_VARLEN: tl.constexpr):
    i_t, i_bh = tl.program_id(0), tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    if IS_VARLEN:
        i_n = i_b
        bos, eos = tl.load(cu_seqlens + i_n), tl.load(cu_seqlens + i_n + 1)
        T = eos - bos
    else:
        bos, eos = i_b * T, i_b * T + T
    NT = tl.cdiv(T, BT)
    o_k = tl.arange(0, K)
    b_k = tl.load(q + ((bos + i_t) * H + i_h) * K + o_k) * tl.load(k + ((bos + i_t) * H + i_h) * K + o_k)
    tl.store(A + ({row} + i_t) * H * K + i_h * K + o_k, b_k)
"""


def test_a_batch_index_does_not_count_with_one_sequences_length() -> None:
    found = hits(RULE, LOCAL.format(row="i_b * T"))
    assert len(found) == 1 and "`A` is advanced by `i_b * T`" in found[0].message
    found = hits(RULE, LOCAL.format(row="i_b * NT"))
    assert len(found) == 1 and "`A` is advanced by `i_b * NT`" in found[0].message
    assert hits(RULE, LOCAL.format(row="bos")) == []


def test_the_length_of_the_batch_counts_where_sequences_are_not_packed() -> None:
    store = "tl.store(A + (i_b * T + i_t) * H * K + i_h * K + o_k, b_k)"
    whole = LOCAL.format(row="i_b * T")
    assert hits(RULE, whole.replace(store, f"if not IS_VARLEN:\n        {store}")) == []
    assert hits(RULE, whole.replace("T = eos - bos", "n = eos - bos")) == []


VECTOR = """
@triton.jit
def kernel(x, scale, stride, BT: tl.constexpr):
    i = tl.program_id(0)
    tl.store(scale + i * BT * stride + tl.arange(0, BT), tl.load(x + i))


def quantize(x):
    scale = torch.empty({shape}, device=x.device)
    kernel[(x.shape[0] // 16,)](x, scale, scale.stride(0), 16)
"""


def test_a_stride_of_one_needs_no_factor() -> None:
    assert hits(RULE, VECTOR.format(shape="x.shape[0]")) == []
    assert len(hits(RULE, VECTOR.format(shape="(x.shape[0], 2)"))) == 1


GROUPED = """
    @triton.jit
    def kernel(k, g, a_log, o, T, H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr):
        i_nh = tl.program_id(0)
        i_n, i_hv = i_nh // HV, i_nh % HV
        i_h = i_hv // (HV // H)
        o_k = tl.arange(0, K)
        bos = i_n * T
        b_k = tl.load(k + (bos * H + i_h) * K + o_k)
        b_g = tl.load(g + (bos * HV + i_hv) * K + o_k)
        b_a = tl.load(a_log + VECTOR)
        tl.store(o + (bos * HV + i_hv) * K + o_k, JOINED)
"""


def test_a_vector_of_values_that_goes_by_the_smaller_head_index_is_found() -> None:
    code = GROUPED.replace("JOINED", "b_k * (tl.exp(b_a) * b_g)")
    (found,) = hits(RULE, code.replace("VECTOR", "i_h"))
    assert "`a_log` goes by `i_h` and is combined with `g`, which goes by `i_hv`" in found.message
    assert hits(RULE, code.replace("VECTOR", "i_hv")) == []


def test_a_vector_that_scales_what_goes_by_the_same_head_index_is_silent() -> None:
    assert hits(RULE, GROUPED.replace("JOINED", "(b_k * b_a) * b_g").replace("VECTOR", "i_h")) == []
