"""HZ101: loads beyond the data, and tails that are masked by half."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz101_unmasked_load import RULE

from .snippets import drops, examples, hits

CAUSAL = """
    @triton.jit
    def kernel(q, l, o, T, BT: tl.constexpr):
        o_i = tl.arange(0, BT)
        i_t = tl.program_id(0)
        o_t = i_t * BT + o_i
        m_t = o_t < T
        b_q = tl.load(q + o_t, mask=m_t, other=0)
        b_l = tl.load(l + (i_t * BT + o_i[:, None]) * 4 + o_i[None, :] * 0, mask=MASK)
        tl.store(o + o_t, b_q * tl.sum(b_l, 1), mask=m_t)
"""
CUTE = """
    import cutlass
    import cutlass.cute as cute

    @cute.jit
    def mask(frag, coords, length, sizes, chunk_start, seq_len, is_varlen):
        C = 64
"""
SOFTMAX = """
    @triton.jit
    def kernel(q, k, o, T, K: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr):
        o_k = tl.arange(0, BK)
        b_q = tl.load(q + o_k, mask=o_k < K, other=0)
        b_m = tl.full([1], float("-inf"), dtype=tl.float32)
        b_a = tl.zeros([1], dtype=tl.float32)
        for i_s in range(0, T, BS):
            o_s = i_s + tl.arange(0, BS)
            b_k = tl.load(k + o_s[:, None] * K + o_k[None, :], mask=(o_s < T)[:, None] & (o_k < K)[None, :], other=0)
            b_s = tl.sum(b_q[None, :] * b_k, 1)
            SELECT
            b_m = tl.maximum(b_m, tl.max(b_s))
            b_a += tl.sum(tl.exp(b_s - b_m), 0)
        tl.store(o, tl.sum(b_a, 0))
