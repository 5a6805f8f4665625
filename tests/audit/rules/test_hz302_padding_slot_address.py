"""padding-slot-address: rows that pad a batch carry no slot."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz302_padding_slot_address import RULE
from tests.audit.rules.snippets import drops, examples, hits

RAW = """
@triton.jit
def step(pool, state_indices, x, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(state_indices + row).to(tl.int64)
    o_k = tl.arange(0, K)
    p = pool + slot * K + o_k
    b = tl.load(p)
    tl.store(p, b + tl.load(x + row * K + o_k))
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert len(hits(RULE, bad)) == 1
    assert hits(RULE, good) == []


def test_a_raw_index_is_reported_where_it_reads_and_where_it_writes():
    found = hits(RULE, RAW)
    assert [hit.verdict for hit in found] == ["possible", "likely"]
    assert all("`slot` comes from `state_indices`" in hit.message for hit in found)
    assert found[0].quotes[0].node.lineno == 8


def test_an_early_return_guards_all_that_follows():
    guarded = RAW.replace("    o_k =", "    if slot < 0:\n        return\n    o_k =")
    assert hits(RULE, guarded) == []
    assert "guarded at line" in drops(RULE, guarded)[0].reason


def test_an_early_return_below_a_compile_time_flag_guards_too():
    flagged = RAW.replace("    o_k =", "    if True:\n        if slot == -1:\n            return\n    o_k =")
    assert hits(RULE, flagged) == []


def test_a_mask_that_tests_the_index_guards():
    masked = RAW.replace("tl.load(p)", "tl.load(p, mask=slot >= 0, other=0)").replace("o_k))", "o_k), mask=slot >= 0)")
    assert hits(RULE, masked) == []


def test_a_mask_over_columns_does_not_guard():
    masked = RAW.replace("tl.load(p)", "tl.load(p, mask=o_k < K, other=0)")
    assert len(hits(RULE, masked)) == 2


@pytest.mark.parametrize(
    "clamp",
    [
        "slot = tl.maximum(slot, 0)",
        "slot = tl.where(slot < 0, 0, slot)",
        "slot = 0 if slot < 0 else slot",
        "if slot < 0:\n        slot = 0",
    ],
)
def test_a_clamp_is_no_guard_for_a_store(clamp: str):
    found = hits(RULE, RAW.replace("    o_k =", f"    {clamp}\n    o_k ="))
    assert len(found) == 1
    assert "a real slot" in found[0].message


def test_a_test_after_the_clamp_guards_nothing():
    late = RAW.replace("    o_k =", "    slot = tl.maximum(slot, 0)\n    if slot < 0:\n        return\n    o_k =")
    assert len(hits(RULE, late)) == 1


def test_a_clamped_load_with_a_guarded_store_is_well():
    good = RAW.replace("    o_k =", "    live = slot >= 0\n    slot = tl.maximum(slot, 0)\n    o_k =").replace(
        "o_k))", "o_k), mask=live)"
    )
    assert hits(RULE, good) == []


def test_chunk_tables_and_page_tables_are_no_slots():
    assert hits(RULE, RAW.replace("state_indices", "chunk_indices")) == []
    assert hits(RULE, RAW.replace("state_indices", "weight_indices")) == []


def test_a_view_of_a_cute_tensor_is_followed_to_its_copy():
    kernel = """
    @cute.kernel
    def step(pool: cute.Tensor, slots: cute.Tensor):
        row, _, _ = cute.arch.block_idx()
        slot = slots[row]
        view = pool[(slot, None)]
        if GUARD:
            tile = cute.local_tile(view, (1, 4), (0, 0))
            cute.autovec_copy(regs, tile)
    """
    assert [hit.verdict for hit in hits(RULE, kernel.replace("GUARD", "row >= 0"))] == ["likely"]
    assert hits(RULE, kernel.replace("GUARD", "slot >= 0")) == []


def test_a_pool_that_is_gathered_and_written_back_on_the_host():
    host = """
    def step(pool_state, state_indices, x):
        state = pool_state[state_indices].clone()
        state += x
        pool_state[state_indices] = state
    """
    assert len(hits(RULE, host)) == 1
    assert (
        hits(RULE, host.replace("        state +=", "        assert (state_indices >= 0).all()\n        state +="))
        == []
    )


def test_sequence_numbers_that_may_both_be_padding():
    kernel = """
    @triton.jit
    def weigh(seq_idx, w, o, T: tl.constexpr):
        o_t = tl.arange(0, T)
        last = tl.load(seq_idx + T - 1)
        mine = tl.load(seq_idx + o_t)
        same = (mine == last)MORE
        tl.store(o + o_t, tl.where(same, tl.load(w + o_t), 0.0))
    """
    assert len(hits(RULE, kernel.replace("MORE", ""))) == 1
    assert hits(RULE, kernel.replace("MORE", " & (last >= 0)")) == []


def test_a_flag_that_is_set_below_the_test_guards():
    flagged = RAW.replace("    o_k =", "    live = False\n    if slot >= 0:\n        live = True\n    o_k =").replace(
        "    b = tl.load(p)\n    tl.store", "    if live:\n        b = tl.load(p)\n        tl.store"
    )
    assert hits(RULE, flagged) == []


def test_a_branch_for_callers_without_padding():
    chosen = RAW.replace("x, K:", "x, HAS_PADDING: tl.constexpr, K:").replace(
        "    b = tl.load(p)\n    tl.store(p, b + tl.load(x + row * K + o_k))",
        "    if HAS_PADDING:\n        if slot >= 0:\n            tl.store(p, 0.0)\n    else:\n        tl.store(p, 0.0)",
    )
    assert hits(RULE, chosen) == []


def test_a_flag_that_is_narrowed_later_still_guards():
    flagged = RAW.replace("    o_k =", "    live = False\n    if slot >= 0:\n        live = True\n    o_k =").replace(
        "    b = tl.load(p)\n    tl.store",
        "    live = live and row % 2 == 1\n    if live and row > 0:\n        b = tl.load(p)\n        tl.store",
    )
    assert hits(RULE, flagged) == []


def test_a_mask_over_rows_that_the_caller_gives_selects_them():
    masked = RAW.replace("x, K:", "x, row_mask, K:").replace(
        "    o_k =", "    if not tl.load(row_mask + row):\n        return\n    o_k ="
    )
    assert hits(RULE, masked) == []
    assert len(hits(RULE, masked.replace("row_mask", "weights"))) == 2


RAGGED = """
@triton.jit
def step(pool, state_indices, x, cu_seqlens, T, RAGGED: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(cu_seqlens + row), tl.load(cu_seqlens + row + 1)
    length = last - first
    if length == 0:
        return
    slot = tl.load(state_indices + row).to(tl.int64)
    o_k = tl.arange(0, K)
    tl.store(pool + slot * K + o_k, tl.load(x + first * K + o_k))
"""


def test_a_row_that_pads_a_ragged_batch_has_no_tokens():
    assert hits(RULE, RAGGED) == []
    assert len(hits(RULE, RAGGED.replace("length == 0", "K == 0"))) == 1


def test_where_the_batch_may_be_dense_padded_rows_have_tokens():
    dense = RAGGED.replace(
        "    length = last - first\n", "    length = T\n    if RAGGED:\n        length = last - first\n"
    )
    assert len(hits(RULE, dense)) == 1


def test_a_role_that_is_called_for_rows_with_tokens_only():
    kernel = """
    class Kernel:
        @cute.kernel
        def kernel(self, pool: cute.Tensor, slots: cute.Tensor, cu_seqlens: cute.Tensor):
            row, _, _ = cute.arch.block_idx()
            work = Work(row=row, seq_len=cu_seqlens[row + 1] - cu_seqlens[row])
            if CALLED:
                self.role(pool, slots, work)

        @cute.jit
        def role(self, pool: cute.Tensor, slots: cute.Tensor, work):
            slot = slots[work.row]
            cute.autovec_copy(regs, pool[(slot, None)])
    """
    assert len(hits(RULE, kernel.replace("CALLED", "row != 0"))) == 1
    assert hits(RULE, kernel.replace("CALLED", "work.seq_len != 0")) == []


def test_a_view_that_is_taken_before_the_guard_and_handed_on_below_it():
    kernel = """
    @cute.kernel
    def step(pool: cute.Tensor, slots: cute.Tensor):
        row, _, _ = cute.arch.block_idx()
        slot = slots[row]
        view = pool[(slot, None)]
        if GUARD:
            start_tile(regs, view)
    """
    assert len(hits(RULE, kernel.replace("GUARD", "row >= 0"))) == 1
    assert hits(RULE, kernel.replace("GUARD", "slot >= 0")) == []


def test_a_view_of_either_branch_is_followed():
    kernel = """
    @cute.kernel
    def step(pool: cute.Tensor, own: cute.Tensor, slots: cute.Tensor, shared: cutlass.Constexpr):
        row, _, _ = cute.arch.block_idx()
        slot = slots[row]
        if shared:
            view = pool[(slot, None)]
        else:
            view = own[(row, None)]
        cute.autovec_copy(regs, view)
    """
    found = hits(RULE, kernel)
    assert [(hit.verdict, hit.module.quote(hit.node)) for hit in found] == [("likely", "view = pool[(slot, None)]")]


def test_indices_that_torch_refused_before():
    host = """
    def step(pool_state, conv_state, state_indices, x):
        idx = state_indices.to(torch.long)
        window = conv_state.index_select(0, idx)
        state = pool_state[idx]
        pool_state[idx] = state + window
    """
    assert hits(RULE, host) == []
    assert len(hits(RULE, host.replace("conv_state.index_select(0, idx)", "x"))) == 1


def test_sequence_numbers_whose_padding_meets_padding_only():
    kernel = """
    @triton.jit
    def mix(seq_idx, w, o, T: tl.constexpr):
        o_t = tl.arange(0, T)
        same = tl.load(seq_idx + o_t)[:, None] == tl.load(seq_idx + o_t)[None, :]
        tl.store(o + o_t, tl.where(same, 1.0, 0.0))
    """
    assert hits(RULE, kernel) == []


CAMEL = """
    @triton.jit
    def kernel(State, StateIndices, X, D, BD: tl.constexpr):
        i_b = tl.program_id(0)
        o_d = tl.arange(0, BD)
        slot = tl.load(StateIndices + i_b)
        GUARD
        b_x = tl.load(X + i_b * D + o_d, mask=o_d < D, other=0)
        tl.store(State + slot * D + o_d, b_x, mask=o_d < D)
"""


@pytest.mark.parametrize(("guard", "count"), [("pass", 1), ("if slot < 0:\n            return", 0)])
def test_names_in_camel_case_read_as_those_in_snake_case(guard: str, count: int) -> None:
    assert len(hits(RULE, CAMEL.replace("GUARD", guard))) == count
