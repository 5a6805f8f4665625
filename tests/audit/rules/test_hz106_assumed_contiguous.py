"""HZ106: tensors taken for dense, and buffers copied before an update in place."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz106_assumed_contiguous import RULE
from tests.audit.rules.snippets import examples, hits

TABLE = """
@triton.jit
def kernel(x, table, y, stride_table_row, stride_table_col, D: tl.constexpr):
    i, j = tl.program_id(0), tl.program_id(1)
    slot = tl.load(table + i * stride_table_row + {column}).to(tl.int64)
    r = tl.arange(0, D)
    tl.store(y + slot * D + r, tl.load(x + slot * D + r))


def gather(x, table, D):
    {check}
    x = x.contiguous()
    y = torch.empty_like(x)
    kernel[table.shape](x, table, y, table.stride(0), table.stride(1), D)
    return y
"""

POOL = """
@triton.jit
def kernel(state, x, D: tl.constexpr):
    i = tl.program_id(0)
    r = tl.arange(0, D)
    tl.{access}


def update(state, x, D):
    {check}
    flat = state.{method}
    kernel[(x.shape[0],)](flat, x, D)
    {after}
"""

STORE = "store(state + i * D + r, tl.load(x + i * D + r))"


def pool(method="reshape(-1, D)", check="pass", after="return x", access=STORE):
    return hits(RULE, POOL.format(method=method, check=check, after=after, access=access))


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`dy`" in hit.message and hit.verdict == "possible"
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    "check", ["assert dy.is_contiguous()", "assert dy.stride(-1) == 1 and dy.stride(0) == x.shape[1]"]
)
def test_a_tensor_whose_layout_is_asked_for(check):
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("    dx = torch.empty_like(x)", f"    {check}\n    dx = torch.empty_like(x)")) == []


def test_a_guard_around_the_launching_function():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("def backward", "@input_guard\ndef backward")) == []


def test_a_tensor_made_by_the_launching_function_is_dense():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("    dx = torch", "    dy = torch.ones_like(x)\n    dx = torch")) == []


def test_a_stride_that_is_passed_and_not_used():
    (hit,) = hits(RULE, TABLE.format(column="j", check="pass"))
    assert "`stride_table_col`" in hit.message
    assert hits(RULE, TABLE.format(column="j * stride_table_col", check="pass")) == []


@pytest.mark.parametrize("check", ["assert table.stride(1) == 1", "table = table.contiguous()"])
def test_a_stride_that_is_known_to_be_one(check):
    assert hits(RULE, TABLE.format(column="j", check=check)) == []


CALLED = """
def entry(x, {param}):
    {check}
    return backward(x, {given})
"""


def called(param="dy", check="pass", given="dy", before=""):
    bad, _ = examples(RULE)
    return hits(RULE, bad + before + CALLED.format(param=param, check=check, given=given))


def test_whoever_calls_may_have_made_it_dense():
    (hit,) = called()
    assert "`entry` takes `dy`" in hit.message
    assert called(check="dy = dy.contiguous()") == []
    assert called(param="size", given="torch.ones(size)") == []
    assert called(before="\n@input_guard") == []


def test_a_guard_that_leaves_a_tensor_out():
    assert len(called(before="\n@input_guard(no_guard_contiguous=['dy'])")) == 1
    assert called(before="\n@input_guard(no_guard_contiguous=['x'])") == []


def test_no_tensor_has_no_layout():
    bad, _ = examples(RULE)
    assert len(hits(RULE, bad + "\n\ndef entry(x):\n    return backward(x, None)\n")) == 1
    guarded = "\n\ndef entry(x, dy=None):\n    if dy is None:\n        return backward(x, dy)\n"
    other = "\n\ndef other(x):\n    return backward(x, torch.ones_like(x))\n"
    assert hits(RULE, bad + guarded + other) == []


def test_a_method_is_called_from_where_nobody_sees():
    bad, _ = examples(RULE)
    method = "\n\nclass Layer(torch.nn.Module):\n    def forward(self, x, dy):\n        return backward(x, dy)\n"
    assert hits(RULE, bad + method) == []
    gradient = (
        "\n\nclass Op(torch.autograd.Function):\n    def backward(ctx, dy):\n        return backward(ctx.x, dy)\n"
    )
    (hit,) = hits(RULE, bad + gradient)
    assert "`backward` takes `dy`" in hit.message


@pytest.mark.parametrize("method", ["reshape(-1, D)", "contiguous()", "flatten()"])
def test_a_buffer_copied_before_its_update(method):
    (hit,) = pool(method)
    assert "`state`" in hit.message and "`flat`" in hit.message


def test_a_view_raises_instead_of_copying():
    assert pool("view(-1, D)") == []


def test_a_buffer_checked_returned_or_copied_back():
    assert pool(check="assert state.is_contiguous()") == []
    assert pool(after="return flat") == []
    assert pool(after="state.copy_(flat.view_as(state))") == []


def test_a_buffer_that_the_kernel_only_reads():
    assert pool(access="store(x + i * D + r, tl.load(state + i * D + r))") == []


def test_a_layout_that_is_claimed_and_not_compared():
    code = """
    import cutlass.cute as cute

    def gemm(a, b, out):
        {check}
        return build(m=a.shape[0], c_major="n")(a, b, out)
    """
    (hit,) = hits(RULE, code.format(check="pass"))
    assert "`c_major`" in hit.message
    assert hits(RULE, code.format(check="assert out.stride(-1) == 1")) == []


ROWS = """
@triton.jit
def kernel(x, dy, dx, stride_x, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, BD)
    x += i * stride_x
    b_x = tl.load(x + o, mask=o < D)
    b_dy = tl.load(dy + i * {dy} + o, mask=o < D)
    tl.store(dx + i * {dx} + o, b_x * b_dy, mask=o < D)


