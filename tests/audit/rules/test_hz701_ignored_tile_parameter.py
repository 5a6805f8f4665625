"""ignored-tile-parameter: a size that the caller passes is the size."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz701_ignored_tile_parameter import RULE
from tests.audit.rules.snippets import drops, examples, hits

HELPED = """
def pad(x, dim=1, chunk_size: int = 64):
    return x

def forward(k, v, A, chunk_size):
    k = pad(k, chunk_size=chunk_size)
    v = pad(v, chunk_size=chunk_size)
    A = pad(A)
    return k, v, A
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert [hit.node.value.value for hit in hits(RULE, bad)] == [64]
    assert hits(RULE, good) == []


def test_a_parameter_that_is_overwritten():
    assert len(hits(RULE, "def f(q, chunk_size=64):\n    chunk_size = 64\n    return q[:chunk_size]\n")) == 1


def test_a_size_that_is_refused_unless_it_is_the_literal():
    code = "def f(q, chunk_size=64):\n    assert chunk_size == 64\n    BT = 64\n    return q[:BT]\n"
    assert hits(RULE, code) == []
    assert "refuses" in drops(RULE, code)[0].reason


def test_a_choice_between_sizes_is_no_literal():
    code = (
        "def f(q, chunk_size):\n    if q.is_cuda:\n        BT = 64\n    else:\n        BT = chunk_size\n    return BT\n"
    )
    assert hits(RULE, code) == []


def test_a_head_tile_is_no_time_tile():
    assert hits(RULE, "def f(q, chunk_size=64):\n    BK = 64\n    return q[:chunk_size], BK\n") == []


def test_a_helper_that_falls_back_to_its_default():
    found = hits(RULE, HELPED)
    assert [hit.module.quote(hit.node) for hit in found] == ["A = pad(A)"]
    assert hits(RULE, HELPED.replace("pad(A)", "pad(A, chunk_size=chunk_size)")) == []
    assert hits(RULE, HELPED.replace("pad(A)", "pad(A, 1, chunk_size)")) == []


def test_neighbours_that_pass_a_literal_prove_nothing():
    literal = HELPED.replace("chunk_size=chunk_size", "chunk_size=32").replace("A, chunk_size)", "A)")
    assert hits(RULE, literal) == []


def test_a_default_that_the_function_refuses():
    found = hits(RULE, "def f(q, chunk_size=64):\n    assert chunk_size == 32\n    return q\n")
    assert [hit.verdict for hit in found] == ["proven"]


def test_two_functions_of_one_file_that_want_different_sizes():
    two = "def f(chunk_size):\n    assert chunk_size == 32\n\ndef g(chunk_size):\n    assert chunk_size == 64\n"
    assert [hit.function.name for hit in hits(RULE, two) if hit.function] == ["g"]
    assert hits(RULE, two.replace("64", "32")) == []


def test_a_number_that_is_handed_on_in_place_of_the_parameter():
    code = "def f(q, chunk_size=64):\n    q = cumsum(q, chunk_size=64)\n    return q[:chunk_size]\n"
    assert len(hits(RULE, code)) == 1
    assert hits(RULE, code.replace("chunk_size=64)\n    return", "chunk_size=chunk_size)\n    return")) == []
    assert hits(RULE, code.replace("    q =", "    assert chunk_size == 64\n    q =")) == []
    assert hits(RULE, code.replace("    q =", "    if chunk_size > 64:\n        q =")) == []


SIBLINGS = """
def forward(k, A):
    BT = A.shape[-1]
    return launch(k, A, BT)

def backward(k, A):
    BT = 64
    CHECK
    return launch(k, A, BT)
"""


def test_a_size_that_a_sibling_reads_from_the_tensor():
    (hit,) = hits(RULE, SIBLINGS.replace("CHECK", "pass"))
    assert hit.function.name == "backward" and "`A.shape[-1]`" in hit.message
    assert hits(RULE, SIBLINGS.replace("CHECK", "assert A.shape[-1] == BT")) == []
    assert hits(RULE, SIBLINGS.replace("CHECK", "pass").replace("def backward(k, A)", "def backward(k, w)")) == []


STAGES = """
def cumsum(g, chunk_size=64):
    return g

def solve(k, g, chunk_size=64):
    return k

def forward(k, g):
    s = cumsum(g, chunk_size=SIZE)
    return solve(k, NEXT)
"""


def test_a_stage_that_falls_back_to_another_size_than_the_one_before():
    (hit,) = hits(RULE, STAGES.replace("SIZE", "32").replace("NEXT", "s"))
    assert "`chunk_size` is 32 here, and `solve`, which takes the result, falls back to 64" in hit.message
    assert hits(RULE, STAGES.replace("SIZE", "64").replace("NEXT", "s")) == []
    assert hits(RULE, STAGES.replace("SIZE", "32").replace("NEXT", "g")) == []
    assert hits(RULE, STAGES.replace("SIZE", "32").replace("NEXT", "s, chunk_size=32")) == []
    assert hits(RULE, STAGES.replace("SIZE", "32").replace("NEXT", "s, 32")) == []


BELOW = """
class Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b{takes}):
        block_M = {size}
        return gemm(a, b, block_M)


def run(a, b, block_M):
    {check}
    a = {data}
    op = Grouped.apply
    return op(a, b{gives})
"""
OWN = {"takes": "", "size": "64", "check": "pass", "data": "pad(a, block_M)", "gives": ""}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({}, 1),
        ({"takes": ", block_m", "size": "block_m", "gives": ", block_M"}, 0),
        ({"size": "a.shape[0]"}, 0),
        ({"data": "pad(a)"}, 0),
        ({"gives": ", block_M"}, 0),
        ({"check": "assert block_M == 64"}, 0),
    ],
)
def test_a_number_below_a_caller_that_pads_by_its_own_size(other: dict[str, str], found: int):
    assert len(hits(RULE, BELOW.format(**{**OWN, **other}))) == found
