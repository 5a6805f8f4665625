"""HZ201: launches that cover a size in parts."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz201_unwritten_output import RULE
from tests.audit.rules.snippets import hits

PARTS = """
@triton.jit
def kernel(x, y, T, OFF, BT: tl.constexpr):
    i = tl.program_id(0) * BT + tl.arange(0, BT)
    row = OFF + i
    m = {index} < T
    tl.store(y + row, tl.load(x + row, mask=m), mask=m)


def run(x, L):
    y = torch.empty_like(x)
    for s in range(0, L, 65536):
        n = {size}
        kernel[(triton.cdiv(n, 64),)](x, y, n, s, BT=64)
    return y
"""


@pytest.mark.parametrize(
    ("index", "size", "found"),
    [
        ("row", "min(65536, L - s)", 1),
        ("row", "L - s", 1),
        ("i", "min(65536, L - s)", 0),
        ("row", "L", 0),
        ("row", "min(s + 65536, L)", 0),
    ],
)
def test_launches_in_parts(index, size, found):
    assert len(hits(RULE, PARTS.format(index=index, size=size))) == found
