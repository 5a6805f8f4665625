"""HZ103: products of 32 bits that pass 2**31."""

from __future__ import annotations

import ast

import pytest

from deltaproof.audit.flow.dimensions import of_table
from deltaproof.audit.rules.hz103_narrow_offset import RULE
from tests.audit.rules.snippets import drops, examples, hits

KERNEL = """
@triton.jit
def kernel(x, y, h, cu_seqlens, chunk_offsets, slots, T, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
           BT: tl.constexpr, IS_VARLEN: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    o = tl.arange(0, BT)
    {body}
"""

ROWS = """
@triton.jit
def kernel(x, y, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0){cast}
    o = tl.arange(0, BD)
    tl.store(y + i * D + o, tl.load(x + i * D + o))


def run(x, y, cu):
    {guard}
    kernel[({grid},)](x, y, D=128, BD=128)
"""

CUTE = """
import cutlass
import cutlass.cute as cute


@cute.kernel
def kernel(states: cute.Tensor, rows: cute.Tensor, steps: int, HV: int):
    i_n, i_t, _ = cute.arch.block_idx()
    {body}
"""


def kernel(*lines: str) -> str:
    return KERNEL.replace("{body}", "\n    ".join(lines))


def test_the_examples_of_its_docs() -> None:
    bad, good = examples(RULE)
    assert [hit.function.name for hit in hits(RULE, bad) if hit.function] == ["scale"]
    assert hits(RULE, good) == []


def test_a_batch_index_times_the_length_of_a_sequence_is_a_token_index() -> None:
    found = hits(RULE, kernel("bos = i_n * T", "tl.store(y + (bos * H + i_h) * K + o, 0)"))
    assert [hit.verdict for hit in found] == ["likely"]
    assert "i_nh" in found[0].message and "(bos * H + i_h) * K" in found[0].message


def test_a_cast_behind_the_product_comes_too_late() -> None:
    load = "boh = tl.load(chunk_offsets + i_n).to(tl.int32)"
    late = hits(RULE, kernel(load, "h += ((boh * H + i_h) * K * V).to(tl.int64)", "tl.store(h + o, 0)"))
    assert len(late) == 1 and "widened only after" in late[0].message
    assert hits(RULE, kernel(load, "h += (boh * H + i_h).to(tl.int64) * K * V", "tl.store(h + o, 0)")) == []


def test_each_narrow_index_is_one_finding_however_many_products_it_is_in() -> None:
    found = hits(
        RULE,
        kernel(
            "bos = tl.load(cu_seqlens + i_n).to(tl.int32)",
            "tl.store(y + (bos * H + i_h) * K + o, tl.load(x + (bos * H + i_h) * V + o))",
            "tl.store(h + (bos * H + i_h) * K + o, 0)",
        ),
    )
    assert len(found) == 1
    assert {quote.node.lineno for quote in found[0].quotes} - {found[0].node.lineno}


def test_one_branch_that_narrows_is_enough() -> None:
    lines = (
        "if IS_VARLEN:",
        "    bos = tl.load(cu_seqlens + i_n).to(tl.{width})",
        "else:",
        "    bos = (i_n * T).to(tl.int64)",
        "tl.store(y + (bos * H + i_h) * K + o, 0)",
    )
    assert len(hits(RULE, kernel(*lines).replace("{width}", "int32"))) == 1
    assert hits(RULE, kernel(*lines).replace("{width}", "int64")) == []


@pytest.mark.parametrize(
    "line",
    [
        "tl.store(y + i_t * BT + o, 0)",
        "tl.store(y + (i_t * BT + o) * H * K, 0)",
        "tl.store(y + i_nh * K * V + o, 0)",
        "tl.store(y + i_n * H + i_h, 0)",
        "p = tl.make_block_ptr(y, (T, K), (H * K, 1), (i_t * BT, 0), (BT, K), (1, 0))",
        "i_n64 = i_n.to(tl.int64); tl.store(y + (i_n64 * T * H + i_h) * K + o, 0)",
        "tl.store(y + tl.cast(i_n, tl.int64) * T * H * K + o, 0)",
    ],
)
def test_what_stays_within_a_sequence_or_an_axis_or_is_wide(line: str) -> None:
    assert hits(RULE, kernel(line)) == []


def test_a_length_is_no_token_index() -> None:
    lines = (
        "bos, eos = tl.load(cu_seqlens + i_n).to(tl.int64), tl.load(cu_seqlens + i_n + 1).to(tl.int64)",
        "T = (eos - bos).to(tl.int32)",
        "tl.store(y + (T - 1) * H * K + o, 0)",
    )
    assert hits(RULE, kernel(*lines)) == []


