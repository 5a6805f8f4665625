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
