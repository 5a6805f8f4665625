"""HZ104: grid axes y and z that grow with the input."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz104_oversized_grid_axis import RULE
from tests.audit.rules.snippets import drops, examples, hits

LAUNCH = """
def run(x, cu_seqlens, chunk_indices, B, T, H, D):
    N = len(cu_seqlens) - 1
    NT = {chunks}
    kernel[{grid}](x)
"""


def launch(grid: str, chunks: str = "triton.cdiv(T, 64)") -> str:
    return LAUNCH.replace("{grid}", grid).replace("{chunks}", chunks)


def test_the_examples_of_its_docs() -> None:
    bad, good = examples(RULE)
    assert len(hits(RULE, bad)) == 1
    assert hits(RULE, good) == []


@pytest.mark.parametrize("grid", ["(1, N * H)", "(1, 1, N * H)", "lambda meta: (triton.cdiv(D, meta['BD']), N * H)"])
def test_sequences_times_heads_on_y_and_z(grid: str) -> None:
    found = hits(RULE, launch(grid))
    assert len(found) == 1 and "packed sequences times" in found[0].message


@pytest.mark.parametrize("grid", ["(N * H,)", "(N * H, 1)", "(T, N)", "(NT, B * H)", "(1, NT, B * H)", "(1, N)"])
def test_axis_x_and_what_stays_small(grid: str) -> None:
    assert hits(RULE, launch(grid)) == []


def test_one_program_for_each_token() -> None:
    assert "number of tokens" in hits(RULE, launch("(N, T)"))[0].message


def test_a_length_that_is_a_constant() -> None:
    assert hits(RULE, "def run(x, N):\n    T = 1\n    kernel[(N, T)](x)\n") == []


def test_chunks_of_all_sequences_are_only_possible() -> None:
    found = hits(RULE, launch("(1, NT)", "len(chunk_indices) if cu_seqlens is not None else triton.cdiv(T, 64)"))
    assert [hit.verdict for hit in found] == ["possible"]


def test_a_grid_made_by_a_nested_function_belongs_to_the_function_that_launches() -> None:
    code = """
    def run(x, cu_seqlens, H):
        N = len(cu_seqlens) - 1

        def grid(meta):
            return (triton.cdiv(64, meta["BV"]), N * H)

        first[grid](x)
        second[grid](x)
    """
    found = hits(RULE, code)
    assert [hit.function.name for hit in found if hit.function] == ["run"]
    assert found[0].node.lineno == 9


def test_a_size_that_is_tested_before_the_launch_is_told() -> None:
    code = """
    def run(x, N, T):
        short = T <= 4096
        if short:
            kernel[(N, T)](x)
    """
    assert hits(RULE, code) == []
    assert [drop.reason for drop in drops(RULE, code)] == ["its size is tested at line 7"]


def test_a_flag_that_the_caller_made_from_the_size() -> None:
    code = """
    def forward(x, N, T):
        short = T <= {limit}
        return backward(x, N, T, short)

    def backward(x, N, T, short):
        if short:
            kernel[(N, T)](x)
    """
    assert hits(RULE, code.replace("{limit}", "4096")) == []
    assert len(drops(RULE, code.replace("{limit}", "4096"))) == 1
    assert len(hits(RULE, code.replace("{limit}", "131072"))) == 1


def test_each_arm_of_a_conditional_size() -> None:
    either = "(1, chunk_indices.shape[0] * H if cu_seqlens is not None else B * H)"
    assert len(hits(RULE, launch(either))) == 1
    assert len(hits(RULE, launch("(1, NT)", "chunk_indices.shape[0] * H if cu_seqlens is not None else B * H"))) == 1
    assert hits(RULE, launch("(1, 4 * H if cu_seqlens is not None else B * H)")) == []


def test_sequences_by_name_count_with_heads_only() -> None:
    assert len(hits(RULE, launch("(1, num_seqs * num_heads)"))) == 1
    assert hits(RULE, launch("(1, num_seqs, num_heads)")) == []


ROWS = """
    def gelu(x, y):
        assert x.dim() == 2
        M, N = SIZES
        gelu_kernel[GRID](x, y, N, 512)
"""


@pytest.mark.parametrize(
    ("sizes", "grid", "count"),
    [
        ("x.size(0), x.size(1)", "(triton.cdiv(N, 512), M)", 1),
        ("x.shape", "(triton.cdiv(N, 512), M)", 1),
        ("x.shape", "(M, triton.cdiv(N, 512))", 0),
        ("x.shape[1], x.shape[0]", "(triton.cdiv(N, 512), M)", 0),
    ],
)
def test_rows_of_a_tensor_of_two_dimensions_count_under_any_name(sizes: str, grid: str, count: int) -> None:
    assert len(hits(RULE, ROWS.replace("SIZES", sizes).replace("GRID", grid))) == count


def test_a_weight_has_few_rows() -> None:
    code = ROWS.replace("SIZES", "weight.shape").replace("GRID", "(1, M)").replace("assert x", "assert weight")
    assert hits(RULE, code.replace("gelu(x, y)", "gelu(weight, x, y)")) == []
