"""HZ402: options that get lost between a caller and a kernel."""

from __future__ import annotations

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
