"""HZ402: options that get lost between a caller and a kernel."""

from __future__ import annotations

import re

import pytest

from deltaproof.audit.rules.hz402_unthreaded_option import RULE
from tests.audit.rules.snippets import drops, examples, hits

RESET = """
class Layer:
    def forward(self, x, mask=None, **kwargs):
        cu_seqlens = kwargs.get("cu_seqlens")
        return self.run(x, cu_seqlens=cu_seqlens)

    def shared(self, x, mask=None, **kwargs):
        cu_seqlens = {start}
        if mask is not None:
            indices, cu_seqlens = unpad(mask)
        return self.run(x, cu_seqlens=cu_seqlens)
"""

GIVEN = """
def forward(x, mask=None, cu_seqlens=None):
    if {test}:
        indices, cu_seqlens, longest = unpad(mask)
    return run(x, cu_seqlens=cu_seqlens)
"""

UNREAD = '''
def decode(q, k, v, {name}: bool = True):
    """Decode.{said}"""
    a = prepare(q)
    b = prepare(k)
    c = prepare(v)
    {use}
    return run(a, b, c)
'''

LITERAL = """
def build(n, c, h, w, bias_on, dtype):
    return n


@torch.library.custom_op("ops::wrapped", mutates_args=())
def wrapped(n: int, c: int, h: int, w: int, dtype: str) -> int:
    return build(n, c, h, w, {value}, dtype)


def plain(n, c, h, w, bias_on, dtype):
    return build(n, c, h, w, bias_on, dtype)
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "`reverse`" in hit.message
    assert hits(RULE, good) == []


def test_keywords_that_are_passed_on_are_not_swallowed():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("cu_seqlens=cu_seqlens)", "cu_seqlens=cu_seqlens, **kwargs)")) == []


def test_keywords_that_are_refused_are_not_swallowed():
    bad, _ = examples(RULE)
    code = bad.replace("    return chunk(q", "    if kwargs:\n        raise TypeError(kwargs)\n    return chunk(q")
    assert hits(RULE, code) == []


def test_an_option_reset_that_a_sibling_reads():
    (hit,) = hits(RULE, RESET.format(start="None"))
    assert "`cu_seqlens`" in hit.message and "`shared`" in hit.message
    assert hits(RULE, RESET.format(start='kwargs.get("cu_seqlens")')) == []


def test_a_parameter_replaced_without_a_look():
    (hit,) = hits(RULE, GIVEN.format(test="mask is not None"))
    assert "`cu_seqlens`" in hit.message
    assert hits(RULE, GIVEN.format(test="cu_seqlens is None and mask is not None")) == []


def test_a_switch_that_nothing_reads():
    (hit,) = hits(RULE, UNREAD.format(name="use_norm", said="", use="pass"))
    assert "`use_norm`" in hit.message
    assert hits(RULE, UNREAD.format(name="use_norm", said="", use="assert use_norm")) == []


def test_a_switch_that_is_said_to_have_no_effect():
    code = UNREAD.format(name="use_norm", said=" use_norm is ignored.", use="pass")
    assert hits(RULE, code) == []
    (drop,) = drops(RULE, code)
    assert "no effect" in drop.reason


def test_a_literal_for_a_switch_that_another_call_threads():
    (hit,) = hits(RULE, LITERAL.format(value="True"))
    assert "`bias_on`" in hit.message and "True" in hit.message
    assert hits(RULE, LITERAL.format(value="n > 1")) == []


def test_a_literal_of_an_operator_for_a_mode_of_its_own():
    code = """
    def build(n, c, h, w, bias_on, paired, dtype):
        return n


    @torch.library.custom_op("ops::wrapped", mutates_args=())
    def wrapped(n: int, c: int, h: int, w: int, dtype: str) -> int:
        return build(n, c, h, w, False, {mode}, dtype)


    def plain(n, c, h, w, bias_on, dtype):
        return build(n, c, h, w, bias_on, False, dtype)
    """
    assert hits(RULE, code.format(mode="True")) == []
    assert len(hits(RULE, code.format(mode="False"))) == 1


def test_a_literal_of_an_operator_that_is_chosen_where_it_fits():
    code = LITERAL.format(value="False").replace(
        "    return build(n, c, h, w, bias_on, dtype)",
        "    if not bias_on:\n        return torch.ops.ops.wrapped(n, c, h, w, dtype)\n"
        "    return build(n, c, h, w, bias_on, dtype)",
    )
    assert hits(RULE, code) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def {name}(", "def check_{name}("),
        ("def {name}(", "def {name}(self, "),
        ("def {name}(", "@register(other, backend=Other)\ndef {name}("),
    ],
)
def test_a_switch_of_a_signature_that_is_dictated(before, after):
    code = UNREAD.format(name="use_norm", said="", use="pass")
    head = re.search(r"def (\w+)\(", code)
    changed = code.replace(before.format(name=head[1]), after.format(name=head[1]))
    assert changed != code
    assert hits(RULE, changed) == []


def test_a_switch_of_one_of_two_definitions():
    code = UNREAD.format(name="use_norm", said="", use="pass")
    assert len(hits(RULE, code)) == 1
    assert hits(RULE, code + UNREAD.format(name="use_norm", said="", use="assert use_norm")) == []


def test_a_switch_that_every_call_leaves_at_its_default():
    code = UNREAD.format(name="use_norm", said="", use="pass")
    name = re.search(r"def (\w+)\(", code)[1]
    call = "\n\ndef caller(x):\n    return {name}(x, use_norm={value})\n"
    default = re.search(r"use_norm(?:: bool)?\s*=\s*(\w+)", code)[1]
    other = {"True": "False", "False": "True"}[default]
    assert hits(RULE, code + call.format(name=name, value=default)) == []
    assert len(hits(RULE, code + call.format(name=name, value=other))) == 1


def test_a_fact_about_the_input_is_no_switch():
    assert hits(RULE, UNREAD.format(name="is_varlen", said="", use="pass")) == []
