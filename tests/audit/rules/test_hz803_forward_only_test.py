"""HZ803: differentiable operators whose gradient nobody tests."""

from __future__ import annotations

from deltaproof.audit.rules.hz803_forward_only_test import RULE
from tests.audit.rules.snippets import examples, hits

NAME = "tests/test_scale.py"
OPERATOR = """
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        {backward}


def scale(x):
    return Scale.apply(x)
"""
TEST = """
from scaling import scale

def test_scale():
    assert torch.equal(scale(torch.ones(2)), torch.full((2,), 2.0))
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad, NAME)
    assert "`scale`" in hit.message
    assert hits(RULE, good, NAME) == []


def test_the_operator_is_followed_through_its_import():
    (hit,) = hits(RULE, TEST, NAME, scaling=OPERATOR.format(backward="return dy * 2"))
    assert hit.quotes[0].module.path == "scaling.py"


def test_an_operator_without_a_gradient():
    assert hits(RULE, TEST, NAME, scaling=OPERATOR.format(backward="raise NotImplementedError")) == []
    assert hits(RULE, TEST, NAME, scaling="def scale(x):\n    return x * 2\n") == []


def test_the_gradient_is_tested_in_another_file():
    gradient = "from scaling import scale\n\ndef test_gradient():\n    scale(x).sum().backward()\n    assert x.grad\n"
    others = {"scaling": OPERATOR.format(backward="return dy * 2"), "tests/test_gradients": gradient}
    assert hits(RULE, TEST, NAME, **others) == []
