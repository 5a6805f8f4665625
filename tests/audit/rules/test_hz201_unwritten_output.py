"""HZ201: memory without a content of which rows stay unwritten."""

from __future__ import annotations

import ast

import pytest

from deltaproof.audit.rules.hz201_unwritten_output import RULE
from tests.audit.rules.snippets import drops, examples, hits

SLOTS = """
@triton.jit
def kernel(x, o, state, slots, D: tl.constexpr):
    n = tl.program_id(0)
    slot = tl.load(slots + n)
    r = tl.arange(0, D)
    if slot < 0:
        {padding}
        return
    b_s = tl.load(state + slot * D + r)
    tl.store(o + n * D + r, b_s * tl.load(x + n * D + r))
    tl.store(state + slot * D + r, b_s)


def run(x, state, slots, D):
    o = torch.{make}(x)
    kernel[(x.shape[0],)](x, o, state, slots, D)
    return o
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`state`" in hit.message and "length == 0" in hit.message
    assert hits(RULE, good) == []


def test_an_output_row_of_a_padding_slot_is_never_stored():
    (hit,) = hits(RULE, SLOTS.format(make="empty_like", padding="pass"))
    assert "`o`" in hit.message
    assert any("torch.empty_like" in quote.module.quote(quote.node) for quote in hit.quotes)


def test_zeros_or_a_store_in_the_padding_branch_define_it():
    assert hits(RULE, SLOTS.format(make="zeros_like", padding="pass")) == []
    assert hits(RULE, SLOTS.format(make="empty_like", padding="tl.store(o + n * D + r, 0.0)")) == []


def test_the_early_return_of_a_tile_behind_the_end_skips_no_row():
    code = """
    @triton.jit
    def kernel(x, o, cu_seqlens, BT: tl.constexpr):
        i_t, n = tl.program_id(0), tl.program_id(1)
        bos = tl.load(cu_seqlens + n)
        T = tl.load(cu_seqlens + n + 1) - bos
        if i_t * BT >= T:
            return
        r = i_t * BT + tl.arange(0, BT)
        tl.store(o + bos + r, tl.load(x + bos + r, mask=r < T), mask=r < T)


    def run(x, cu_seqlens, BT):
        o = torch.empty_like(x)
        kernel[(4, 4)](x, o, cu_seqlens, BT)
        return o
    """
    assert hits(RULE, code) == []


SHIFTED = """
@triton.jit
def kernel(x, cos, y, shifts, T, TR, BT: tl.constexpr):
    n = tl.program_id(0)
    r = tl.arange(0, BT)
    at = r + tl.load(shifts + n)
    mask = (r < T) & (at >= 0) & (at < TR)
    b = tl.load(x + n * T + r, mask=mask, other=0) * tl.load(cos + at, mask=mask, other=1)
    tl.store(y + n * T + r, b, mask={mask})


def run(x, cos, shifts, T, TR, inplace=False):
    y = torch.{make}(x) if not inplace else x
    kernel[(x.shape[0],)](x, cos, y, shifts, T, TR, BT=64)
    return y
