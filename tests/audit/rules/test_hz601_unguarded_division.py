"""HZ601: divisions by what can be zero."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz601_unguarded_division import RULE
from tests.audit.rules.snippets import examples, hits

ROW = """
@triton.jit
def kernel(x, y, D: tl.constexpr, eps: tl.constexpr):
    o = tl.arange(0, D)
    b_x = tl.load(x + o)
    {statements}
"""


def row(*statements: str) -> str:
    return ROW.format(statements="\n    ".join(statements))


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "sum of squares" in hit.message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    "statements",
    [
        ("tl.store(y + o, b_x * tl.rsqrt(tl.sum(b_x * b_x) / D))",),
        ("s = tl.sum(b_x * b_x) / D", "r = 1 / tl.sqrt(s)", "tl.store(y + o, b_x * r)"),
        ("scale = tl.max(tl.abs(b_x)) / 448.0", "tl.store(y + o, b_x / scale)"),
    ],
)
def test_magnitudes_that_are_zero_for_a_row_of_zeros(statements):
    assert len(hits(RULE, row(*statements))) == 1


@pytest.mark.parametrize(
    "statements",
    [
        ("tl.store(y + o, b_x * tl.rsqrt(tl.sum(b_x * b_x) / D + eps))",),
        ("scale = tl.maximum(tl.max(tl.abs(b_x)), eps) / 448.0", "tl.store(y + o, b_x / scale)"),
        ("n = tl.sqrt(tl.sum(b_x * b_x))", "n = tl.where(n > 0, n, 1.0)", "tl.store(y + o, b_x / n)"),
        ("p = tl.exp(b_x - tl.max(b_x))", "tl.store(y + o, p / tl.sum(p))"),
        ("tl.store(y + o, tl.max(tl.abs(b_x)) / D)",),
    ],
)
def test_magnitudes_that_are_kept_from_zero(statements):
    assert hits(RULE, row(*statements)) == []


def test_an_epsilon_on_a_size_protects_nothing():
    code = """
    import tilelang
    import tilelang.language as T

    def build(n, c):
        @T.prim_func
        def main(r: T.Tensor((64,), "float32")):
            with T.Kernel(1) as b:
                eps = 0.0001
                for i in T.Parallel(64):
                    {statement}
        return main
    """
    (hit,) = hits(RULE, code.format(statement="r[i] /= (n * c) ** 0.5 + eps"))
    assert "never zero" in hit.message
    assert hits(RULE, code.format(statement="r[i] = r[i] / (n * c) ** 0.5 + eps")) == []


def test_an_integer_beside_its_stored_scale():
    code = """
    @triton.jit
    def quantize(x, q, s, D: tl.constexpr):
        i = tl.program_id(0)
        o = tl.arange(0, D)
        b = tl.load(x + i * D + o)
        scale = tl.max(tl.abs(b)) / 127.0
        tl.store(q + i * D + o, (b / scale){cast})
        tl.store(s + i, scale)
    """
    assert hits(RULE, code.format(cast=".to(tl.int8)")) == []
    assert len(hits(RULE, code.format(cast=".to(tl.float8e4nv)"))) == 1
    assert len(hits(RULE, code.format(cast=".to(tl.int8)").replace("        tl.store(s + i, scale)\n", ""))) == 1


COUNT = """
def mean(loss, target, q, k, ignore_index=-100):
    total = {total}
    {before}
    return {value}
"""


@pytest.mark.parametrize(
    ("total", "before", "value", "found"),
    [
        ("(target != ignore_index).sum()", "pass", "loss.sum() / total", 1),
        ("(target != ignore_index).sum().item()", "pass", "loss.sum() / total", 1),
        ("(target != ignore_index).sum()", "pass", "loss.sum() / total.clamp(min=1)", 0),
        ("(target != ignore_index).sum()", "if total == 0:\n        return loss * 0", "loss.sum() / total", 0),
        ("(target != ignore_index).sum()", "pass", "loss.sum() / total if total > 0 else 0.0", 0),
        ("max((target != ignore_index).sum().item(), 1)", "pass", "loss.sum() / total", 0),
        ("(q * k).sum(-1, keepdim=True)", "pass", "loss / total", 1),
        ("(q * k).sum(-1, keepdim=True)", "pass", "loss / (total + 1e-5)", 0),
        ("(q * k).sum(-1, keepdim=True) + 1e-5", "pass", "loss / total", 0),
        ("target.sum()", "pass", "loss / total", 0),
        ("(q * q).sum()", "pass", "loss / total", 0),
    ],
)
def test_host_code_that_divides_by_what_it_counts_or_sums(total, before, value, found):
    assert len(hits(RULE, COUNT.format(total=total, before=before, value=value))) == found


KL = """
    @triton.jit
    def kernel(y, target, loss, n, B: tl.constexpr):
        o = tl.arange(0, B)
        b_y = tl.load(y + o, mask=o < n, other=0.0)
        b_t = tl.load(target + o, mask=o < n, other=0.0)
        b_l = LOSS
        tl.store(loss, tl.sum(b_l, axis=0))
"""


def test_a_probability_times_its_own_logarithm_is_found() -> None:
    (found,) = hits(RULE, KL.replace("LOSS", "b_t * (tl.log(b_t) - b_y)"))
    assert "zero times infinity is NaN" in found.message
    assert len(hits(RULE, KL.replace("LOSS", "tl.log(b_t) - b_y"))) == 1


def test_a_logarithm_that_is_bounded_or_selected_is_silent() -> None:
    for loss in (
        "b_t * (tl.log(tl.maximum(b_t, 1e-10)) - b_y)",
        "tl.where(b_t > 0, b_t * (tl.log(b_t) - b_y), 0.0)",
        "b_t * (tl.log(b_t + 1e-10) - b_y)",
        "b_y * tl.log(1 + tl.exp(b_y))",
    ):
        assert hits(RULE, KL.replace("LOSS", loss)) == [], loss


def test_logarithms_of_host_code_are_judged_too() -> None:
    code = """
    def entropy(logits):
        probs = logits.softmax(-1)
        return -(probs * torch.log(probs)).sum()


    def mixture(s, t, w):
        mean = (1 - w) * s.exp() + w * t.exp()
        return mean.log()
    """
    assert [each.function.name for each in hits(RULE, code)] == ["entropy", "mixture"]


def test_logarithms_of_host_code_that_are_kept_from_zero_are_silent() -> None:
    code = """
    def entropy(logits):
        probs = logits.softmax(-1)
        return -(probs * torch.log(probs.clamp(min=1e-8))).sum()


    def merged(s, t):
        m = torch.maximum(s, t)
        return (torch.exp(s - m) + torch.exp(t - m)).log() + m


    def softplus(s):
        return torch.log(1 + s.exp())
    """
    assert hits(RULE, code) == []
