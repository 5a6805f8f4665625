"""autotuned-in-place: trial runs must leave no trace."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz703_autotuned_in_place import RULE
from tests.audit.rules.snippets import drops, examples, hits


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    assert [hit.verdict for hit in hits(RULE, bad)] == ["proven"]
    assert hits(RULE, good) == []
    assert "restores `cache`" in drops(RULE, good)[0].reason


@pytest.mark.parametrize("saved", ['reset_to_zero=["cache"]', "restore_value=SAVED"])
def test_what_the_autotuner_restores(saved: str):
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace('key=["D"]', f'key=["D"], {saved}')) == []


def test_another_tensor_is_restored():
    bad, _ = examples(RULE)
    assert len(hits(RULE, bad.replace('key=["D"]', 'key=["D"], restore_value=["x"]'))) == 1


def test_a_single_configuration_is_never_tried():
    bad, _ = examples(RULE)
    assert hits(RULE, bad.replace(', triton.Config({"BD": 128})', "")) == []


def test_scratch_that_is_written_first():
    bad, _ = examples(RULE)
    lines = bad.splitlines()
    scratch = "\n".join([*lines[:4], "    tl.store(cache + o_d, 0.0, mask=o_d < D)", *lines[4:]])
    assert hits(RULE, scratch) == []


def test_rows_of_earlier_launches_that_are_only_read():
    bad, _ = examples(RULE)
    earlier = bad.replace("tl.load(cache + o_d,", "tl.load(cache + o_p,").replace(
        "    b_c", "    o_p = tl.program_id(1) * BD + tl.arange(0, BD)\n    b_c", 1
    )
    assert hits(RULE, earlier) == []


def test_an_atomic_sum_counts_every_trial():
    bad, _ = examples(RULE)
    summed = bad.replace("tl.store(cache + o_d, b_c + 1, mask=o_d < D)", "tl.atomic_add(x + o_d, b_c)").replace(
        "def shift(cache, D,", "def shift(cache, x, D,"
    )
    assert ["adds to `x`" in hit.message for hit in hits(RULE, summed)] == [True]
    assert hits(RULE, summed.replace("atomic_add", "atomic_max")) == []


def test_a_list_of_one_configuration_that_a_function_makes():
    made = "def _configs():\n    return ALL\n"
    bad, _ = examples(RULE)
    given = '[triton.Config({"BD": 64}), triton.Config({"BD": 128})]'
    one = '[triton.Config({"BD": BD}, num_warps=w) for BD in [64] for w in [4]]'
    assert hits(RULE, made.replace("ALL", one) + bad.replace(given, "_configs()")) == []
    two = one.replace("[64]", "[64, 128]")
    assert len(hits(RULE, made.replace("ALL", two) + bad.replace(given, "_configs()"))) == 1


def test_a_hook_of_the_configurations_that_names_the_tensor():
    bad, _ = examples(RULE)
    hooked = bad.replace('{"BD": 64}', '{"BD": 64}, pre_hook=to_zero(["cache"])')
    assert hits(RULE, hooked) == []
    assert len(hits(RULE, hooked.replace('["cache"]', '["x"]'))) == 1


TWO = """
@triton.autotune(configs=[triton.Config({"BD": 64}), triton.Config({"BD": 128})], key=["D"])
@triton.jit
def scale(x, y, stride_x, stride_y, D, BD: tl.constexpr):
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    b_x = tl.load(x + o_d * stride_x, mask=o_d < D)
    tl.store(y + o_d * stride_y, b_x * 2, mask=o_d < D)


def run(x, inplace):
    y = torch.empty_like(x)
    if inplace:
        y = x
    scale[(4,)](x, y, x.stride(0), y.stride(0), x.shape[0])
"""


def test_a_launch_that_gives_one_tensor_two_names():
    assert ["writes `y`" in hit.message for hit in hits(RULE, TWO)] == [True]
    assert hits(RULE, TWO.replace("        y = x\n", "        y = torch.zeros_like(x)\n")) == []
    assert hits(RULE, TWO.replace('key=["D"]', 'key=["D"], restore_value=["y"]')) == []
    other_rows = TWO.replace("y + o_d", "y + o_e").replace("    b_x", "    o_e = o_d + D\n    b_x")
    assert hits(RULE, other_rows) == []
