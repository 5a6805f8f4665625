"""HZ102: stores and atomics beyond the data."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz102_unmasked_store import RULE

from .snippets import examples, hits

FIRST_STEP = """
    @triton.jit
    def kernel(x, y, z, N, T, D: tl.constexpr, BLOCK: tl.constexpr):
        o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = o < N
        b = tl.load(x + o, mask=valid)
        first = (o % (T * D)) // D == 0
        tl.store(y + o, b, mask=valid)
        tl.store(z + o // (T * D) * D + o % D, b, mask=MASK)
"""
ROWS = """
    @triton.jit
    def kernel(dv, dg, T, H: tl.constexpr, BT: tl.constexpr):
        i_t = tl.program_id(0)
        rows = i_t * BT + tl.arange(0, BT) < T
        tl.atomic_add(dv + (i_t * BT + tl.arange(0, BT)) * H, 1.0, mask=rows)
        tl.atomic_add(dg + (i_t * BT + tl.arange(0, BT)) * H, 1.0, sem="relaxed"MORE)
"""
BUFFER = """
    @triton.jit
    def kernel(A, T, BC: tl.constexpr, BT: tl.constexpr):
        o_t = tl.program_id(0) * BT + tl.arange(0, BT)
        tl.store(A + tl.program_id(1) * T * BC + o_t * BC, 1.0, mask=o_t < T)


    def run(q, B, H, T, BT, BC):
        A = q.new_empty(B, H, ROWS, BC, dtype=torch.float32)
        kernel[(triton.cdiv(T, BT), B * H)](A, T, BC=BC, BT=BT)
        return A
"""
TILES = """
    import tilelang.language as T


    @T.prim_func
    def main(x: T.Tensor((128, 64), "float16"), sizes: T.Tensor((4,), "int32"), amax: T.Tensor((4, 128), "float16")):
        with T.Kernel(4, 4, threads=128) as (row, group):
            kept = T.alloc_fragment((32,), "float16")
            scale = T.alloc_fragment((32,), "float16")
            for i in T.Parallel(32):
                scale[i] = VALUE
                kept[i] = T.if_then_else(row * 32 + i < sizes[group], scale[i], 0)
            for i in T.Parallel(32):
                amax[group, row * 32 + i] = scale[i]
"""


def test_the_documented_examples_are_told_apart() -> None:
    bad, good = examples(RULE)
    found = hits(RULE, bad)
    assert len(found) == 1
    assert "tl.store(y + offsets" in found[0].module.quote(found[0].node)
    assert "triton.cdiv" in found[0].message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(("mask", "count"), [("first", 1), ("first & valid", 0)])
def test_a_condition_on_the_remainder_does_not_bound_the_quotient(mask: str, count: int) -> None:
    assert len(hits(RULE, FIRST_STEP.replace("MASK", mask))) == count


@pytest.mark.parametrize(("more", "count"), [("", 1), (", mask=rows", 0)])
def test_an_atomic_needs_the_mask_of_its_siblings(more: str, count: int) -> None:
    found = hits(RULE, ROWS.replace("MORE", more))
    assert len(found) == count
    assert all("updated over `BT` lanes with no mask" in hit.message for hit in found)


@pytest.mark.parametrize(("rows", "count"), [("BT", 1), ("T", 0)])
def test_a_buffer_has_the_dimension_that_the_kernel_strides_by(rows: str, count: int) -> None:
    found = hits(RULE, BUFFER.replace("ROWS", rows))
    assert len(found) == count
    assert all("`A` is allocated without `T`" in hit.message for hit in found)


def test_a_number_of_tiles_made_from_the_length_stands_for_it() -> None:
    code = BUFFER.replace("ROWS", "NT * BT").replace("A = q", "NT = triton.cdiv(T, BT)\n        A = q")
    assert hits(RULE, code) == []


@pytest.mark.parametrize(
    ("value", "count"), [("x[0, i]", 1), ("T.if_then_else(row * 32 + i < sizes[group], x[0, i], 0)", 0)]
)
def test_rows_that_a_sibling_selects_are_selected_before_they_are_stored(value: str, count: int) -> None:
    assert len(hits(RULE, TILES.replace("VALUE", value))) == count


def test_a_limit_that_is_the_tensors_own_dimension_is_kept_by_the_compiler() -> None:
    code = TILES.replace("VALUE", "x[0, i]").replace("sizes[group]", "S - 1")
    assert hits(RULE, code.replace("amax: T.Tensor((4, 128)", "amax: T.Tensor((4, S)")) == []
    assert len(hits(RULE, code)) == 1


HEADS = """
    @triton.jit
    def kernel(x, dk, K: tl.constexpr, BK: tl.constexpr):
        o_k = tl.arange(0, BK)
        b_x = tl.load(x + o_k, mask=o_k < K, other=0)
        tl.atomic_add(dk + o_k, b_x)


    def launch(x, dk):
        kernel[(8,)](x, dk, K=x.shape[-1], BK=triton.next_power_of_2(x.shape[-1]))


    class Function(torch.autograd.Function):
        @staticmethod
        def backward(ctx, x, dk):
            launch(x, dk)


    def entry(x, dk):
        CHECK
        return Function.apply(x, dk)
"""


@pytest.mark.parametrize(
    ("check", "count"),
    [
        ("pass", 1),
        ("assert x.shape[-1] in [16, 32, 64]", 0),
        ("if x.shape[-1] not in (64, 128):\n            raise ValueError(x)", 0),
        ("assert x.shape[-1] in [16, 32, 96]", 1),
        ("assert x.shape[0] in [16, 32, 64]", 1),
    ],
)
def test_sizes_that_callers_restrict_to_powers_of_two_fill_their_tiles(check: str, count: int) -> None:
    assert len(hits(RULE, HEADS.replace("CHECK", check))) == count


@pytest.mark.parametrize(("stop", "count"), [("BT", 1), ("min(BT, T - i_t * BT)", 0)])
def test_a_loop_that_stores_the_rows_of_a_tile_ends_where_the_rows_end(stop: str, count: int) -> None:
    code = f"""
        @triton.jit
        def kernel(x, y, T, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
            i_t = tl.program_id(0)
            o_t = i_t * BT + tl.arange(0, BT)
            o_k = tl.arange(0, BK)
            m_k = o_k < K
            b_x = tl.load(x + o_t[:, None] * K + o_k[None, :], mask=(o_t < T)[:, None] & m_k[None, :], other=0)
            for j in range(0, {stop}):
                tl.store(y + (i_t * BT + j) * K + o_k, tl.sum(b_x, 0) * j, mask=m_k)
    """
    found = hits(RULE, code)
    assert len(found) == count
    assert all("is stored that nothing keeps below `T`" in hit.message for hit in found)


@pytest.mark.parametrize(("mask", "count"), [("o_s < TR", 1), ("(o_s < TR) & (o_t < T)", 0)])
def test_the_mask_of_a_store_bounds_the_index_that_its_pointer_goes_by(mask: str, count: int) -> None:
    code = f"""
        @triton.jit
        def kernel(x, cos, y, T, TR, starts, BT: tl.constexpr):
            o_t = tl.program_id(0) * BT + tl.arange(0, BT)
            o_s = o_t + tl.load(starts)
            b_c = tl.load(cos + o_s, mask=o_s < TR, other=0)
            b_x = tl.load(x + o_t, mask=o_t < T, other=0)
            tl.store(y + o_t, b_x * b_c, mask={mask})
    """
    found = hits(RULE, code)
    assert len(found) == count
    assert all("is stored by `o_t`, but its mask bounds `o_s`" in hit.message for hit in found)


DIAGONAL = """
    @triton.jit
    def kernel(x, y, N, M, diagonal: tl.constexpr, BLOCK: tl.constexpr):
        idx = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        if diagonal >= 0:
            row = idx
            col = row + diagonal
        else:
            col = idx
            row = col - diagonal
        b = tl.load(x + row * M + col, mask=(row < N) & (col < M), other=0)
        tl.store(y + idx, b, mask=MASK)


    def diag(x, diagonal):
        n = min(*x.shape) - abs(diagonal)
        y = torch.empty(n)
        kernel[(triton.cdiv(n, 128),)](x, y, x.shape[0], x.shape[1], diagonal, BLOCK=128)
        return y
"""


def test_lanes_are_bounded_by_a_name_that_branches_make_differently() -> None:
    assert hits(RULE, DIAGONAL.replace("MASK", "(row < N) & (col < M)")) == []


RATIO = """
    @triton.jit
    def kernel(x, y, T, R, D: tl.constexpr):
        i_h, i_t = tl.program_id(0), tl.program_id(1)
        o_d = tl.arange(0, D)
        tl.store(y + (i_t * R + i_h) * D + o_d, tl.load(x + i_t * D + o_d))


    def repeat(x, heads, ratio, tokens, value_heads, width):
        CHECK
        y = torch.empty((tokens, value_heads, width))
        kernel[(heads, tokens)](x, y, tokens, ratio, D=width)
        return y
"""


@pytest.mark.parametrize(("check", "count"), [("pass", 1), ("assert value_heads == heads * ratio", 0)])
def test_a_dimension_may_be_a_product_that_the_host_asserts(check: str, count: int) -> None:
    assert len(hits(RULE, RATIO.replace("CHECK", check))) == count