"""


def test_a_store_masked_by_a_shifted_index_skips_rows():
    (hit,) = hits(RULE, SHIFTED.format(mask="mask", make="empty_like"))
    assert hit.function is not None and hit.function.name == "run"
    assert hits(RULE, SHIFTED.format(mask="mask", make="zeros_like")) == []
    assert hits(RULE, SHIFTED.format(mask="r < T", make="empty_like")) == []


def test_a_loaded_value_that_is_held_against_a_size_shifts_no_row():
    loaded = SHIFTED.replace("at = r + tl.load(shifts + n)", "at = tl.load(shifts + r, mask=r < T, other=-1)")
    assert hits(RULE, loaded.format(mask="mask", make="empty_like")) == []


TRIANGLE = """
@triton.jit
def kernel(A, N, BT: tl.constexpr, BC: tl.constexpr):
    n = tl.program_id(0)
    for s in range(BT // BC):
        for c in range({columns}):
            p = tl.make_block_ptr(A + n * BT * BT, (BT, BT), (BT, 1), (s * BC, c * BC), (BC, BC), (1, 0))
            tl.store(p, tl.zeros([BC, BC], dtype=tl.float32))


def run(N, BT, device):
    A = torch.empty(N, BT, BT, device=device)
    kernel[(N,)](A, N, BT, 16)
    return A
"""


def test_tiles_above_the_diagonal_stay_unwritten():
    (hit,) = hits(RULE, TRIANGLE.format(columns="s + 1"))
    assert "range(s + 1)" in hit.message
    assert hits(RULE, TRIANGLE.format(columns="BT // BC")) == []


def test_a_kernel_and_its_arguments_may_go_through_a_helper():
    code = TRIANGLE.format(columns="s + 1").replace(
        "kernel[(N,)](A, N, BT, 16)", 'launch(kernel, arguments={"A": A, "N": N, "BT": BT, "BC": 16})'
    )
    assert len(hits(RULE, code)) == 1


def test_an_atomic_sum_needs_a_start():
    code = """
    @triton.jit
    def kernel(x, total, D: tl.constexpr):
        r = tl.arange(0, D)
        tl.atomic_add(total + r, tl.load(x + tl.program_id(0) * D + r))


    def run(x, D):
        total = torch.{make}(D, device=x.device)
        {before}
        kernel[(x.shape[0],)](x, total, D)
        return total
    """
    (hit,) = hits(RULE, code.format(make="empty", before="pass"))
    assert "atomics" in hit.message
    assert hits(RULE, code.format(make="zeros", before="pass")) == []
    assert hits(RULE, code.format(make="empty", before="total.zero_()")) == []
    assert hits(RULE, code.format(make="empty", before="clear(total)")) == []
    assert len(drops(RULE, code.format(make="empty", before="clear(total)"))) == 1
    tuned = "@triton.autotune(configs=[triton.Config({'BM': 64}, pre_hook=zero(['NAME']))], key=['D'])\n    @triton.jit"
    for name, found in (("total", 0), ("x", 1)):
        hooked = code.replace("@triton.jit", tuned.replace("NAME", name)).replace("{'BM': 64}", "{{'BM': 64}}")
        assert len(hits(RULE, hooked.format(make="empty", before="pass"))) == found


def test_a_tile_that_straddles_the_written_rows():
    code = """
    @triton.jit
    def kernel(u, T, C, BT: tl.constexpr):
        r = tl.arange(0, BT)
        total = tl.zeros([BT], dtype=tl.float32)
        for start in range(0, T, BT):
            rows = start + r
            if start < T - C:
                total += tl.load(u + rows, mask=rows < {bound}, other=0)
        tl.store(u + T - C + r, total, mask=r < C)
    """
    (hit,) = hits(RULE, code.format(bound="T"))
    assert "start < T - C" in hit.message
    assert hits(RULE, code.format(bound="T - C")) == []


def test_a_staging_buffer_is_copied_back_whole():
    code = """
    def run(x, output, state_indices):
        saved = None
        if output.dtype != torch.bfloat16:
            saved = output
            output = {make}
        launch(x, output, state_indices)
        if saved is not None:
            saved.copy_(output)
    """
    (hit,) = hits(RULE, code.format(make="torch.empty_like(output, dtype=torch.bfloat16)"))
    assert "state_indices" in hit.message
    assert hits(RULE, code.format(make="output.to(torch.bfloat16)")) == []


def test_an_input_is_made_up_from_undefined_memory():
    code = """
    def run(self, x, ids=None):
        if ids is None:
            ids = x.new_{make}
        else:
            ids = ids.contiguous()
        return self.kernel(x, ids)
    """
    assert len(hits(RULE, code.format(make="empty(x.shape[0], dtype=torch.int32)"))) == 1
    assert hits(RULE, code.format(make="zeros(x.shape[0], dtype=torch.int32)")) == []
    assert hits(RULE, code.format(make="empty(1, dtype=torch.int32)")) == []


def test_a_kernel_that_is_told_that_an_input_is_missing_does_not_read_it():
    code = """
    def run(self, x, ids=None):
        self.kernel = self.build(x.shape, {told})
        if ids is None:
            ids = x.new_empty(x.shape[0], dtype=torch.int32)
        else:
            ids = ids.contiguous()
        return self.kernel(x, ids)
    """
    assert hits(RULE, code.format(told="ids is not None")) == []
    assert len(hits(RULE, code.format(told="x.dtype"))) == 1


def test_an_output_that_the_caller_left_out_is_no_input():
    code = """
    def run(x, out=None):
        if out is None:
            out = torch.empty_like(x)
        launch(x, out)
        return out
    """
    assert hits(RULE, code) == []


def test_a_return_before_the_launch():
    code = """
    def run(x, w):
        M, K = x.shape
        N = w.shape[1]
        out = torch.empty(M, N)
        if {test}:
            return out
        launch(x, w, out)
        return out
    """
    assert len(hits(RULE, code.format(test="K == 0"))) == 1
    assert hits(RULE, code.format(test="M == 0")) == []


def test_a_grid_from_a_hint():
    code = """
    def run(a, b, total, longest, longest_device, block):
        c = torch.empty((total, b.shape[1]))
        tiles = triton.cdiv({rows}, block)
        launch((tiles,), a, b, c, longest_device)
        return c
    """
    (hit,) = hits(RULE, code.format(rows="longest"))
    assert "longest_device" in hit.message
    assert hits(RULE, code.format(rows="total")) == []


def test_tilelang_stores_that_stop_at_a_length():
    code = """
    import tilelang
    import tilelang.language as T

    @T.prim_func
    def main(X: T.Tensor((4, 64), "float32"), lens: T.Tensor((4,), "int32"), Y: T.Tensor((4, 64), "float32")):
        with T.Kernel(4) as b:
            length = lens[b]
            for i in T.Parallel(64):
                if i < length:
                    Y[b, i] = X[b, i]
    """
    (hit,) = hits(RULE, code)
    assert "`Y`" in hit.message
    code += "            else:\n                        Y[b, i] = 0\n"
    assert hits(RULE, code) == []


def test_tilelang_buffer_that_no_thread_may_set():
    code = """
    import tilelang
    import tilelang.language as T

    def select(counts: T.Tensor((65,), "int32"), out: T.Tensor((1,), "int32"), k: int):
        with T.Kernel(1, threads=64) as b:
            tx = T.get_thread_binding()
            found = T.alloc_shared([1], "int32")
            {fill}
            if counts[tx] > k and counts[tx + 1] <= k:
                found[0] = tx
            T.sync_threads()
            out[0] = found[0]
    """
    assert len(hits(RULE, code.format(fill="pass"))) == 1
    assert hits(RULE, code.format(fill="T.fill(found, 0)")) == []


def test_tilelang_clears_only_the_rest_of_the_last_tile():
    code = """
    import tilelang
    import tilelang.language as T

    @T.prim_func
    def main(ends: T.Tensor((4,), "int32"), Y: T.Tensor((256,), "float32"), size: T.int32):
        with T.Kernel(4) as b:
            left, end = b * 64, ends[b]
            for j in T.Parallel(64):
                if {test}:
                    Y[{row}] = 0
    """
    assert len(hits(RULE, code.format(test="left + j >= end and left + j < size", row="left + j"))) == 1
    assert hits(RULE, code.format(test="end + j < size", row="end + j")) == []


WALKED = """
@triton.jit
def kernel(q, a, T, BT: tl.constexpr, BS: tl.constexpr):
    i_t, i_b = tl.program_id(0), tl.program_id(1)
    p_a = tl.make_block_ptr(a + i_b * T * T, (T, T), (T, 1), (i_t * BT, 0), (BT, BS), (1, 0))
    for s in range({first}):
        tl.store(p_a, tl.load(q + s), boundary_check=(0, 1))
        p_a = tl.advance(p_a, (0, BS))
    p_a = tl.make_block_ptr(a + i_b * T * T, (T, T), (T, 1), (i_t * BT, i_t * BT), (BT, BS), (1, 0))
    for s in range({second}):
        tl.store(p_a, tl.load(q + s), boundary_check=(0, 1))
        p_a = tl.advance(p_a, (0, BS))


def run(q, B, T):
    a = {made}
    kernel[(4, B)](q, a, T, 64, 32)
    return {back}
"""
BELOW = {
    "first": "0, i_t * BT, BS",
    "second": "i_t * BT, (i_t + 1) * BT, BS",
    "made": "q.new_empty(B, T, T)",
    "back": "a",
}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({}, 1),
        ({"second": "i_t * BT, T, BS"}, 0),
        ({"made": "q.new_zeros(B, T, T)"}, 0),
        ({"back": "q"}, 0),
        ({"first": "0, T, BS"}, 0),
    ],
)
def test_columns_that_are_walked_up_to_the_programs_own_row(other: dict[str, str], found: int):
    found_here = hits(RULE, WALKED.format(**{**BELOW, **other}))
    assert len(found_here) == found
    assert all("new_empty" in ast.unparse(each.node) for each in found_here)


COLUMNS = """
@triton.jit
def kernel(q, a, T, N, NS: tl.constexpr, BS: tl.constexpr):
    i_t = tl.program_id(0)
    o = tl.arange(0, BS)
    for s in range({span}):
        tl.store(a + {row} + s * BS + o, tl.load(q + s))


def run(q, T):
    a = torch.empty(T, T, device=q.device)
    kernel[(T,)](q, a, T, 4, 4, 32)
    return a
"""


@pytest.mark.parametrize(
    ("span", "row", "found"),
    [
        ("0, i_t + 1", "i_t * T", 1),
        ("i_t, N", "i_t * T", 1),
        ("0, N", "i_t * T", 0),
        ("i_t * NS, i_t * NS + NS", "0", 0),
        ("0, tl.minimum(BS, T - i_t * BS)", "i_t * T", 0),
    ],
)
def test_columns_in_a_loop_beside_the_programs_row(span: str, row: str, found: int):
    assert len(hits(RULE, COLUMNS.format(span=span, row=row))) == found
