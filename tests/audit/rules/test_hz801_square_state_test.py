"""HZ801: layout tests that only know square states."""

from __future__ import annotations

from deltaproof.audit.rules.hz801_square_state_test import RULE
from tests.audit.rules.snippets import drops, examples, hits

NAME = "tests/test_layout.py"
CASES = """
import pytest

@pytest.mark.parametrize(("H", "K", "V"), [pytest.param(*p) for p in {rows}])
def test_state_v_first(H, K, V):
    h0 = torch.randn(2, H, K, V)
    operator(initial_state=h0, state_v_first=True)
"""


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad, NAME)
    assert "`D` twice" in hit.message
    assert hits(RULE, good, NAME) == []


def test_two_names_with_one_number_in_every_case():
    (hit,) = hits(RULE, CASES.format(rows="[(2, 64, 64), (3, 32, 32)]"), NAME)
    assert "`K` = `V`" in hit.message


def test_one_case_that_differs_is_enough():
    code = CASES.format(rows="[(2, 64, 64), (3, 32, 64)]")
    assert hits(RULE, code, NAME) == []
    assert len(drops(RULE, code, NAME)) == 1


def test_other_tests_may_use_square_states():
    code = CASES.replace("test_state_v_first", "test_values").replace(", state_v_first=True", "")
    assert hits(RULE, code.format(rows="[(2, 64, 64)]"), NAME) == []


def test_only_tests_are_looked_at():
    bad, _ = examples(RULE)
    assert hits(RULE, bad, "operators.py") == []


def test_a_fixture_of_the_states_size():
    code = """
    import pytest

    class TestScan:
        @pytest.fixture(params={sizes})
        def dstate(self, request):
            return request.param

        @pytest.fixture(params=[128])
        def chunk_size(self, request):
            return request.param

        def test_scan(self, dstate, chunk_size):
            assert operator(dstate, chunk_size)
    """
    (hit,) = hits(RULE, code.format(sizes="[128]"), NAME)
    assert "`chunk_size`" in hit.message
    assert hits(RULE, code.format(sizes="[128, 64]"), NAME) == []
    assert hits(RULE, code.format(sizes="[64]"), NAME) == []


def test_a_layout_of_the_inputs_is_none_of_the_state():
    code = """
    def test_{name}():
        B, H, T, K, V = 1, 4, 128, 64, 64
        assert_close(operator(B, H, T, K, V), other(B, H, T, K, V))
    """
    assert hits(RULE, code.format(name="bthd_layout_matches_bhtd"), NAME) == []
    assert len(hits(RULE, code.format(name="state_layout"), NAME)) == 1