def test_a_slot_narrowed_before_the_states_stride() -> None:
    lines = ("slot = tl.load(slots + i_n).to(tl.int32)", "tl.store(h + slot * H * K * V + o, 0)")
    slots = kernel(*lines).replace("slots", "slot_indices")
    assert len(hits(RULE, slots)) == 1
    assert hits(RULE, slots.replace("tl.int32", "tl.int64")) == []


def test_the_launch_says_how_many_rows_there_are() -> None:
    assert len(hits(RULE, ROWS.format(cast="", guard="pass", grid="x.numel()"))) == 1
    assert hits(RULE, ROWS.format(cast="", guard="pass", grid="4 * 132")) == []
    assert hits(RULE, ROWS.format(cast=".to(tl.int64)", guard="pass", grid="x.numel()")) == []


def test_a_launch_that_tests_the_size_is_told() -> None:
    code = ROWS.format(cast="", guard="assert x.numel() < 2**31", grid="x.numel()")
    assert hits(RULE, code) == []
    assert [drop.reason for drop in drops(RULE, code)] == ["the launch is bounded at line 13"]


SHAPED = """
@triton.jit
def kernel(x, y, stride_b, stride_h, stride_s, W: tl.constexpr):
    i_b, i_h = tl.program_id(0), tl.program_id(1)
    o = tl.arange(0, W)
    {body}


def run(x):
    {shape} = x.shape
    y = torch.empty_like(x)
    kernel[(B, H)](x, y, y.stride(0), y.stride(1), y.stride(2), W=64)
"""


@pytest.mark.parametrize(("shape", "found"), [("B, H, S, D", 1), ("B, H, S", 0), ("B, H, D", 0)])
def test_the_launch_says_how_long_the_axes_are(shape: str, found: int) -> None:
    code = SHAPED.replace("{shape}", shape).replace("{body}", "tl.store(y + i_b * stride_b + i_h * stride_h + o, 0)")
    assert len(hits(RULE, code)) == found


def test_a_row_of_partial_sums_for_each_multiprocessor() -> None:
    code = ROWS.replace("{cast}", "").replace(
        "{guard}", "n = torch.cuda.get_device_properties(0).multi_processor_count"
    )
    assert hits(RULE, code.replace("{grid}", "n").replace("D=128", "D=8192")) == []


def test_a_loop_is_as_wide_as_its_start() -> None:
    lines = (
        "start = i_nh{cast} * BT",
        "for i in range(start, min(start + BT, n_rows)):",
        "    tl.store(y + i * hidden, 0)",
    )
    code = kernel(*lines).replace("cu_seqlens,", "cu_seqlens, n_rows, hidden,")
    assert len(hits(RULE, code.replace("{cast}", ""))) == 1
    assert hits(RULE, code.replace("{cast}", ".to(tl.int64)")) == []
    assert hits(RULE, code.replace("{cast}", ".cast(tl.int64)")) == []
    assert hits(RULE, code.replace("{cast}", ".to(tl.int64)").replace("* BT", "* rows_of_each")) == []


def test_what_is_packed_or_hashed_is_no_offset() -> None:
    assert hits(RULE, kernel("bos = i_n * T", "tl.store(y + o, (bos * H * K) & 255)")) == []
    assert hits(RULE, kernel("bos = i_n * T", "tl.store(y + o, bos * 0x01010101)")) == []


def test_a_decoding_kernel_takes_few_tokens() -> None:
    code = kernel("bos = i_n * T", "tl.store(y + (bos * H + i_h) * K + o, 0)")
    assert len(hits(RULE, code)) == 1
    assert hits(RULE, code.replace("def kernel", "def state_update_kernel")) == []


def test_of_two_terms_the_larger_index_is_named() -> None:
    found = hits(RULE, kernel("i_k = tl.program_id(2)", "tl.store(y + ((i_k * T + i_n * T) * H + i_h) * K + o, 0)"))
    assert len(found) == 1 and found[0].message.startswith("i_nh")


def test_a_flat_index_as_a_tiles_coordinate_in_cute() -> None:
    tile = "cute.local_tile(states, (1, 1, 8), (flat, 0, 0))"
    narrow = CUTE.replace("{body}", f"flat = i_n * steps * HV + i_t\n    part = {tile}")
    wide = narrow.replace("i_n * steps", "cutlass.Int64(i_n) * steps")
    assert len(hits(RULE, narrow)) == 1
    assert hits(RULE, wide) == []


CONSTANT_ROWS = "cute.runtime.make_fake_compact_tensor(dtype, (cute.sym_int(), 2688), stride_order=(1, 0))"
MADE = """

def compile_it(dtype, x):
    rows_fake = {made}
    return cute.compile(kernel, rows_fake)
"""


