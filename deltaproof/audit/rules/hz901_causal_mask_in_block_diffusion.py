"""A triangular mask stands where a block-diffusion model needs `block(q) >= block(k)`.

## What it does
In code that names block diffusion (`block_diffusion`, `dllm`, ...: the file, the class or the function), reports
triangles of ones, attention calls with `is_causal=True` or `causal=True`, and comparisons of positions as a mask,
where nothing divides the positions by the block.

## Why it matters
Tokens of a block that is denoised together must see each other. With a triangular mask each sees only those before it;
the model still answers, worse.

## Example
Bad:

```python
def block_diffusion_attention(q, k, v, block_size):
    mask = torch.tril(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)
```

Good:

```python
def block_diffusion_attention(q, k, v, block_size):
    i = torch.arange(q.shape[-2]) // block_size
    j = torch.arange(k.shape[-2]) // block_size
    return scaled_dot_product_attention(q, k, v, attn_mask=i[:, None] >= j[None, :])
```

## Do this instead
Build the mask from block numbers, and test that a change of a later token in the block changes an earlier one.

## Seen in
sglang #26453, #39739.

## Known limits
Masks that a backend builds from a flag are not followed into it. Code that does not name block diffusion is not looked
at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.selects import broadcast
from deltaproof.audit.flow.trace import origins
from deltaproof.audit.rule import Drop, Hit, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_TELLS = re.compile(
    r"block_?diffusion|(^|[_./])d_?llm|dllm|diffusion_?(lm|llm|language)|masked_?diffusion", re.IGNORECASE
)
_TRIANGLES = ("tril", "triu", "generate_square_subsequent_mask")


class CausalMaskInBlockDiffusion(Rule):
    """HZ901."""

    code = "HZ901"
    name = "causal-mask-in-block-diffusion"
    triggers = (
        "block_diffusion",
        "BlockDiffusion",
        "blockdiffusion",
        "dllm",
        "DLLM",
        "dLLM",
        "DLlm",
        "diffusion_lm",
        "diffusion_llm",
        "masked_diffusion",
        "MaskedDiffusion",
    )

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield triangular masks in code of a block-diffusion model."""
        whole = _TELLS.search(module.path) is not None
        for function in module.functions:
            if not whole and not _TELLS.search(function.qualname):
                continue
            for node, what in _triangles(function):
                if _by_blocks(function):
                    yield Drop(module, node, function, "positions are divided into blocks in this function")
                    break
                yield Hit(
                    module,
                    node,
                    function,
                    f"{what} in block-diffusion code: tokens of one block do not see those behind them.",
                    "possible",
                    "Compare block numbers: `q // block >= k // block`.",
                )


def _triangles(function: Function) -> Iterator[tuple[ast.AST, str]]:
    for call in function.calls:
        last = (function.called(call) or getattr(call.func, "attr", "")).rpartition(".")[2]
        if last in _TRIANGLES:
            yield call, f"`{ast.unparse(call)[:60]}` is triangular"
            continue
        for word in call.keywords:
            if (
                word.arg in ("is_causal", "causal")
                and isinstance(word.value, ast.Constant)
                and word.value.value is True
            ):
                yield word.value, f"`{word.arg}=True` is given"
    for node in function.nodes:
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or not isinstance(node.ops[0], (ast.GtE, ast.LtE)):
            continue
        sides = {broadcast(node.left), broadcast(node.comparators[0])}
        if sides == {"rows", "columns"} and origins(function, node).calls_any("arange"):
            yield node, f"`{ast.unparse(node)}` compares positions"


def _by_blocks(function: Function) -> bool:
    """Return whether a function divides positions into blocks, or gives its mask to code that is told the block."""
    return any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and "block" in ast.unparse(node.right).lower()
        for node in function.nodes
    )


RULE = CausalMaskInBlockDiffusion()
