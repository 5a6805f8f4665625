"""A comment claims a cast, a guard or a fence that the statement after it does not have.

## What it does
Reads the comment right above a statement, or behind it, in kernels and in functions of files with kernels. Where it
says that the statement casts to 64 bits or to fp32, masks or clamps, or waits for other threads, it looks for that in
the statement, in the one after it and in what its names are made of.

## Why it matters
The author knew what is needed, and so does every reader from then on: a claim that the code does not keep hides the
bug from review. It is what is left when a fix is copied without its code.

## Example
Bad:

```python
@triton.jit
def kernel(x, y, stride, D: tl.constexpr):
    i = tl.program_id(0)
    # cast to int64: i * stride passes 2**31 for long inputs
    base = i * stride
    o = tl.arange(0, D)
    tl.store(y + base + o, tl.load(x + base + o))
```

Good:

```python
@triton.jit
def kernel(x, y, stride, D: tl.constexpr):
    i = tl.program_id(0)
    # cast to int64: i * stride passes 2**31 for long inputs
    base = i.to(tl.int64) * stride
    o = tl.arange(0, D)
    tl.store(y + base + o, tl.load(x + base + o))
```

## Do this instead
Make the statement do what the comment says, or change the comment.

## Seen in
A flat index of flashinfer 4572 under a comment that says it was widened; copies of fla kernels.

## Known limits
Only comments that begin with the claim, or that name it as done, are read; a claim kept more than a few statements
further down is reported. Casts made by a called function are not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from deltaproof.audit.flow.indices import made, reached_names
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen


@dataclass(frozen=True)
class Claim:
    """A kind of claim: how comments make it, what keeps it, and within how many statements."""

    what: str
    said: re.Pattern[str]
    kept: re.Pattern[str]
    reach: int = 3


_CAST = r"(?:up-?)?(?:cast|promote|widen|convert|extend)(?:s|ed|ing|ening|ened)?"
CLAIMS = (
    Claim(
        "a cast to 64 bits",
        re.compile(
            rf"^{_CAST}\b[^.]*\b(int64|i64|64[- ]bits?)\b|\b(int64|64[- ]bit) (widening|cast|promotion) per\b|^int64: ",
            re.I,
        ),
        re.compile(r"int64|\.long\(|i64|Int64|uint64|Long\b|\.to\(.*64"),
    ),
    Claim(
        "a cast to fp32",
        re.compile(rf"^{_CAST}\b[^.,;]*\bto (fp32|float32|f32|float)\b", re.I),
        re.compile(r"float32|fp32|f32|\.float\(|Float32|\.to\(|dtype|cast|convert|float"),
    ),
    Claim(
        "a fence",
        re.compile(
            r"^(memory )?(fence|barrier)(:| so| to| for| until|$)"
            r"|^(ensure|wait)\b[^.]*\b(visible|all (threads|warps|writes|stores))\b",
            re.I,
        ),
        re.compile(r"barrier|fence|sync|wait|arrive|commit|acquire|release|atomic|mbar", re.I),
    ),
    Claim(
        "a mask or guard",
        re.compile(r"^(mask out|clamp|guard against|bounds?[- ]check|skip (padding|padded|negative|invalid))\b", re.I),
        re.compile(
            r"mask|where|[<>]|==|!=|\bif\b|\bin\b|min|max|clamp|clip|boundary_check|assert|continue|return|check|valid|pred"
            r"|guard|masked_fill|nan_to_num|%|&",
            re.I,
        ),
        10,
    ),
)
_NOT = re.compile(
    r"\b(not|no|n't|never|without|instead|already|avoid|todo|fixme|should|would|could|may|might|later|below|above|caller"
    r"|before|after|when|unless|previously|implicit\w*|automatic\w*|else|otherwise)\b|n't\b|\?",
    re.I,
)


def _comments(module: Module) -> dict[int, tuple[str, int]]:
    """Return the comments by the line of the code they stand above or behind, with their own line."""
    found: dict[int, tuple[str, int]] = {}
    block: list[str] = []
    for number, line in enumerate(module.lines, 1):
        bare = line.strip()
        if bare.startswith("#"):
            block.append(bare.lstrip("#: ").strip())
            continue
        if block and bare:
            found[number] = " ".join(block), number - len(block)
        block = []
    return found


def _claim(text: str) -> tuple[Claim, str] | None:
    for sentence in re.split(r"(?<=[.;])\s+", text):
        for claim in CLAIMS:
            if claim.said.search(sentence) and not _NOT.search(sentence):
                return claim, sentence
    return None


class ClaimingComment(Rule):
    """HZ002: a rule of its own, without a hazard in the catalogue."""

    code = "HZ002"
    name = "claiming-comment"
    severity = "high"
    clauses = ("M1",)
    triggers = (".jit", "cute.kernel", "prim_func")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield statements that do not do what their comment says."""
        if not module.kernels:
            return
        claims = {
            line: (found, at) for line, (text, at) in _comments(module).items() if (found := _claim(text)) is not None
        }
        if not claims:
            return
        for function in module.functions:
            ordered = [node for node in function.nodes if isinstance(node, ast.stmt)]
            for place, node in enumerate(ordered):
                if node.lineno not in claims or node.lineno in function.docstring_lines:
                    continue
                (claim, sentence), at = claims[node.lineno]
                following = ordered[place : place + claim.reach]
                if any(claim.kept.search(_text(each)) for each in following) or self._made_of(function, node, claim):
                    continue
                del claims[node.lineno]
                yield Hit(
                    module,
                    node,
                    function,
                    f'The comment claims {claim.what} ("{sentence[:60].rstrip(". ")}"), and the statement has none.',
                    "possible",
                    "Make the statement do what the comment says, or change the comment.",
                    [Quote(module, ast.Pass(lineno=at, col_offset=0, end_lineno=at, end_col_offset=0), "the comment")],
                )

    def _made_of(self, function: Function, node: ast.stmt, claim: Claim) -> bool:
        """Return whether what the statement's names are made of keeps the claim."""
        if claim is CLAIMS[2]:
            return False
        for name in reached_names(function, node):
            for found in made(function).get(name, ()):
                if found.value is not None and claim.kept.search(ast.unparse(found.value)):
                    return True
        return False


def _text(node: ast.stmt) -> str:
    return ast.unparse(node)


RULE = ClaimingComment()