def backward(x, dy):
    {check}
    dx = {made}
    kernel[(x.shape[0],)](x, dy, dx, x.stride(-2), x.shape[1], 64)
    return dx


class Op(torch.autograd.Function):
    {guard}
    def backward(ctx, dy):
        x, = ctx.saved_tensors
        return backward(x.contiguous(), dy)
"""


def rows(dy="stride_x", dx="D", check="pass", made="torch.empty_like(x)", guard="", more=""):
    return hits(RULE, ROWS.format(dy=dy, dx=dx, check=check, made=made, guard=guard) + more)


def test_a_gradient_walked_with_the_stride_of_the_input():
    (hit,) = rows()
    assert hit.function is not None and hit.function.name == "backward"
    assert "`dy` is walked with `stride_x`, the stride of `x`; `backward` takes `dy`" in hit.message
    assert len(rows(check="dy = dy.reshape(-1, D); assert dy.stride(-1) == 1")) == 1
    assert rows(dy="D", dx="stride_x", guard="@input_guard") == []


@pytest.mark.parametrize(
    "check",
    [
        "dy = dy.contiguous()",
        "assert dy.is_contiguous()",
        "assert dy.stride(0) == x.stride(0)",
        "if dy.stride() != x.stride():\n        raise ValueError",
    ],
)
def test_rows_that_somebody_compares(check):
    assert rows(check=check) == []


def test_rows_that_a_guard_makes_dense():
    assert rows(guard="@input_guard") == []


def test_a_fresh_result_walked_with_the_stride_of_a_callers_tensor():
    alone = "\n\ndef entry(x, D):\n    return backward(x, torch.ones(D))\n"
    (hit,) = rows(dy="0", dx="stride_x", guard="@input_guard", more=alone)
    assert hit.function is not None and hit.function.name == "kernel"
    assert "`dx` is walked with `stride_x`" in hit.message and "`entry` takes `x`" in hit.message
    assert rows(dy="0", dx="stride_x", guard="@input_guard", made="x", more=alone) == []


OWN = """
@triton.jit
def kernel(cos, sin, out, stride_cos_t, stride_sin_t, D: tl.constexpr):
    i, o = tl.program_id(0), tl.arange(0, D)
    b = tl.load(cos + i * stride_cos_t + o) + tl.load(sin + i * {stride} + o)
    tl.store(out + i * D + o, b)
