"""HZ002: comments that claim what the code does not do."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz002_claiming_comment import RULE
from tests.audit.rules.snippets import examples, hits

KERNEL = """
@triton.jit
def kernel(x, y, n, stride, D: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, D)
    # {comment}
    {code}
    tl.store(y + base, x + base)
"""


def found(comment, code):
    return hits(RULE, KERNEL.format(comment=comment, code=code))


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "64 bits" in hit.message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    ("comment", "what"),
    [
        ("Int64: the flat index passes 2**31.", "64 bits"),
        ("Widened by hand. Int64 widening per an older fix.", "64 bits"),
        ("convert to float32", "fp32"),
        ("barrier so that every warp sees the row", "a fence"),
        ("clamp the row to the table", "a mask or guard"),
    ],
)
def test_claims_that_are_not_kept(comment, what):
    (hit,) = found(comment, "base = i * stride + o")
    assert what in hit.message and hit.verdict == "possible"


@pytest.mark.parametrize(
    ("comment", "code"),
    [
        ("cast to int64", "base = i.to(tl.int64) * stride + o"),
        ("convert to float32", "base = (i * stride).to(tl.float32) + o"),
        ("barrier so that every warp sees the row", "tl.debug_barrier()\n    base = i * stride + o"),
        ("clamp the row to the table", "base = tl.minimum(i, n) * stride + o"),
    ],
)
def test_claims_that_are_kept(comment, code):
    assert found(comment, code) == []


def test_a_cast_made_further_up_keeps_the_claim():
    code = KERNEL.replace("tl.program_id(0)", "tl.program_id(0).to(tl.int64)")
    assert hits(RULE, code.format(comment="cast to int64", code="base = i * stride + o")) == []


@pytest.mark.parametrize(
    "comment", ["cast to int64 is not needed", "the cast to int64 is the caller's", "TODO cast to int64"]
)
def test_comments_that_claim_nothing(comment):
    assert found(comment, "base = i * stride + o") == []
