"""HZ103: rows of flattened tensors, flat elements, width switches, tables of int32 and slots of CuTe pools."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz103_narrow_offset import RULE
from tests.audit.rules.snippets import drops, hits

BACKWARD = """
def norm_bwd(dy):
    return dy
"""
ROWS = """
@triton.jit
def norm_kernel(x, y, D, BD: tl.constexpr):
    i_t = tl.program_id(0){cast}
    o = tl.arange(0, BD)
    m = o < D
    tl.store(y + i_t * D + o, tl.load(x + i_t * D + o, mask=m), mask=m)

def norm(x):
    {shape}
    y = torch.empty_like(x)
    norm_kernel[(T,)](x, y, D, BD=1024)
    return y
"""
FLAT = "x = x.view(-1, x.shape[-1])\n    T, D = x.shape"


def rows(shape: str = FLAT, cast: str = "", rest: str = BACKWARD) -> str:
    return ROWS.replace("{shape}", shape).replace("{cast}", cast) + rest


@pytest.mark.parametrize(
    "shape",
    [
        FLAT,
        "x = x.reshape(-1, x.shape[-1])\n    T, D = x.shape[0], x.shape[-1]",
        "D = x.shape[-1]\n    T = x.numel() // x.shape[-1]",
        "T, D = x.shape",
    ],
)
def test_rows_of_a_flattened_tensor_are_all_tokens(shape: str) -> None:
    assert len(hits(RULE, rows(shape))) == 1
    assert hits(RULE, rows(shape, cast=".to(tl.int64)")) == []


def test_a_kernel_for_inference_alone_takes_few_rows() -> None:
    assert hits(RULE, rows(rest="")) == []
    assert len(hits(RULE, rows(rest="").replace("norm_kernel", "logsumexp_kernel"))) == 1  # a row is a vocabulary


def test_a_stride_of_a_flattened_tensor_is_the_length_of_its_row() -> None:
    code = """
    @triton.jit
    def glu_kernel(a, c, stride, n_cols: tl.constexpr, BLOCK_SIZE: tl.constexpr):
        row = tl.program_id(0){cast}
        o = tl.arange(0, BLOCK_SIZE)
        m = o < n_cols
        tl.store(c + row * stride + o, tl.load(a + row * stride + o, mask=m), mask=m)

    def glu_backward(a):
        n_cols = a.shape[-1]
        a = a.view(-1, n_cols)
        c = torch.empty_like(a)
        glu_kernel[(a.shape[0],)](a, c, c.stride(-2), n_cols=n_cols, BLOCK_SIZE=4096)
    """
    assert len(hits(RULE, code.replace("{cast}", ""))) == 1
    assert hits(RULE, code.replace("{cast}", ".to(tl.int64)")) == []


ELEMENTS = """
@triton.jit
def gelu_kernel(x, y, n_elements, BLOCK_SIZE: tl.constexpr{switch}):
    pid = tl.program_id(0)
    {offsets}
    tl.store(y + offsets, tl.load(x + offsets, mask=offsets < n_elements), mask=offsets < n_elements)

def gelu(x):
    y = torch.empty_like(x)
    n_elements = x.numel()
    gelu_kernel[({grid},)](x, y, n_elements, BLOCK_SIZE=1024{given})
