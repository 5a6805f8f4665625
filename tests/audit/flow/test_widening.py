"""The edit that widens a product: applied, it mends the product and leaves the rest of the line alone."""

from __future__ import annotations

import textwrap

import pytest

from deltaproof.audit.rules.hz103_narrow_offset import RULE
from tests.audit.rules.snippets import HEADER, hits

KERNEL = """
@triton.jit
def kernel(x, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, IS_VARLEN: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    if IS_VARLEN:
        bos, eos = tl.load(cu_seqlens + i_n).to(tl.int32), tl.load(cu_seqlens + i_n + 1).to(tl.int32)
    else:
        bos, eos = i_n * T, i_n * T + T
    {body}
"""


def mended(body: str) -> tuple[str, str]:
    """Return the edited line of the first finding that has an edit, and the whole edited source."""
    code = KERNEL.format(body=body)
    edit = next(hit.edit for hit in hits(RULE, code) if hit.edit is not None)
    lines = (HEADER + textwrap.dedent(code)).split("\n")
    line = lines[edit.line - 1]
    assert (edit.end_line, edit.end_column) == (edit.line, edit.column), "the edit only inserts"
    lines[edit.line - 1] = line[: edit.column] + edit.text + line[edit.column :]
    return lines[edit.line - 1].strip(), "\n".join(lines).removeprefix(HEADER)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("x += (bos * H + i_h) * K", "x += (bos.to(tl.int64) * H + i_h) * K"),
        ("x += ((bos * H + i_h) * K).to(tl.int64)", "x += ((bos.to(tl.int64) * H + i_h) * K).to(tl.int64)"),
        ("x = x + H * K * bos", "x = x + H * K * bos.to(tl.int64)"),
        ("x += 'é' and (bos * H + i_h) * K", "x += 'é' and (bos.to(tl.int64) * H + i_h) * K"),
    ],
)
def test_the_first_factor_is_widened_and_nothing_is_found_any_more(body: str, line: str):
    edited, source = mended(body)
    assert edited == line
    assert hits(RULE, KERNEL.format(body=body)) != [] and hits(RULE, source) == []


def test_a_factor_that_may_be_a_plain_number_has_no_edit():
    found = hits(RULE, KERNEL.format(body="x += T * i_n * H * K"))
    assert found and [hit.edit for hit in found] == [None] * len(found)


def test_a_name_that_a_loop_counts_on_has_no_edit():
    body = "at = bos\n    for _ in range(T):\n        tl.load(x + at * H * K)\n        at += 1"
    found = hits(RULE, KERNEL.format(body=body))
    assert found and [hit.edit for hit in found] == [None] * len(found)


def test_a_helpers_namespace_has_no_edit():
    code = KERNEL.format(body="x += (i_nh * H + i_h) * K * T").replace("tl.program_id", "helpers.program_id")
    found = hits(RULE, "import helpers\n" + code)
    assert found and [hit.edit for hit in found] == [None] * len(found)
