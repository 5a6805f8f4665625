"""unchecked-state-layout: a flag names the layout, somebody must look."""

from __future__ import annotations

from deltaproof.audit.rules.hz301_unchecked_state_layout import RULE
from tests.audit.rules.snippets import drops, examples, hits

SUPPORTED = """
def reason(q, k, v, g, initial_state, size):
    if q.dtype != torch.bfloat16:
        return "q"
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return "k, v"
    if size != 128:
        return "size"
    if initial_state is not None and not initial_state.is_contiguous():
        return "state"
    return None
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert len(hits(RULE, bad)) == 1
    assert hits(RULE, good) == []
    assert "checked here" in drops(RULE, good)[0].reason


def test_a_helper_that_checks_is_believed():
    bad, _ = examples(RULE)
    helped = bad.replace("    return Rule", "    check_state(initial_state, k, v, state_v_first)\n    return Rule")
    assert hits(RULE, helped) == []
    assert len(drops(RULE, helped)) == 1


def test_without_a_flag_there_is_one_layout():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace(", state_v_first=False", "").replace(", state_v_first)", ")")) == []


def test_an_inner_function_is_no_entry_point():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace("def chunk_rule", "def _chunk_rule")) == []


def test_dtypes_of_all_but_the_state():
    assert len(hits(RULE, SUPPORTED)) == 1
    checked = SUPPORTED.replace(
        "    return None", '    if initial_state.dtype != torch.float32:\n        return "dtype"\n    return None'
    )
    assert hits(RULE, checked) == []
    looped = SUPPORTED.replace(
        "    return None",
        "    for t in (initial_state,):\n        if t.dtype != q.dtype:\n            return 'dtype'\n    return None",
    )
    assert hits(RULE, looped) == []


def test_a_state_that_is_refused_whatever_it_is():
    refused = SUPPORTED.replace(
        "if initial_state is not None and not initial_state.is_contiguous():",
        "if size == 0 or initial_state is not None:",
    )
    assert hits(RULE, refused) == []
