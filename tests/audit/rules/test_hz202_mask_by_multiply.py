"""HZ202: exponentials that are multiplied by zero where they should be deselected."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz202_mask_by_multiply import RULE
from tests.audit.rules.snippets import drops, examples, hits

BLOCK = """
@triton.jit
def kernel(g, q, A, o, T, K: tl.constexpr, BC: tl.constexpr):
    i = tl.program_id(0)
    r = tl.arange(0, K)
    m_t = i * BC + tl.arange(0, BC) < T
    p_g = tl.make_block_ptr(g, (T, K), (K, 1), (i * BC, 0), (BC, K), (1, 0))
    p_q = tl.make_block_ptr(q, (T, K), (K, 1), (i * BC, 0), (BC, K), (1, 0))
    b_gn = tl.load(g + r)
    b_g = tl.load(p_g, boundary_check=(0, 1))
    b_q = tl.load(p_q, boundary_check=(0, 1)) * {gate}
    b_A = tl.load(A + tl.arange(0, BC)[:, None] * BC + tl.arange(0, BC)[None, :])
    b_o = {dot}
    tl.store(o + tl.arange(0, BC)[:, None] * K + r[None, :], b_o)
"""
GATE = "tl.exp(b_g - b_gn[None, :])"


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "every pair of rows" in hit.message
    assert hits(RULE, good) == []
    assert len(drops(RULE, good)) == 1


def test_gates_of_rows_past_the_end_are_zero():
    (hit,) = hits(RULE, BLOCK.format(gate=GATE, dot="tl.dot(b_A, b_q)"))
    assert "`b_g`" in hit.message


def test_a_select_on_the_rows_keeps_them_out():
    gate = f"tl.where(m_t[:, None], {GATE}, 0)"
    assert hits(RULE, BLOCK.format(gate=gate, dot="tl.dot(b_A, b_q)")) == []


def test_the_other_sign_is_bounded():
    gate = "tl.exp(b_gn[None, :] - b_g)"
    assert hits(RULE, BLOCK.format(gate=gate, dot="tl.dot(b_A, b_q)")) == []


def test_rows_that_no_sum_runs_over_poison_only_themselves():
    assert hits(RULE, BLOCK.format(gate=GATE, dot="tl.dot(b_q, b_A)")) == []
    assert len(hits(RULE, BLOCK.format(gate=GATE, dot="tl.dot(tl.trans(b_q), b_A)"))) == 1


def test_a_reference_in_the_middle_of_the_tile_bounds_both_sides():
    code = BLOCK.format(gate=GATE, dot="tl.dot(b_A, b_q)")
    middle = "half = min(T - i * BC, BC) // 2\n    b_gn = tl.load(g + (i * BC + half) * K + r)"
    last = "half = min(T - i * BC, BC) - 1\n    b_gn = tl.load(g + (i * BC + half) * K + r)"
    assert hits(RULE, code.replace("b_gn = tl.load(g + r)", middle)) == []
    assert len(hits(RULE, code.replace("b_gn = tl.load(g + r)", last))) == 1


MASKED = """
@triton.jit
def kernel(g, q, A, o, T, K: tl.constexpr, BC: tl.constexpr):
    t = tl.program_id(0) * BC + tl.arange(0, BC)
    r = tl.arange(0, K)
    b_gn = tl.load(g + r)
    b_g = tl.load(g + t[:, None] * K + r[None, :], mask=(t < T)[:, None], other={other})
    b_q = tl.load(q + t[:, None] * K + r[None, :], mask=(t < T)[:, None], other=0)
    b_o = tl.dot(tl.load(A + t), b_q * tl.exp(b_g - b_gn[None, :]))
    tl.store(o + t, b_o)
"""


def test_a_masked_load_fills_the_gate_too():
    assert len(hits(RULE, MASKED.format(other="0"))) == 1
    assert hits(RULE, MASKED.format(other='float("-inf")')) == []


def test_tiles_before_the_programs_own_are_whole():
    code = """
    @triton.jit
    def kernel(g, A, o, T, NC, BC: tl.constexpr):
        i = tl.program_id(0)
        r = tl.arange(0, BC)
        b_gn = tl.load(g + i * BC)
        b_o = tl.zeros([BC, BC], dtype=tl.float32)
        for j in range({tiles}):
            t = j * BC + r
            b_g = tl.load(g + t[:, None] + r[None, :], mask=t[:, None] < T, other=0)
            b_o += tl.dot(tl.load(A + t), tl.load(g + t) * tl.exp(b_g - tl.load(g + i * BC + r)[None, :]))
        tl.store(o + r, b_o)
    """
    assert hits(RULE, code.format(tiles="0, i")) == []
    assert len(hits(RULE, code.format(tiles="i + 1, NC"))) == 1


PRODUCT = """
@triton.jit
def kernel(s, o, BT: tl.constexpr):
    i = tl.arange(0, BT)
    mask = i[:, None] >= i[None, :]
    b_s = tl.load(s + i[:, None] * BT + i[None, :])
    b_p = {product}
    tl.store(o + i[:, None] * BT + i[None, :], b_p)