"""


def in_cute(body: str) -> str:
    return CUTE + "".join(f"        {line}\n" for line in body.splitlines())


def test_the_documented_examples_are_told_apart() -> None:
    bad, good = examples(RULE)
    found = hits(RULE, bad)
    assert [hit.module.quote(hit.node) for hit in found] == ["b_g = tl.load(p_g)"]
    assert "`BK` lanes" in found[0].message and "below `K`" in found[0].message
    assert "o_k < K" in found[0].module.quote(found[0].quotes[0].node)
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("o_i[:, None] >= o_i[None, :]", 1),
        ("(o_i[:, None] >= o_i[None, :]) & m_t[:, None]", 0),
        ("m_t[:, None] & (o_i[None, :] <= o_i[:, None])", 0),
        ("m_t[None, :]", 1),
    ],
)
def test_a_causal_comparison_bounds_columns_only_where_rows_are_bounded(mask: str, count: int) -> None:
    assert len(hits(RULE, CAUSAL.replace("MASK", mask))) == count


def test_a_pointer_that_a_loop_moves_is_followed_to_its_start() -> None:
    code = """
        @triton.jit
        def kernel(k, g, T, K: tl.constexpr, BK: tl.constexpr, USE_G: tl.constexpr):
            o_k = tl.arange(0, BK)
            p_k = k + o_k
            if USE_G:
                p_g = g + o_k
            for _ in range(T):
                b_k = tl.load(p_k, mask=o_k < K)
                if USE_G:
                    b_g = tl.load(p_g)
                    p_g += K
                p_k += K
    """
    assert [hit.module.quote(hit.node) for hit in hits(RULE, code)] == ["b_g = tl.load(p_g)"]


@pytest.mark.parametrize(("check", "count"), [("(0,)", 1), ("(0, 1)", 0)])
def test_a_block_pointer_checks_the_dimensions_that_its_siblings_check(check: str, count: int) -> None:
    code = f"""
        @triton.jit
        def kernel(k, v, T, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
            p_k = tl.make_block_ptr(k, (T, K), (K, 1), (tl.program_id(0) * BT, 0), (BT, BK), (1, 0))
            p_v = tl.make_block_ptr(v, (T, K), (K, 1), (tl.program_id(0) * BT, 0), (BT, BK), (1, 0))
            b_k = tl.load(p_k, boundary_check=(0, 1))
            b_v = tl.load(p_v, boundary_check={check})
    """
    assert len(hits(RULE, code)) == count


def test_columns_that_fill_the_rows_of_the_layout_are_exact() -> None:
    code = """
        @triton.jit
        def kernel(A, b, T, H: tl.constexpr, BT: tl.constexpr):
            i_t, i_h = tl.program_id(0), tl.program_id(1)
            o_i = tl.arange(0, BT)
            o_t = i_t * BT + o_i
            b_b = tl.load(b + o_i, mask=o_i < T)
            b_A = tl.load(A + (o_t[:, None] * H + i_h) * BT + o_i[None, :], mask=(o_t < T)[:, None])
    """
    assert hits(RULE, code) == []


def test_an_unmasked_branch_beside_a_masked_one_is_dismissed_with_its_guard() -> None:
    code = """
        @triton.jit
        def kernel(x, y, N, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
            o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            if WHOLE:
                b = tl.load(x + o)
            else:
                b = tl.load(x + o, mask=o < N)
            tl.store(y + o, b, mask=o < N)
    """
    assert hits(RULE, code) == []
    assert [drop.reason for drop in drops(RULE, code)] == ["guarded at line 8"]


@pytest.mark.parametrize(("extent", "count"), [("x.shape[1] // 2", 0), ("triton.next_power_of_2(x.shape[1] // 2)", 1)])
def test_an_extent_that_every_launch_passes_exactly_needs_no_mask(extent: str, count: int) -> None:
    code = f"""
        @triton.jit
        def kernel(x, y, N, G: tl.constexpr):
            o = tl.program_id(0) * G + tl.arange(0, G)
            tl.store(y + o, tl.load(x + o), mask=o < N)


        def run(x, y):
            kernel[(2,)](x, y, x.shape[1], G={extent})
    """
    assert len(hits(RULE, code)) == count


def test_a_tile_count_that_the_host_rounds_up_needs_a_mask_unless_it_checks_for_a_multiple() -> None:
    code = """
        @triton.jit
        def kernel(x, y, BLOCK: tl.constexpr):
            o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.atomic_add(y, tl.sum(tl.load(x + o)))


        def run(x, y):
            BLOCK = 1024
            CHECK
            kernel[((x.numel() + BLOCK - 1) // BLOCK,)](x, y, BLOCK=BLOCK)
    """
    assert len(hits(RULE, code.replace("CHECK", ""))) == 1
    assert hits(RULE, code.replace("CHECK", "assert x.numel() % BLOCK == 0")) == []


@pytest.mark.parametrize(("select", "count"), [("", 1), ("b_s = tl.where(o_s < T, b_s, float('-inf'))", 0)])
def test_scores_of_keys_past_the_end_have_to_be_minus_infinity(select: str, count: int) -> None:
    found = hits(RULE, SOFTMAX.replace("SELECT", select or "pass"))
    assert len(found) == count
    assert all("`b_s`" in hit.message and "-inf" in hit.fix for hit in found)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("keep = coords[0] < length or coords[1] < length", 1),
        ("keep = coords[0] < length and coords[1] < length", 0),
        ("keep = coords[0] >= length or coords[1] >= length", 0),
        ("keep = chunk_start < 4 or seq_len < 4", 0),
        ("keep = chunk_start < cutlass.Float32(1.0) or seq_len < cutlass.Float32(1.0)", 0),
        ("out = coords[0] >= length or coords[0] < seq_len or coords[1] >= length or coords[1] < seq_len", 0),
    ],
)
def test_both_coordinates_have_to_be_in_range(body: str, count: int) -> None:
    assert len(hits(RULE, in_cute(body))) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("while sizes[length] > 4 and length < sizes.shape[0]:\n    length += 1", 1),
        ("if length < sizes.shape[0]:\n    seq_len = sizes[length]", 0),
        ("own = cute.make_tensor(sizes, C)\nif length < C and own[length] < 0:\n    length += 1", 0),
    ],
)
def test_a_dynamic_and_does_not_protect_the_read_beside_it(body: str, count: int) -> None:
    assert len(hits(RULE, in_cute(body))) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("if is_varlen:\n    valid_len = seq_len - chunk_start\nelse:\n    valid_len = C", 1),
        (
            "if is_varlen:\n    valid_len = seq_len - chunk_start\n"
            "else:\n    valid_len = min(seq_len - chunk_start, C)",
            0,
        ),
        ("if is_varlen:\n    if coords[0] >= length:\n        frag[0] = 0.0", 1),
        ("if is_varlen:\n    n = seq_len - chunk_start\n    if coords[0] >= n:\n        frag[0] = 0.0", 0),
        ("if is_varlen:\n    my_seq_len = seq_len - chunk_start\nelse:\n    my_seq_len = C", 0),
        ("if is_varlen:\n    if coords[0] >= length:\n        frag[0] = 0.0\nelse:\n    frag[0] = 1.0", 0),
    ],
)
def test_the_last_tile_is_partial_in_both_modes(body: str, count: int) -> None:
    assert len(hits(RULE, in_cute(body))) == count


TILE = """
    def largest(D, most):
        tile = most
        while RULE:
            tile //= 2
        return tile


    @triton.jit
    def kernel(x, w, y, D, BD: tl.constexpr):
        o_d = tl.program_id(0) * BD + tl.arange(0, BD)
        b_x = tl.load(x + o_d, mask=o_d < D, other=0)
        tl.store(y + o_d, b_x * tl.load(w + o_d), mask=o_d < D)


    def run(x, w, y):
        D = x.shape[-1]
        tile = largest(D, 256)
        kernel[(8,)](x, w, y, D, BD=tile)
"""


@pytest.mark.parametrize(("rule", "count"), [("D % tile != 0", 0), ("tile > 2 * D", 1)])
def test_a_tile_that_is_chosen_as_a_divisor_is_never_partial(rule: str, count: int) -> None:
    assert len(hits(RULE, TILE.replace("RULE", rule))) == count


@pytest.mark.parametrize(("stop", "count"), [("i_t * BT", 0), ("T", 1), ("(i_t + 1) * BT", 1)])
def test_tiles_before_the_programs_own_are_whole(stop: str, count: int) -> None:
    code = """
    @triton.jit
    def kernel(k, u, o, T, BT: tl.constexpr):
        i_t = tl.program_id(0)
        o_t = i_t * BT + tl.arange(0, BT)
        b = tl.zeros([BT], dtype=tl.float32)
        for i_s in range(0, STOP, BT):
            o_s = i_s + tl.arange(0, BT)
            b += tl.load(k + o_s, mask=o_s < T, other=0) * tl.load(u + o_s)
        tl.store(o + o_t, b, mask=o_t < T)
    """
    assert len(hits(RULE, code.replace("STOP", stop))) == count


PARTS = """
    @triton.jit
    def kernel(q, k, o, T, K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, NC: tl.constexpr):
        i_t, i_i, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        i_b, i_j = i_b // NC, i_b % NC
        o_c = tl.arange(0, BC)
        o_k = tl.arange(0, BK)
        m_k = o_k < K
        o_t = i_t * BT + START + o_c
        m_t = o_t < T
        GUARD
        b_q = tl.load(q + (i_b * T + o_t[:, None]) * K + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0)
        BODY
        tl.store(o + (i_b * T + o_t[:, None]) * K + o_k[None, :], b_q, mask=m_t[:, None] & m_k[None, :])
"""


def in_parts(body: str, guard: str = "pass", start: str = "i_i * BC") -> str:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return PARTS.replace("START", start).replace("GUARD", guard).replace("        BODY\n", lines)


@pytest.mark.parametrize(
    ("stop", "mask", "guard", "count"),
    [
        ("BC", "m_k", "pass", 1),
        ("min(BC, T - i_t * BT - i_i * BC)", "m_k", "pass", 0),
        ("BC", "m_k & (i_t * BT + i_i * BC + j < T)", "pass", 0),
        ("BC", "m_k", "if i_t * BT + i_i * BC >= T:\n            return", 1),
        ("BC", "m_k", "if i_t * BT + i_i * BC + BC > T:\n            return", 0),
        ("T", "m_k", "pass", 0),
        ("2", "m_k", "pass", 0),
    ],
)
def test_a_loop_over_the_rows_of_a_tile_ends_where_the_rows_end(stop: str, mask: str, guard: str, count: int) -> None:
    body = f"""for j in range(0, {stop}):
    b_q += tl.load(k + (i_b * T + i_t * BT + i_i * BC + j) * K + o_k, mask={mask}, other=0)[None, :]"""
    found = hits(RULE, in_parts(body, guard))
    assert len(found) == count
    assert all("`j` runs over a whole tile" in hit.message and "below `T`" in hit.message for hit in found)


def test_a_row_inside_a_condition_or_clamped_to_the_last_one_is_left_alone() -> None:
    inside = """for j in range(0, BC):
    if i_t * BT + i_i * BC + j < T:
        b_q += tl.load(k + (i_b * T + i_t * BT + i_i * BC + j) * K + o_k, mask=m_k, other=0)[None, :]"""
    clamped = """for j in range(0, BC):
    b_q += tl.load(k + (i_b * T + min(i_t * BT + i_i * BC + j, T - 1)) * K + o_k, mask=m_k, other=0)[None, :]"""
    assert hits(RULE, in_parts(inside)) == []
    assert hits(RULE, in_parts(clamped)) == []


def test_a_pointer_that_a_loop_moves_row_by_row_is_followed() -> None:
    body = """p_k = k + (i_b * T + i_t * BT + i_i * BC) * K + o_k
for j in range(0, BC):
    b_q += tl.load(p_k, mask=MASK, other=0)[None, :]
    p_k += K"""
    assert len(hits(RULE, in_parts(body.replace("MASK", "m_k")))) == 1
    assert hits(RULE, in_parts(body.replace("MASK", "m_k & (i_t * BT + i_i * BC + j < T)"))) == []


@pytest.mark.parametrize(
    ("start", "row", "guard", "count"),
    [
        ("i_i * BC", "i_t * BT + i_i * BC", "pass", 1),
        ("i_i * BC", "i_t * BT + i_i * BC", "if i_t * BT + i_i * BC >= T:\n            return", 0),
        ("i_i * BC", "i_t * BT + i_i * BC", "if i_t * BT + i_i * BC > T:\n            return", 1),
        ("i_i * BC", "i_t * BT + i_i * BC", "if i_i <= i_j:\n            return", 1),
        ("i_i * BC", "i_t * BT + i_i * BC", "if i_j <= i_i:\n            return", 0),
        ("0", "i_t * BT", "pass", 0),
        ("0", "i_t * BT + BT - 1", "pass", 1),
        ("0", "min(i_t * BT + BT, T) - 1", "pass", 0),
        ("0", "i_t * BT - 1", "pass", 0),
        ("i_i * BC", "min(i_t * BT + i_i * BC, T)", "pass", 1),
        ("i_i * BC", "min(i_t * BT + i_i * BC, T - 1)", "pass", 0),
        ("i_i * BC", "min(i_t * BT + i_i * BC, T)", "if i_t * BT + i_i * BC >= T:\n            return", 0),
        ("i_i * BC", "min(i_t * BT + i_i * BC, T)", "if i_t * BT + i_i * BC > T:\n            return", 1),
    ],
)
def test_a_reference_row_exists_or_is_masked(start: str, row: str, guard: str, count: int) -> None:
    body = f"b_q += tl.load(k + (i_b * T + {row}) * K + o_k, mask=m_k, other=0)[None, :]"
    assert len(hits(RULE, in_parts(body, guard, start))) == count


TILES = """
    import tilelang
    import tilelang.language as T

    def build(heads, seq_len, dim, block_M, block_N, is_causal, splits):
        CHECK

        @T.prim_func
        def main(Q: T.Tensor([seq_len, dim]), K: T.Tensor([seq_len, dim]), O: T.Tensor([seq_len, dim])):
            with T.Kernel(T.ceildiv(seq_len, block_M), threads=128) as bx:
                q = T.alloc_shared([block_M, dim], "float16")
                keys = T.alloc_shared([block_N, dim], "float16")
                kept = T.alloc_fragment([block_N], "uint8")
                s = T.alloc_fragment([block_M, block_N], "float")
                m = T.alloc_fragment([block_M], "float")
                T.copy(Q[bx * block_M, 0], q)
                for k in T.Pipelined(TURNS, num_stages=2):
                    T.copy(K[PLACE : PLACE + block_N, :], keys)
                    T.copy(KEPT[PLACE : PLACE + block_N], kept)
                    BEFORE
                    T.gemm(q, keys, s, transpose_B=True)
                    AFTER
                    T.reduce_max(s, m, dim=1, clear=False)
                    for i, j in T.Parallel(block_M, block_N):
                        s[i, j] = T.exp2(s[i, j] - m[i])

        return main
"""


def in_tiles(
    before: str = "T.clear(s)",
    after: str = "pass",
    turns: str = "T.ceildiv(seq_len, block_N)",
    place: str = "k * block_N",
    check: str = "pass",
) -> str:
    def block(text: str) -> str:
        return text.replace("\n", "\n" + " " * 20)

    code = TILES.replace("BEFORE", block(before)).replace("AFTER", block(after))
    return code.replace("TURNS", turns).replace("PLACE", place).replace("CHECK", check)


EACH = "for i, j in T.Parallel(block_M, block_N):\n    "
CAUSAL_TILE = EACH + "s[i, j] = T.if_then_else(bx * block_M + i >= k * block_N + j, 0, -T.infinity('float'))"
BOUND_TILE = EACH + "s[i, j] = T.if_then_else(k * block_N + j < seq_len, s[i, j], -T.infinity('float'))"


def modes(causal: str, other: str) -> str:
    return f"if is_causal:\n{_in(causal)}\nelse:\n{_in(other)}"


def _in(text: str) -> str:
    return "    " + text.replace("\n", "\n    ")


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ({}, 1),
        ({"after": BOUND_TILE}, 0),
        ({"before": CAUSAL_TILE}, 0),
        ({"before": modes(CAUSAL_TILE, "T.clear(s)")}, 1),
        ({"before": modes(CAUSAL_TILE, BOUND_TILE)}, 0),
        ({"before": modes(CAUSAL_TILE, "T.clear(s)"), "after": BOUND_TILE}, 0),
        ({"turns": "seq_len // block_N"}, 0),
        ({"check": "assert seq_len % block_N == 0"}, 0),
        ({"after": EACH + "if k * block_N + j >= seq_len:\n        s[i, j] = -T.infinity('float')"}, 0),
        ({"after": EACH + "s[i, j] = T.if_then_else(kept[j] != 0, s[i, j], -T.infinity('float'))"}, 0),
    ],
)
def test_scores_of_a_rounded_up_number_of_key_tiles_are_masked_in_every_mode(parts: dict[str, str], count: int) -> None:
    found = hits(RULE, in_tiles(**parts))
    assert len(found) == count
    assert all("`seq_len`" in hit.message and "T.gemm(q" in hit.module.quote(hit.node) for hit in found)


@pytest.mark.parametrize(("test", "count"), [("kept[j] != 0", 1), ("(kept[j] != 0) & (j < seq_len // splits)", 0)])
def test_a_mask_in_memory_does_not_end_where_a_split_ends(test: str, count: int) -> None:
    select = EACH + f"s[i, j] = T.if_then_else({test}, s[i, j], -T.infinity('float'))"
    code = in_tiles(
        after=select, turns="T.ceildiv(seq_len // splits, block_N)", place="(seq_len // splits) * bx + k * block_N"
    )
    assert len(hits(RULE, code)) == count


@pytest.mark.parametrize(
    ("test", "count"),
    [
        ("(bx * block_M + i < k * block_N + j) or (k * block_N + j >= seq_len)", 0),
        ("(bx * block_M + i >= k * block_N + j) and (k * block_N + j >= seq_len)", 1),
        ("is_causal and (k * block_N + j >= seq_len)", 0),
    ],
)
def test_an_element_is_removed_if_either_condition_asks_for_it(test: str, count: int) -> None:
    found = hits(RULE, in_tiles(before=EACH + f"s[i, j] = T.if_then_else({test}, -T.infinity('float'), 0)"))
    assert len(found) == count
    assert all("removed only where" in hit.message for hit in found)


SHIFTED = """
    @triton.jit
    def kernel(x, cos, y, T, TR, start, starts, R: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, S: tl.constexpr):
        i_t, i_b = tl.program_id(0), tl.program_id(1)
        o_t = i_t * BT + tl.arange(0, BT)
        if S:
            o_s = o_t + start
        else:
            o_s = o_t + tl.load(starts + i_b)
        o_r = tl.arange(0, BR)
        m_r = o_r < R
        b_c = tl.load(cos + o_s[:, None] * R + o_r[None, :], mask=(o_s < TR)[:, None] & m_r[None, :], other=0)
        b_x = tl.load(x + (i_b * T + o_t[:, None]) * R + o_r[None, :], mask=MASK & m_r[None, :], other=0)
        tl.store(y + (i_b * T + o_t[:, None]) * R + o_r[None, :], b_x * b_c, mask=(o_t < T)[:, None] & m_r[None, :])
"""


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("(o_s < TR)[:, None]", 1),
        ("(o_t < T)[:, None]", 0),
        ("(o_s < TR)[:, None] & (o_t < T)[:, None]", 0),
        ("(o_s[:, None] < TR)", 1),
    ],
)
def test_the_mask_bounds_the_index_that_the_pointer_goes_by(mask: str, count: int) -> None:
    found = hits(RULE, SHIFTED.replace("MASK", mask))
    assert len(found) == count
    assert all("by `o_t`" in hit.message and "its mask bounds `o_s` by `TR` only" in hit.message for hit in found)


@pytest.mark.parametrize(("mask", "count"), [("(o_t < T)[:, None]", 1), ("((o_t < T) & (o_s < TR))[:, None]", 0)])
def test_an_index_that_branches_make_differently_is_bounded_too(mask: str, count: int) -> None:
    load = "        b_f = tl.load(cos + o_s[:, None] * R + o_r[None, :], mask=OWN & m_r[None, :], other=0)\n"
    code = SHIFTED.replace("MASK", "(o_t < T)[:, None]").replace(
        "        b_x =", load.replace("OWN", mask) + "        b_x ="
    )
    found = hits(RULE, code)
    assert len(found) == count
    assert all("by `o_s`" in hit.message and "its mask bounds `o_t` by `T` only" in hit.message for hit in found)


@pytest.mark.parametrize(
    ("guard", "count"),
    [
        ("pass", 1),
        ("if i_t * BT >= T:\n            return", 1),
        ("if (i_t + 1) * BT > T:\n            return", 0),
    ],
)
def test_whole_tiles_need_no_other_bound(guard: str, count: int) -> None:
    code = SHIFTED.replace("MASK", "(o_s < TR)[:, None]").replace("o_r = tl", f"{guard}\n        o_r = tl")
    assert len(hits(RULE, code)) == count


def test_lanes_of_a_part_and_an_index_from_memory_are_left_alone() -> None:
    part = """
    @triton.jit
    def kernel(h, w, y, V: tl.constexpr, BV: tl.constexpr):
        i_v = tl.program_id(0)
        o_v = i_v * BV + tl.arange(0, BV)
        offs = tl.arange(0, BV)
        b_w = tl.load(w + offs, mask=offs < V, other=0)
        tl.store(y + o_v, tl.load(h + o_v, mask=o_v < V, other=0) * b_w, mask=o_v < V)
    """
    memory = """
    @triton.jit
    def kernel(ids, rows, x, y, N, BN: tl.constexpr):
        o_n = tl.program_id(0) * BN + tl.arange(0, BN)
        row = tl.load(ids + o_n, mask=o_n < N, other=0)
        b_s = tl.load(rows + row, mask=row < N, other=0)
        tl.store(y + o_n, b_s + tl.load(x + row, mask=o_n < N, other=0), mask=o_n < N)
    """
    assert hits(RULE, part) == []
    assert hits(RULE, memory) == []


HEAD = """
    @triton.jit
    def kernel(x, c, y, T, D, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
        o_t = tl.program_id(0) * BT + tl.arange(0, BT)
        o_d = tl.arange(0, BD)
        m_d = o_d < D
        m_t = o_t < T
        b_y = tl.load(x + o_t[:, None] * D + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0)
        for i_w in tl.static_range(0, TURNS):
            m_h = MASK
            b_h = tl.load(c + o_t[:, None] * D + o_d[None, :], mask=m_h[:, None] & m_d[None, :], other=0)
            b_y += b_h
        tl.store(y + o_t[:, None] * D + o_d[None, :], b_y, mask=m_t[:, None] & m_d[None, :])
"""


@pytest.mark.parametrize(
    ("mask", "turns", "count"),
    [("o_t < i_w", "W", 1), ("(o_t < i_w) & m_t", "W", 0), ("o_t < i_w", "T", 0)],
)
def test_a_loops_counter_is_no_length(mask: str, turns: str, count: int) -> None:
    found = hits(RULE, HEAD.replace("MASK", mask).replace("TURNS", turns))
    assert len(found) == count
    assert all("a loop's counter; a sibling keeps this index below `T`" in hit.message for hit in found)


FLAT = """
    @triton.jit
    def kernel(k, g, h, s_h, T: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, NT: tl.constexpr):
        i_k, i_bh = tl.program_id(0), tl.program_id(1)
        b_h = tl.zeros([BK], dtype=tl.float32)
        for i_t in range(NT):
            p_k = tl.make_block_ptr(k + i_bh * s_h, (K, T), (1, K), (i_k * BK, i_t * BT), (BK, BT), (0, 1))
            p_g = tl.make_block_ptr(g + i_bh * s_h, (T * K,), (1,), (ROW * K + i_k * BK,), (BK,), (0,))
            b_h *= tl.exp(tl.load(p_g, boundary_check=(0,)))
            b_h += tl.sum(tl.load(p_k, boundary_check=(0, 1)), 1)
        tl.store(h + i_bh * K + i_k * BK + tl.arange(0, BK), b_h, mask=i_k * BK + tl.arange(0, BK) < K)
"""


def test_a_row_of_a_flat_block_is_not_bounded_by_the_number_of_all_elements() -> None:
    (found,) = hits(RULE, FLAT.replace("ROW", "(i_t * BT + BT - 1)"))
    assert "it is the last row of a whole tile" in found.message
    assert hits(RULE, FLAT.replace("ROW", "(tl.minimum(i_t * BT + BT, T) - 1)")) == []
    assert hits(RULE, FLAT.replace("ROW", "(i_t * BT)")) == []


STEPPED = """
    @triton.jit
    def kernel(g, o, N, K, ONE: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr):
        o_k = tl.program_id(0) * TK + tl.arange(0, TK)
        if ONE:
            o_n = tl.arange(0, TN)
            off = o_n[:, None] * K + o_k
            s = tl.load(g + off, mask=(o_n < N)[:, None] & (o_k < K), other=0)
        else:
            o_n = tl.arange(0, TN)
            off = o_n[:, None] * K + o_k
            s = tl.zeros((TN, TK), tl.float32)
            for _ in range(0, N, TN):
                s += tl.load(g + off, mask=(o_n < N)[:, None] & (o_k < K), other=0)
                o_n += TN
                off += TN * K
        tl.store(o + o_k, tl.sum(s, 0), mask=o_k < K)
"""


def test_an_index_and_its_offsets_step_together_in_one_arm() -> None:
    assert hits(RULE, STEPPED) == []


PEELED = """
    @triton.jit
    def kernel(x, y, N, BN: tl.constexpr):
        offset = tl.arange(0, BN)
        acc = tl.zeros((BN,), tl.float32)
        for _ in range(0, TURNS):
            acc += tl.load(x + offset)
            offset += BN
        acc += tl.load(x + offset, mask=offset < N, other=0)
        tl.store(y, tl.sum(acc, 0))
"""


@pytest.mark.parametrize(
    ("turns", "count"), [("N // BN", 0), ("tl.cdiv(N, BN) - 1", 0), ("tl.cdiv(N, BN)", 1), ("(N + BN - 1) // BN", 1)]
)
def test_whole_tiles_before_a_masked_one_need_no_mask(turns: str, count: int) -> None:
    assert len(hits(RULE, PEELED.replace("TURNS", turns))) == count
