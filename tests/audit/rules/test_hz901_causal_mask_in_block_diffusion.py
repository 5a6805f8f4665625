"""HZ901: triangular masks in code of block-diffusion models."""

from __future__ import annotations

import pytest

from deltaproof.audit.rules.hz901_causal_mask_in_block_diffusion import RULE
from tests.audit.rules.snippets import drops, examples, hits


def test_the_docstrings_examples():
    bad, good = examples(RULE)
    (hit,) = hits(RULE, bad)
    assert "triangular" in hit.message
    assert hits(RULE, good) == []


@pytest.mark.parametrize(
    "statement",
    [
        "return attention(q, k, v, is_causal=True)",
        "return attention(q, k, v, mask=torch.triu(torch.ones(4, 4), 1))",
        "i = torch.arange(4); return attention(q, k, v, mask=i[:, None] >= i[None, :])",
    ],
)
def test_the_three_forms(statement):
    code = f"class BlockDiffusionAttention:\n    def forward(self, q, k, v):\n        {statement}\n"
    assert len(hits(RULE, code)) == 1
    assert hits(RULE, code.replace("BlockDiffusionAttention", "Attention")) == []


def test_the_files_name_tells_too():
    code = "def forward(q, k, v):\n    # a dllm model\n    return attention(q, k, v, is_causal=True)\n"
    assert len(hits(RULE, code, "models/dllm/attention.py")) == 1
    assert hits(RULE, code, "models/llama/attention.py") == []


def test_positions_divided_into_blocks_are_considered_and_dropped():
    _, good = examples(RULE)
    assert len(drops(RULE, good)) == 1
    assert hits(RULE, good.replace("attn_mask=", "is_causal=False, attn_mask=")) == []