"""


def test_a_mask_is_multiplied_onto_an_exponential():
    assert len(hits(RULE, PRODUCT.format(product="tl.exp(b_s) * mask"))) == 1
    assert len(hits(RULE, PRODUCT.format(product="tl.exp(b_s) * mask.to(tl.float32)"))) == 1


def test_a_mask_on_finite_numbers_or_in_a_select_is_none_of_it():
    assert hits(RULE, PRODUCT.format(product="b_s * mask + tl.exp(-1.0)")) == []
    assert hits(RULE, PRODUCT.format(product="tl.where(mask, tl.exp(b_s), 0)")) == []
    assert hits(RULE, PRODUCT.format(product="tl.exp(tl.minimum(b_s, 0)) * mask")) == []


def test_a_product_that_is_selected_by_its_next_statement():
    code = """
    @triton.jit
    def kernel(g, A, o, BT: tl.constexpr):
        i = tl.arange(0, BT)
        b_g = tl.load(g + i)
        b_A = tl.load(A + i[:, None] * BT + i[None, :])
        b_A *= tl.exp(b_g[:, None] - b_g[None, :])
        {after}
        tl.store(o + i[:, None] * BT + i[None, :], b_A)
    """
    assert hits(RULE, code.format(after="b_A = tl.where(i[:, None] >= i[None, :], b_A, 0)")) == []
    assert hits(RULE, code.format(after="b_A = tl.where(b_A == b_A, b_A, 0)")) == []
    assert len(hits(RULE, code.format(after="b_A = tl.where(i[:, None] == 3, b_A, 0)"))) == 1


def test_tilelang_rows_that_another_kernel_reads():
    code = """
    import tilelang
    import tilelang.language as T

    @T.prim_func
    def forward(X: T.Tensor((4, 64), "float32"), lens: T.Tensor((4,), "int32"), lse: T.Tensor((4, 64), "float32")):
        with T.Kernel(4) as b:
            length = lens[b]
            for i in T.Parallel(64):
                {store}

    @T.prim_func
    def backward(lse: T.Tensor((4, 64), "float32"), dK: T.Tensor((4, 64), "float32")):
        with T.Kernel(4) as b:
            for i in T.Parallel(64):
                dK[b, i] = T.exp2(0.0 - lse[b, i]) * 0.0
    """
    (hit,) = hits(RULE, code.format(store="if i < length:\n                    lse[b, i] = X[b, i]"))
    assert hit.function is not None and hit.function.name == "forward"
    assert hits(RULE, code.format(store="lse[b, i] = X[b, i] if i < length else T.float32(0)")) == []


TILES = """
    @triton.jit
    def kernel(c, g, d, o, seqlen, BM: tl.constexpr, BK: tl.constexpr):
        i_m = tl.program_id(0) * BM + tl.arange(0, BM)
        o_k = tl.arange(0, BK)
        left = min(seqlen, 256)
        b_m = tl.load(g + i_m, mask=i_m < seqlen, other=0)
        acc = tl.zeros((BM, BK), dtype=tl.float32)
        for k in range(0, left, BK):
            b_c = tl.load(c + i_m[:, None] * 64 + k + o_k[None, :], mask=o_k[None, :] < left - k, other=0)
            b_d = tl.load(d + (k + o_k[:, None]) * BK + o_k[None, :], mask=o_k[:, None] < left - k, other=0)
            b_k = tl.load(g + k + o_k, mask=o_k < left - k, other=0)
            b_c *= tl.exp(EXPONENT)
            b_c = tl.where(MASK, b_c, 0.0)
            acc += tl.dot(b_c.to(d.dtype.element_ty), b_d)
        tl.store(o + i_m[:, None] * BK + o_k[None, :], acc, mask=i_m[:, None] < seqlen)
"""
LATER = "k + o_k[None, :] >= i_m[:, None]"
OUTER = "b_k[None, :] - b_m[:, None]"


@pytest.mark.parametrize(
    ("mask", "exponent", "count"),
    [
        (LATER, OUTER, 1),
        (f"({LATER}) & (k + o_k[None, :] < left)", OUTER, 0),
        (f"({LATER}) & (i_m[:, None] < seqlen)", OUTER, 1),
        (LATER, "b_m[:, None] - b_k[None, :]", 0),
    ],
)
def test_the_select_after_a_product_has_to_bound_the_columns_that_were_filled(
    mask: str, exponent: str, count: int
) -> None:
    found = hits(RULE, TILES.replace("MASK", mask).replace("EXPONENT", exponent))
    assert len(found) == count
    assert all("`dot` sums is NaN; the select that follows keeps such rows" in hit.message for hit in found)


@pytest.mark.parametrize(
    ("factor", "axis", "count"),
    [
        ("tl.exp(b_g - b_n[None, :])", 0, 1),
        ("tl.exp(b_g - b_n[None, :])", 1, 0),
        ("tl.exp(b_n[None, :] - b_g)", 0, 0),
        ("tl.where((o_t < T)[:, None], tl.exp(b_g - b_n[None, :]), 0)", 0, 0),
    ],
)
def test_a_sum_over_rows_is_like_a_dot(factor: str, axis: int, count: int) -> None:
    code = f"""
        @triton.jit
        def kernel(g, k, o, T, K: tl.constexpr, BT: tl.constexpr):
            o_t = tl.arange(0, BT)
            o_k = tl.arange(0, K)
            m = o_t[:, None] < T
            b_g = tl.load(g + o_t[:, None] * K + o_k[None, :], mask=m, other=0)
            b_k = tl.load(k + o_t[:, None] * K + o_k[None, :], mask=m, other=0)
            b_n = tl.load(g + (T - 1) * K + o_k)
            b_d = b_k * {factor}
            tl.store(o + o_k, tl.sum(b_d * b_k, {axis}))
    """
    assert len(hits(RULE, code)) == count
