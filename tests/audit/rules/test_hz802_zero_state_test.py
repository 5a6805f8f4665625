"""HZ802: tests of a state that start from nothing."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz802_zero_state_test import RULE
from tests.audit.rules.snippets import examples, hits

NAME = "tests/test_state.py"
CODE = """
def test_initial_state():
    {before}
    o, ht = operator(q, k, v, {given}, output_final_state=True)
    assert_close(o, ht)
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert len(hits(RULE, bad, NAME)) == 1
    assert hits(RULE, good, NAME) == []


@pytest.mark.parametrize(
    ("before", "given"),
    [
        ("pass", "initial_state=None"),
        ("h0 = torch.zeros(2, 3, 64, 32)", "initial_state=h0"),
        ("pass", "initial_state=torch.zeros(2, 3, 64, 32)"),
    ],
)
def test_no_state_and_zeros(before, given):
    assert len(hits(RULE, CODE.format(before=before, given=given), NAME)) == 1


@pytest.mark.parametrize(
    ("before", "given"),
    [
        ("h0 = torch.randn(2, 3, 64, 32)", "initial_state=h0"),
        ("h0 = torch.zeros(2, 3, 64, 32); h0[0] = 1", "initial_state=h0"),
        ("h0 = torch.zeros(2, 3, 64, 32); h0.normal_()", "initial_state=h0"),
        ("arguments = make()", "**arguments"),
    ],
)
def test_a_state_with_a_content(before, given):
    assert hits(RULE, CODE.format(before=before, given=given), NAME) == []


def test_a_test_of_something_else_may_start_from_nothing():
    code = CODE.replace("test_initial_state", "test_values").format(before="pass", given="scale=1.0")
    assert hits(RULE, code, NAME) == []


def test_one_call_with_a_state_is_enough():
    code = CODE.format(
        before="operator(q, k, v, initial_state=h0, output_final_state=True)", given="initial_state=None"
    )
    assert hits(RULE, code, NAME) == []


def test_a_part_of_the_state_may_be_written():
    code = CODE.format(before="h0 = torch.zeros(2, 3, 64, 32); h0[:, 1:].copy_(x)", given="initial_state=h0")
    assert hits(RULE, code, NAME) == []


def test_a_test_that_compares_no_values_is_not_judged():
    code = CODE.format(before="pass", given="initial_state=None")
    assert len(hits(RULE, code, NAME)) == 1
    assert hits(RULE, code.replace("assert_close(", "assert_raised("), NAME) == []