"""


def test_a_stride_that_is_passed_and_another_one_used():
    (hit,) = hits(RULE, OWN.format(stride="stride_cos_t"))
    assert "`sin` is strided by `stride_cos_t`, which is `cos`'s; its own `stride_sin_t`" in hit.message
    assert hits(RULE, OWN.format(stride="stride_sin_t")) == []


@pytest.mark.parametrize(
    "test", ["if not x.is_contiguous:\n        x = x.clone()", "assert x.is_contiguous and x.ndim == 2"]
)
def test_a_check_that_is_not_called(test):
    code = "import triton\n\ndef host(x):\n    " + test + "\n    return x\n"
    (hit,) = hits(RULE, code)
    assert hit.verdict == "proven"
    assert hits(RULE, code.replace("is_contiguous", "is_contiguous()")) == []
    assert hits(RULE, "import triton\n\ndef host(x):\n    ask = x.is_contiguous\n    return ask()\n") == []


def test_an_output_that_is_a_copy_is_found() -> None:
    code = """
    def lost(kv, heads, dim, norm, weight):
        norm(kv[:, :heads, :].reshape(-1, dim), weight, out=kv[:, :heads, :].reshape(-1, dim))


    def named(kv, heads, norm, weight):
        head = kv[:, :heads]
        norm(head, weight, out=head.contiguous())


    def selected(kv, length):
        kv[length > 0].mul_(2)
    """
    found = hits(RULE, code)
    assert [each.function.name for each in found] == ["lost", "named", "selected"]
    assert "reshape() of `kv[:, :heads, :]` gives a new tensor" in found[0].message


def test_an_output_that_is_a_view_or_is_taken_is_silent() -> None:
    code = """
    def view(kv, heads, dim, norm, weight, i):
        norm(kv, weight, out=kv[:, :heads, :].view(-1, dim))
        norm(kv, weight, out=kv.reshape(-1, dim))
        norm(kv, weight, out=kv[:heads].contiguous())
        norm(kv, weight, out=kv[i, :heads].contiguous())


    def split(qkv, size, heads, dim, norm, weight):
        norm(qkv, weight, out=qkv[:, :size].reshape(-1, heads, dim))


    def taken(kv, heads, dim, norm, weight):
        kv[:, :heads, :] = norm(kv, weight, out=kv[:, :heads, :].reshape(-1, dim)).view(-1, heads, dim)


    def copied_back(kv, heads, dim, norm, weight):
        buffer = kv[:, :heads, :].reshape(-1, dim)
        norm(kv, weight, out=buffer)
        kv[:, :heads, :] = buffer.view(-1, heads, dim)


    def selected(kv, length):
        kv[length > 0] = kv[length > 0].mul_(2)
    """
    assert hits(RULE, code) == []


EXPANDED = """
    def gemm(a, b, scale, out, m, k):
        module = get_gemm_module()
        s = scale.view(1, 1).expand(m, k){after}
        module.run(a, b, s, out)
"""


def test_an_expanded_tensor_given_to_compiled_code_is_found() -> None:
    assert len(hits(RULE, EXPANDED.format(after=""))) == 1
    assert hits(RULE, EXPANDED.format(after=".contiguous()")) == []
    assert hits(RULE, EXPANDED.format(after="").replace("get_gemm_module()", "Runner()")) == []


def test_an_expanded_tensor_of_a_kernel_that_gets_no_strides_is_found() -> None:
    code = """
    @triton.jit
    def kernel(s, o, D: tl.constexpr):
        i = tl.program_id(0)
        d = tl.arange(0, D)
        tl.store(o + i * D + d, tl.load(s + i * D + d))


    def run(x, scale):
        s = scale.expand(x.shape[0], x.shape[1])
        o = torch.empty_like(x)
        kernel[(x.shape[0],)](s, o, x.shape[1])
        return o
    """
    assert len(hits(RULE, code)) == 1
    assert hits(RULE, code.replace("x.shape[1])\n        o", "x.shape[1]).contiguous()\n        o")) == []


LETTERS = """
    @triton.jit
    def kernel(Q, Out, stride_q_batch, stride_q_head, stride_o_batch, stride_o_head, H, D: tl.constexpr):
        i_b, i_h = tl.program_id(0), tl.program_id(1)
        o_d = tl.arange(0, D)
        q_offset = i_b * stride_q_batch + i_h * stride_q_head
        tl.store(Out + OFFSET + o_d, tl.load(Q + q_offset + o_d))


    def double(q, out):
        B, H, D = q.shape
        kernel[(B, H)](q, out, q.stride(0), q.stride(1), out.stride(0), out.stride(1), H, D)
"""


@pytest.mark.parametrize(("offset", "count"), [("q_offset", 1), ("i_b * stride_o_batch + i_h * stride_o_head", 0)])
def test_strides_of_o_are_those_of_out(offset: str, count: int) -> None:
    found = hits(RULE, LETTERS.replace("OFFSET", offset))
    assert len([hit for hit in found if "is passed and unused" in hit.message]) == count