"""


def elements(offsets: str, grid: str = "triton.cdiv(n_elements, 1024)", switch: str = "", given: str = "") -> str:
    code = ELEMENTS.replace("{offsets}", offsets).replace("{grid}", grid)
    return code.replace("{switch}", switch).replace("{given}", given)


NARROW = "offsets = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)"


def test_flat_elements_of_a_training_batch() -> None:
    assert len(hits(RULE, elements(NARROW) + BACKWARD)) == 1
    assert len(hits(RULE, elements(NARROW, "(n_elements + 1023) // 1024") + BACKWARD)) == 1
    assert hits(RULE, elements(NARROW)) == []  # no backward pass: a server's batch
    wide = "offsets = pid.to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)"
    assert hits(RULE, elements(wide) + BACKWARD) == []


def test_a_late_cast_shows_that_long_data_is_meant() -> None:
    late = "offsets = (pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)).to(tl.int64)"
    assert ["widened only after" in hit.message for hit in hits(RULE, elements(late))] == [True]


def test_a_switch_between_the_widths_is_told() -> None:
    both = """if LONG_INDEXING:
        offsets = pid.to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    else:
        offsets = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)"""
    code = elements(both, switch=", LONG_INDEXING: tl.constexpr", given=", LONG_INDEXING=n_elements > 2**30")
    assert hits(RULE, code + BACKWARD) == []
    assert len(drops(RULE, code + BACKWARD)) == 1


def test_the_shape_of_a_block_pointer_says_how_long_its_axes_are() -> None:
    code = """
    @triton.jit
    def conv_fwd_kernel(x, y, T, stride_x_n, stride_x_t, stride_x_d, D: tl.constexpr, BT: tl.constexpr):
        i_t, i_b = tl.program_id(0), tl.program_id(1){cast}
        p_x = x + i_b * stride_x_n
        p = tl.make_block_ptr(p_x, (T, {length}), (stride_x_t, stride_x_d), (i_t * BT, 0), (BT, 64), (1, 0))
        tl.store(y + i_t, tl.sum(tl.load(p)))

    def conv(x, y):
        B, T = x.shape[0], x.shape[1]
        n, t, d = x.stride()
        conv_fwd_kernel[(triton.cdiv(T, 64), B)](x, y, T, n, t, d, D=1024, BT=64)
    """
    assert len(hits(RULE, code.replace("{cast}", "").replace("{length}", "D"))) == 1
    assert hits(RULE, code.replace("{cast}", "").replace("{length}", "H")) == []
    assert hits(RULE, code.replace("{cast}", ".to(tl.int64)").replace("{length}", "D")) == []


@pytest.mark.parametrize(
    ("made", "found"), [("torch.full((N,), -1, dtype=torch.int32)", 1), ("torch.zeros(N, dtype=torch.int64)", 0)]
)
def test_a_slot_from_a_table_that_the_launch_shows_to_be_int32(made: str, found: int) -> None:
    code = """
    @triton.jit
    def step(h, h0_indices, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
        i_n = tl.program_id(0)
        idx = tl.load(h0_indices + i_n)
        tl.store(h + idx * HV * K * V, 0.0)

    def run(h, N, HV, K, V):
        slots = {made}
        step[(N,)](h, slots, HV, K, V)
    """
    assert len(hits(RULE, code.replace("{made}", made))) == found


POOL = """
import cutlass
import cutlass.cute as cute
from cutlass.cute.runtime import from_dlpack

@cute.kernel
def decode(states: cute.Tensor, slot_indices: cute.Tensor, HV: int):
    block, _, _ = cute.arch.block_idx()
    i_n, i_h = block // HV, block % HV
    slot = {read}
    source = {taken}


def compile_it(x):
    states = {made}
    return cute.compile(decode, states)
"""
CONSTANT = "from_dlpack(x, assumed_align=16)"


def pool(read: str = "slot_indices[i_n]", taken: str = "states[(slot, i_h, None, None)]", made: str = CONSTANT) -> str:
    return POOL.replace("{read}", read).replace("{taken}", taken).replace("{made}", made)


def test_a_slot_of_a_pool_in_cute() -> None:
    assert len(hits(RULE, pool())) == 1
    assert len(hits(RULE, pool(taken="cute.local_tile(states, (1, 1, 64, 64), (slot, i_h, 0, 0))"))) == 1
    assert hits(RULE, pool(read="cutlass.Int64(slot_indices[i_n])")) == []
    assert hits(RULE, pool(taken="states[(i_h, slot, None, None)]")) == []
    assert hits(RULE, pool(made=f"{CONSTANT}.mark_layout_dynamic()")) == []  # strides of 64 bits
