"""HZ602: exponentials of arguments without a bound."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz602_unbounded_exp import RULE
from tests.audit.rules.snippets import drops, examples, hits

TILE = """
import tilelang
import tilelang.language as T

@T.prim_func
def main(cum: T.Tensor((4, 64), "float32"), out: T.Tensor((4, 64), "float32")):
    with T.Kernel(4) as b:
        for i, j in T.Parallel(64, 64):
            {statement}
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`s`" in hit.message and "`t`" in hit.message
    assert hits(RULE, good) == []
    assert len(drops(RULE, good)) == 1


def test_a_condition_that_only_bounds_both_does_not_order_them():
    bad, _ = examples(RULE)
    code = bad.replace("ratio =", "if s < 9 and t < 9:\n            ratio =")
    assert len(hits(RULE, code)) == 1


def test_a_select_by_the_order_is_enough():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("out[i] * ratio", "out[i] * ratio if s >= t else 0.0")) == []
    ordered = "out[b, i] = T.if_then_else(i >= j, T.exp(cum[b, i] - cum[b, j]), 0.0)"
    assert hits(RULE, TILE.format(statement=ordered)) == []
    assert len(hits(RULE, TILE.format(statement="out[b, i] += T.exp(cum[b, i] - cum[b, j])"))) == 1


def test_the_last_element_is_no_other_index():
    assert hits(RULE, TILE.format(statement="out[b, i] = T.exp(cum[b, 63] - cum[b, i])")) == []


def test_a_clamp_changes_strong_decays():
    (hit,) = hits(RULE, TILE.format(statement="out[b, i] = T.exp(T.min(-cum[b, i], T.float32(88.0))) * 2.0"))
    assert "88" in hit.message
    assert hits(RULE, TILE.format(statement="out[b, i] = T.exp(T.min(cum[b, i], T.float32(0.0))) * 2.0")) == []


def test_a_negated_cumulative_gate_is_multiplied():
    code = """
    @triton.jit
    def kernel(g, k, o, BT: tl.constexpr):
        i = tl.arange(0, BT)
        b_g = tl.cumsum(tl.load(g + i), 0)
        tl.store(o + i, {value})
    """
    assert len(hits(RULE, code.format(value="tl.load(k + i) * tl.exp(-b_g)"))) == 1
    assert hits(RULE, code.format(value="tl.load(k + i) / (1 + tl.exp(-b_g))")) == []
    assert hits(RULE, code.format(value="tl.load(k + i) * tl.exp(b_g)")) == []


def test_a_caller_may_mask_what_is_scaled_in_place():
    code = """
    @cute.jit
    def scale(self, cum: cute.Tensor, out: cute.Tensor, coordinates: cute.Tensor):
        for i in range(64):
            s, t = coordinates[i]
            out[i] = out[i] * cute.math.exp2(cum[s] - cum[t])

    @cute.jit
    def run(self, cum, out, coordinates):
        self.scale(cum, out, coordinates)
        {after}
    """
    assert len(hits(RULE, code.format(after="pass"))) == 1
    (drop,) = drops(RULE, code.format(after="self.causal_mask(out)"))
    assert "caller masks" in drop.reason


SOFTPLUS = """
@triton.jit
def kernel(x, y, N, D: tl.constexpr):
    o = tl.arange(0, D)
    dt = tl.load(x + o, mask=o < N, other=0.0)
    {before}
    s = {value}
    {after}
    tl.store(y + o, s, mask=o < N)
"""


@pytest.mark.parametrize(
    ("before", "value", "after", "found"),
    [
        ("pass", "tl.log(1.0 + tl.exp(dt))", "pass", 1),
        ("pass", "tl.math.log1p(tl.exp(dt))", "pass", 1),
        ("e = tl.exp(dt)", "tl.log(e + 1)", "pass", 1),
        ("pass", "-tl.log(1.0 + tl.exp(-dt))", "pass", 1),
        ("pass", "tl.where(dt <= 20.0, tl.log(1.0 + tl.exp(dt)), dt)", "pass", 0),
        ("pass", "tl.log(1.0 + tl.exp(dt))", "s = tl.where(dt > 20.0, dt, s)", 0),
        ("pass", "tl.log(1.0 + tl.exp(dt))", "if dt > 20.0:\n        s = dt", 0),
        ("pass", "tl.maximum(dt, 0) + tl.log(1.0 + tl.exp(-tl.abs(dt)))", "pass", 0),
        ("dt = tl.minimum(dt, 20.0)", "tl.log(1.0 + tl.exp(dt))", "pass", 0),
        ("m = tl.max(dt)", "m + tl.log(1.0 + tl.exp(dt - m))", "pass", 0),
        ("pass", "tl.log(2.0 + tl.exp(dt))", "pass", 0),
    ],
)
def test_softplus(before, value, after, found):
    assert len(hits(RULE, SOFTPLUS.format(before=before, value=value, after=after))) == found


HELPER = "@triton.jit\ndef softplus(x):\n    return tl.log(1 + tl.exp(x))\n"


@pytest.mark.parametrize(("use", "found"), [("tl.where(x < 20, softplus(x), x)", 0), ("softplus(x)", 1)])
def test_softplus_in_a_helper_whose_callers_select(use, found):
    other = f"from code import softplus\n\n@triton.jit\ndef kernel(x):\n    return {use}\n"
    assert len(hits(RULE, HELPER, other=other)) == found


RUNNING = """
@triton.jit
def softmax(x, y, N, TILE: tl.constexpr):
    m = tl.full([TILE], value=float("-inf"), dtype=tl.float32)
    z = tl.zeros([TILE], tl.float32)
    for start in range(0, N, TILE):
        at = start + tl.arange(0, TILE)
        inp = tl.load(x + at, mask=at < N, other=-float("inf"))
        m_new = tl.maximum(m, inp)
        z = z * tl.exp(m - m_new) + tl.exp(inp - m_new)
        m = m_new
    tl.store(y, tl.sum(z * tl.exp(m - tl.max(m, 0)), 0))
"""


def test_a_lane_that_has_met_nothing_yet():
    [hit] = hits(RULE, RUNNING)
    assert hit.module.quote(hit.node).startswith("z = z * tl.exp(m - m_new)")
    assert "infinity minus infinity" in hit.message and hit.quotes[0].node.lineno == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("z * tl.exp(m - m_new) + tl.exp(inp - m_new)", "tl.where(m_new > -1e30, z * tl.exp(m - m_new), z)"),
        ("        z = z * tl.exp(m", '        empty = m_new == float("-inf")\n        z = z * tl.exp(m'),
        ('value=float("-inf")', "value=-1e30"),
        ("tl.maximum(m, inp)", "tl.maximum(m, tl.max(inp, 0))"),
        ("tl.maximum(m, inp)", 'tl.maximum(m, tl.where(inp == float("-inf"), -1e20, inp))'),
    ],
)
def test_a_running_maximum_that_cannot_be_infinite_where_it_is_subtracted(old: str, new: str):
    assert RUNNING.replace(old, new) != RUNNING and hits(RULE, RUNNING.replace(old, new)) == []
