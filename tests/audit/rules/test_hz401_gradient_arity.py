"""HZ401: the number of gradients."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz401_gradient_arity import RULE
from tests.audit.rules.snippets import examples, hits

CLASS = """
def both(g, y):
    return g * y, g.sum(0)


class Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, {inputs}):
        return x

    @staticmethod
    def backward(ctx, dy):
        pair = both(dy, dy)
        {values}
"""


def found(inputs, values, more=""):
    return hits(RULE, CLASS.format(inputs=inputs, values=values) + more)


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert hit.verdict == "proven" and "2 gradients for the 3 inputs" in hit.message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    "values",
    ["return dy, None", "return both(dy, dy)", "return pair", "return (dy,) + (None,) * 1", "return dy, None, None"],
)
def test_as_many_gradients_as_inputs_or_none_at_the_end(values):
    assert found("x, y", values) == []


@pytest.mark.parametrize(
    "values", ["return dy, None", "return pair", "return (dy,) + (None,) * 1", "return (dy, *[None])"]
)
def test_too_few_gradients(values):
    (hit,) = found("x, y, z", values)
    assert "2 gradients for the 3 inputs" in hit.message


def test_a_value_too_many_that_is_no_none():
    (hit,) = found("x", "return dy, dy")
    assert "2 gradients for the 1 inputs" in hit.message


def test_a_pair_returned_as_one_gradient():
    (hit,) = found("x, y", "return pair, pair")
    assert "`pair`" in hit.message


@pytest.mark.parametrize("inputs", ["*xs", "x, **options", "x, y, z=None"])
def test_inputs_that_cannot_be_counted_or_may_be_left_out(inputs):
    assert found(inputs, "return dy, dy" if "=" in inputs else "return dy, dy, dy") == []


def test_a_default_counts_where_apply_passes_it():
    (hit,) = found("x, y, z=None", "return dy, dy", "\ndef add(x, y):\n    return Add.apply(x, y, 1)\n")
    assert any("apply" in quote.module.quote(quote.node) for quote in hit.quotes)


def test_values_that_cannot_be_counted_are_not_judged():
    assert found("x, y, z", "return unknown(dy)") == []
    assert found("x, y, z", "return tuple(dy for _ in range(3))") == []
