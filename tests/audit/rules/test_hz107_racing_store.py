"""HZ107: programs along a split axis, or threads of a block, store to one address."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz107_racing_store import RULE

from .snippets import drops, examples, hits

SPLIT = """
    @triton.jit
    def kernel(k, v, o, z, T, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr):
        pid = tl.program_id(0)
        NV = tl.cdiv(V, BV)
        i_v, i_h = pid % NV, pid // NV
        o_v = i_v * BV + tl.arange(0, BV)
        b_v = tl.load(v + i_h * V + o_v, mask=o_v < V)
        b_k = tl.load(k + i_h)
        tl.store(o + i_h * V + o_v, b_v * b_k, mask=o_v < V)
        STORE
"""
TILES = """
    import tilelang.language as T


    @T.prim_func
    def main(x: T.Tensor((8, 64), "float32"), mean: T.Tensor((8,), "float32"), rows: T.Tensor((8, 64), "float32")):
        with T.Kernel(8, threads=128) as bc:
            BODY
"""
GRID = """
    @triton.jit
    def kernel(x, indices, T, H: tl.constexpr):
        i_t, i_h = tl.program_id(0), tl.program_id(1)
        i_n = tl.load(indices + i_t * 2)
        tl.store(x + (i_t * H + i_h), i_n)


    def run(x, offsets, indices, B, T, H):
        if offsets is None:
            N, NT = B, triton.cdiv(T, 64)
        else:
            N, NT = len(offsets) - 1, len(indices)
        grid = (NT, COUNT * H)
        kernel[grid](x, indices, T, H=H, offsets=offsets)
"""


def tiles(*body: str) -> str:
    return TILES.replace("BODY", "\n            ".join(body))


def test_the_documented_examples_are_told_apart() -> None:
    bad, good = examples(RULE)
    found = hits(RULE, bad)
    assert len(found) == 1
    assert "program_id(0)" in found[0].message and "the last one wins" in found[0].message
    assert found[0].verdict == "likely"
    assert hits(RULE, good) == []


def test_a_part_of_a_program_id_that_the_address_lacks_is_named() -> None:
    found = hits(RULE, SPLIT.replace("STORE", "tl.store(z + i_h, b_k)"))
    assert len(found) == 1
    assert "program_id(0) % NV" in found[0].message
    assert found[0].verdict == "possible"


@pytest.mark.parametrize(
    "store",
    [
        "tl.store(z + pid, b_k)",
        "tl.store(z + i_h, b_k, mask=i_v == 0)",
        "tl.atomic_add(z + i_h, b_k)",
        "tl.store(z + i_h * NV + i_v, b_k)",
    ],
)
def test_a_store_of_its_own_a_masked_one_and_an_atomic_do_not_race(store: str) -> None:
    assert hits(RULE, SPLIT.replace("STORE", store)) == []


def test_a_store_from_one_program_is_dismissed_with_its_guard() -> None:
    code = SPLIT.replace("STORE", "if i_v == 0:\n            tl.store(z + i_h, b_k)")
    assert hits(RULE, code) == []
    assert [drop.reason for drop in drops(RULE, code)] == ["guarded at line 14"]


def test_an_early_exit_at_the_end_of_the_axis_guards_nothing() -> None:
    code = SPLIT.replace("STORE", "if i_v * BV >= V:\n            return\n        tl.store(z + i_h, b_k)")
    assert len(hits(RULE, code)) == 1


def test_an_axis_of_one_program_has_nothing_to_race_with() -> None:
    bad, _ = examples(RULE)
    launch = "\n\ndef run(k, dw, D):\n    kernel[({first}, triton.cdiv(D, 64))](k, dw, D, BLOCK=64)\n"
    assert hits(RULE, bad + launch.format(first="1")) == []
    assert len(hits(RULE, bad + launch.format(first="k.shape[0]"))) == 1


LAUNCHED = """
    def run(k, v, o, z, K, V, H):
        BV = TILE
        NV = triton.cdiv(V, BV)
        CHECK
        kernel[(NV * H,)](k, v, o, z, 8, K=K, V=V, BV=BV)