def rows_made_by(made: str, body: str = "row = rows[i_n, None]") -> str:
    return CUTE.replace("{body}", body) + MADE.replace("{made}", made)


def test_a_row_selected_by_a_block_index_in_cute() -> None:
    assert len(hits(RULE, rows_made_by(CONSTANT_ROWS))) == 1
    assert len(hits(RULE, rows_made_by("from_dlpack(x, assumed_align=16)"))) == 1
    assert hits(RULE, rows_made_by(CONSTANT_ROWS, "row = rows[cutlass.Int64(i_n), None]")) == []
    assert hits(RULE, rows_made_by(CONSTANT_ROWS, "row = rows[0, None]")) == []


@pytest.mark.parametrize(
    "made",
    [
        "from_dlpack(x, assumed_align=16).mark_layout_dynamic(leading_dim=1)",
        "cute.runtime.make_fake_compact_tensor(dtype, (cute.sym_int(), cute.sym_int()), stride_order=(1, 0))",
        "cute.runtime.make_fake_tensor(dtype, (cute.sym_int(), 2688), stride=(cute.sym_int64(), 1))",
        "make_it(x)",
    ],
)
def test_a_stride_of_64_bits_widens_the_row(made: str) -> None:
    assert hits(RULE, rows_made_by(made)) == []


def test_the_tensor_of_the_same_name_decides() -> None:
    other = "    other = from_dlpack(x).mark_layout_dynamic()\n    return cute"
    assert len(hits(RULE, rows_made_by("from_dlpack(x)").replace("    return cute", other))) == 1
    other = "    other = from_dlpack(x)\n    return cute"
    assert hits(RULE, rows_made_by("from_dlpack(x).mark_layout_dynamic()").replace("    return cute", other)) == []


def test_a_symbolic_stride_of_32_bits() -> None:
    code = """
    import cutlass.cute as cute

    def compile_it(dtype, H):
        rows, stride = cute.sym_int(), cute.{made}(divisibility=8)
        return cute.runtime.make_fake_tensor(dtype, (rows, H), (stride, 1), assumed_align=16)
    """
    assert len(hits(RULE, code.replace("{made}", "sym_int"))) == 1
    assert hits(RULE, code.replace("{made}", "sym_int64")) == []
    narrow = code.replace("{made}", "sym_int")
    assert hits(RULE, narrow.replace("(dtype, (rows, H)", "(cutlass.Int32, (rows, H)")) == []  # a table of indices
    assert hits(RULE, narrow.replace("(rows, H), (stride, 1)", "(rows,), (stride,)")) == []
    by_descriptor = "\n    def load(op, x):\n        return cute.nvgpu.make_tiled_tma_atom_A(op, x)\n"
    assert hits(RULE, narrow + by_descriptor) == []


def test_a_ragged_slice_of_a_cutile_parameter() -> None:
    code = """
    import cuda.tile as ct

    @ct.kernel
    def quantize(x{how}, starts):
        first = ct.load(starts, (ct.bid(0),), shape=()).item()
        rows = x.slice(axis=0, start=first, stop=first + 8)
    """
    assert len(hits(RULE, code.replace("{how}", ""))) == 1
    assert hits(RULE, code.replace("{how}", ": ct.IndexedWithInt64")) == []


@pytest.mark.parametrize("name", ["QStartLoc", "q_start_loc"])
def test_tables_in_camel_case_are_known(name: str) -> None:
    size = of_table(None, ast.parse(f"{name} + i", mode="eval").body)  # type: ignore[arg-type]
    assert size is not None and size.tokens


WRAPPED = """
    @triton.jit
    def program_id(axis: int) -> tl.tensor:
        return tl.program_id(axis)CAST


    @triton.jit
    def kernel(x, y, T, H, D: tl.constexpr):
        i_b, i_t = program_id(0), program_id(1)
        o_d = tl.arange(0, D)
        tl.store(y + (i_b * T + i_t) * H * D + o_d, tl.load(x + (i_b * T + i_t) * H * D + o_d))


    def copy(x, y):
        B, T, H, D = x.shape
        kernel[(B, T)](x, y, T, H, D)
"""


@pytest.mark.parametrize(("cast", "wide"), [("", False), (".to(tl.int64)", True)])
def test_a_helper_that_returns_64_bits_widens(cast: str, wide: bool) -> None:
    assert (hits(RULE, WRAPPED.replace("CAST", cast)) == []) == wide


def test_a_loop_over_a_call_of_no_known_bounds_has_no_size() -> None:
    body = "for i_s in tiles():\n        tl.store(y + i_s * T + o, 0)"
    assert hits(RULE, KERNEL.format(body=body)) == []
