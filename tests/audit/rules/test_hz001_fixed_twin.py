"""HZ001: copies that lack what their twin has."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz001_fixed_twin import RULE
from tests.audit.rules.snippets import examples, hits

KERNEL = """
@triton.jit
def {name}(x, y, slots, T, H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    i, i_h = tl.program_id(0), tl.program_id(1)
    {guard}
    slot = tl.load(slots + i)
    o = tl.arange(0, BD)
    m = o < D
    p_x = x + slot * D + {base}
    p_y = y + i * D + o
    b_x = tl.load(p_x{mask})
    b_y = b_x * tl.sigmoid(b_x)
    tl.store(p_y, b_y, mask=m)
"""
RIGHT = {"guard": "if i >= T:\n        return", "base": "i_h * D + o", "mask": ", mask=m, other=0.0"}


def kernel(name, **parts):
    return KERNEL.format(name=name, **{**RIGHT, **parts})


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`backward` lacks the cast to int64" in hit.message and "`forward`" in hit.message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    ("part", "lacks"),
    [
        ({"mask": ""}, "the mask `m`"),
        ({"base": "o"}, "the term `i_h * D`"),
        ({"guard": ""}, "the early return for `i >= T`"),
    ],
)
def test_what_a_copy_in_the_same_file_lacks(part, lacks):
    found = hits(RULE, kernel("first") + kernel("second", **part))
    assert [hit.function.name for hit in found] == ["second"]
    assert lacks in found[0].message


def test_what_a_copy_in_a_sibling_folder_lacks():
    (hit,) = hits(RULE, kernel("one_fwd", mask=""), name="one_net/step.py", **{"two_net/step": kernel("one_fwd")})
    assert hit.quotes[0].module.path == "two_net/step.py"


def test_kernels_that_have_little_in_common_are_no_twins():
    other = """
    @triton.jit
    def other(a, b, n, BD: tl.constexpr):
        j = tl.program_id(0)
        r = j * BD + tl.arange(0, BD)
        v = tl.load(a + r)
        w = tl.exp(v)
        z = w / tl.sum(w)
        u = tl.log(z)
        s = u * 2
        tl.store(b + r, s)
    """
    assert hits(RULE, kernel("first") + "\n".join(line[4:] for line in other.split("\n"))) == []


def test_a_cast_that_is_made_further_up_is_not_missing():
    wide = kernel("first").replace("slot * D", "slot.to(tl.int64) * D")
    early = kernel("second").replace("tl.load(slots + i)", "tl.load(slots + i).to(tl.int64)")
    assert hits(RULE, wide + early) == []