"""


@pytest.mark.parametrize(
    ("tile", "check", "count"),
    [
        ("64", "pass", 1),
        ("min(64, triton.next_power_of_2(V))", "pass", 1),
        ("64", "assert NV == 1", 0),
        ("64", "if NV > 1:\n            raise ValueError(V)", 0),
        ("max(16, triton.next_power_of_2(V))", "pass", 0),
        ("max(16, triton.next_power_of_2(K))", "pass", 1),
    ],
)
def test_a_digit_that_a_launch_makes_one_has_nothing_to_race_with(tile: str, check: str, count: int) -> None:
    code = SPLIT.replace("STORE", "tl.store(z + i_h, b_k)") + LAUNCHED.replace("TILE", tile).replace("CHECK", check)
    assert len(hits(RULE, code)) == count


@pytest.mark.parametrize(("store", "count"), [("i_h", 1), ("i_h * tl.cdiv(V, BV) + i_v", 0)])
def test_digits_that_a_helper_returns_are_followed(store: str, count: int) -> None:
    helper = """
    @triton.jit
    def digits(X, Y=None):
        pid = tl.program_id(0).to(tl.int64)
        if Y is None:
            return pid % X, pid // X
        return pid % X, (pid // X) % Y, pid // (X * Y)
"""
    code = SPLIT.replace("STORE", f"tl.store(z + {store}, b_k)")
    code = code.replace("i_v, i_h = pid % NV, pid // NV", "i_v, i_h = digits(tl.cdiv(V, BV))")
    found = hits(RULE, helper + code)
    assert len(found) == count
    assert all("program_id(0) % (cdiv(V, BV))" in hit.message for hit in found)


def test_a_middle_digit_is_left_out_although_the_one_above_it_is_not() -> None:
    code = """
    @triton.jit
    def kernel(x, o, z, NV: tl.constexpr, NK: tl.constexpr):
        pid = tl.program_id(0)
        i_v, i_k, i_h = pid % NV, (pid // NV) % NK, pid // (NV * NK)
        b = tl.load(x + (i_h * NK + i_k) * NV + i_v)
        tl.store(o + (i_h * NK + i_k) * NV + i_v, b)
        tl.store(z + i_h * NV + i_v, b)
    """
    found = hits(RULE, code)
    assert ["program_id(0) // NV % NK" in hit.message for hit in found] == [True]


def test_work_in_the_other_branch_of_a_switch_makes_no_axis() -> None:
    code = """
    @triton.jit
    def kernel(x, z, D: tl.constexpr, ROWS: tl.constexpr):
        i_n = tl.program_id(0)
        if ROWS:
            tl.store(z + i_n, tl.sum(tl.load(x + i_n * D + tl.arange(0, D))))
        else:
            i_d = tl.program_id(1)
            tl.store(z + i_n * D + i_d, tl.load(x + i_n * D + i_d))
    """
    assert hits(RULE, code) == []
    assert len(hits(RULE, code.replace("if ROWS", "if i_n > 1"))) == 1


def test_a_loop_that_runs_for_one_program_only_is_a_guard() -> None:
    loop = "for _ in range(0, tl.where(i_v == 0, 1, 0)):\n            tl.store(z + i_h, b_k)"
    assert hits(RULE, SPLIT.replace("STORE", loop)) == []
    assert len(hits(RULE, SPLIT.replace("STORE", loop.replace("tl.where(i_v == 0, 1, 0)", "T")))) == 1


def test_a_literal_is_the_same_from_every_program_unless_atomics_follow_it() -> None:
    store = SPLIT.replace("STORE", "tl.store(z + i_h, 0.0)")
    assert hits(RULE, store) == []
    assert len(hits(RULE, store + "        tl.atomic_add(z + i_h, b_k)\n")) == 1


@pytest.mark.parametrize(("count", "found"), [("N", 1), ("B", 0)])
def test_chunks_of_all_sequences_are_not_counted_once_more_per_sequence(count: str, found: int) -> None:
    assert len(hits(RULE, GRID.replace("COUNT", count))) == found


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (("mean[bc] = 0.9 * mean[bc] + x[bc, 0]",), 1),
        (("mean[bc] += x[bc, 0]",), 1),
        (("if T.get_thread_binding() == 0:", "    mean[bc] = 0.9 * mean[bc] + x[bc, 0]"), 0),
        (("for j in T.Parallel(64):", "    rows[bc, j] = 2 * rows[bc, j]"), 0),
        (("mean[bc] = x[bc, 0]",), 0),
    ],
)
def test_one_thread_updates_an_element(body: tuple[str, ...], count: int) -> None:
    assert len(hits(RULE, tiles(*body))) == count


@pytest.mark.parametrize(("buffer", "count"), [("rows", 1), ("x", 0)])
def test_a_row_that_neighbouring_blocks_read_is_not_stored_in_place(buffer: str, count: int) -> None:
    code = tiles(
        "local = T.alloc_fragment((64,), 'float32')",
        "for j in T.Parallel(64):",
        f"    local[j] = {buffer}[bc + 1, j]",
        "for j in T.Parallel(64):",
        "    rows[bc, j] = local[j]",
    )
    assert len(hits(RULE, code)) == count


def test_rows_behind_a_table_cannot_be_told_to_meet() -> None:
    code = tiles(
        "local = T.alloc_fragment((64,), 'float32')",
        "for j in T.Parallel(64):",
        "    local[j] = cache[table[bc], bc // 2, j]",
        "for j in T.Parallel(64):",
        "    cache[table[bc], bc, j] = local[j]",
    ).replace("rows: T.Tensor((8, 64)", "table: T.Tensor((8,), 'int32'), cache: T.Tensor((8, 8, 64)")
    assert hits(RULE, code) == []
    assert len(hits(RULE, code.replace("table[bc]", "0"))) == 1


INLINED = """
    @triton.jit
    def inner(i_k, i_v, i_t, q, dq, dg, K: tl.constexpr, BK: tl.constexpr):
        o_k = i_k * BK + tl.arange(0, BK)
        b_q = tl.load(q + i_t * K + o_k) * tl.load(q + i_v)
        tl.store(dq + (i_v * 8 + i_t) * K + o_k, b_q)
        STORE


    @triton.jit
    def outer(q, dq, dg, K: tl.constexpr, BK: tl.constexpr, NV: tl.constexpr):
        i_kv, i_t = tl.program_id(0), tl.program_id(1)
        i_k, i_v = i_kv // NV, i_kv % NV
        CALL
"""
CALL = "inner(i_k, i_v, i_t, q, dq, dg, K=K, BK=BK)"


def test_a_device_function_stores_with_the_program_ids_of_its_caller() -> None:
    store = "tl.store(dg + i_v * 8 + i_t, tl.sum(b_q, 0))"
    code = INLINED.replace("CALL", CALL)
    found = hits(RULE, code.replace("STORE", store))
    assert len(found) == 1 and "program_id(0) // NV" in found[0].message and found[0].function.name == "inner"
    assert hits(RULE, code.replace("STORE", "tl.store(dg + (i_k * 4 + i_v) * 8 + i_t, tl.sum(b_q, 0))")) == []
    assert hits(RULE, code.replace("STORE", f"if i_k == 0:\n            {store}")) == []
    guarded = INLINED.replace("CALL", f"if i_k == 0:\n            {CALL}")
    assert hits(RULE, guarded.replace("STORE", store)) == []


FLAT = """
    import tilelang
    import tilelang.language as T

    def make(n, bc, m):
        EARLIER

        @T.prim_func
        def main(x: T.Tensor((n, bc), "float32"), y: T.Tensor((n * bc,), "float32")):
            with T.Kernel(1, threads=128) as b:
                s = T.alloc_shared([n * bc], "float32")
                for i, j in T.Parallel(n, bc):
                    s[INDEX] = x[i, j]
        return main
"""


@pytest.mark.parametrize(
    ("index", "earlier", "found"),
    [
        ("i * n + j", "pass", 1),
        ("j + n * i", "pass", 1),
        ("8 + i * n + j", "pass", 1),
        ("i * bc + j", "pass", 0),
        ("j * n + i", "pass", 0),
        ("i * m + j", "pass", 0),
        ("i, j", "pass", 0),
        ("i * n + j", "assert n >= bc", 0),
        ("i * n + j // 2", "pass", 0),
    ],
)
def test_rows_of_a_flat_index_do_not_overlap(index: str, earlier: str, found: int) -> None:
    assert len(hits(RULE, FLAT.replace("INDEX", index).replace("EARLIER", earlier))) == found


def test_a_stride_in_numbers_covers_the_inner_loop() -> None:
    code = FLAT.replace("T.Parallel(n, bc)", "T.Parallel(4, 64)").replace("EARLIER", "pass")
    assert len(hits(RULE, code.replace("INDEX", "i * 32 + j"))) == 1
    assert hits(RULE, code.replace("INDEX", "i * 72 + j")) == []
