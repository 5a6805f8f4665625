"""A copy of a kernel lacks a guard, mask, offset or cast that its twin has.

## What it does
Aligns every kernel, statement by statement, with its copies: in the same file, under the same name in another one, and
in the file of the same name of a sibling folder. Where the statements around are the same, it reports a statement that
differs from its twin's only in a missing ``.to(tl.int64)``, a missing mask, a missing term of the address or a missing
early return.

## Why it matters
What recurs most in public kernels is a fix that was made in one copy and left out of the other.

## Example
Bad:

```python
@triton.jit
def forward(x, y, slots, N, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    slot = tl.load(slots + i).to(tl.int64)
    o = tl.arange(0, BD)
    m = o < D
    p_x = x + slot * D + o
    p_y = y + i * D + o
    b_x = tl.load(p_x, mask=m)
    b_y = b_x * tl.sigmoid(b_x)
    tl.store(p_y, b_y, mask=m)


@triton.jit
def backward(x, y, slots, N, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    slot = tl.load(slots + i)
    o = tl.arange(0, BD)
    m = o < D
    p_x = x + slot * D + o
    p_y = y + i * D + o
    b_x = tl.load(p_x, mask=m)
    b_y = b_x * (1 - tl.sigmoid(b_x))
    tl.store(p_y, b_y, mask=m)
```

Good:

```python
@triton.jit
def forward(x, y, slots, N, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    slot = tl.load(slots + i).to(tl.int64)
    o = tl.arange(0, BD)
    m = o < D
    p_x = x + slot * D + o
    p_y = y + i * D + o
    b_x = tl.load(p_x, mask=m)
    b_y = b_x * tl.sigmoid(b_x)
    tl.store(p_y, b_y, mask=m)


@triton.jit
def backward(x, y, slots, N, D: tl.constexpr, BD: tl.constexpr):
    i = tl.program_id(0)
    slot = tl.load(slots + i).to(tl.int64)
    o = tl.arange(0, BD)
    m = o < D
    p_x = x + slot * D + o
    p_y = y + i * D + o
    b_x = tl.load(p_x, mask=m)
    b_y = b_x * (1 - tl.sigmoid(b_x))
    tl.store(p_y, b_y, mask=m)
```

## Do this instead
Carry the fix over, or share the code.

## Seen in
KDA kernels and their copies in gated delta net 2; common chunk kernels and their context-parallel copies.

## Known limits
A difference may be meant. Copies with fewer than eight statements, or with more than 500, or with less than
three fifths of them in common, are not compared, nor are those that hardly share a line as it is written.
Of a file with hundreds of long kernels that all differ, those not compared are named as not analysed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from deltaproof.audit.flow.indices import reached_names
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.flow.twins import statements, twins, work
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Limit, Quote, Rule, Seen

_WIDE = re.compile(r"\.to\((tl\.)?int64\)|\.cast\([^()]*int64\)")
_KEYWORDS = ("mask", "other", "boundary_check", "padding_option")


def _local_names(function: Function) -> set[str]:
    return set(function.param_names) | {
        node.id for node in function.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _calls(node: ast.AST) -> list[ast.Call]:
    return [
        each
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr in ("load", "store")
    ]


def _without_keywords(node: ast.stmt) -> str:
    copy = ast.parse(ast.unparse(node)).body[0]
    for call in _calls(copy):
        call.keywords = [each for each in call.keywords if each.arg not in _KEYWORDS]
    return ast.unparse(copy)


def _terms(expr: ast.expr) -> list[ast.expr]:
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Add):
        return [*_terms(expr.left), *_terms(expr.right)]
    return [expr]


def _mentions(function: Function, names: set[str]) -> int:
    return sum(1 for node in function.nodes if isinstance(node, ast.Name) and node.id in names)


def _missing(kernel: Function, other: Function, mine: ast.stmt, theirs: ast.stmt) -> str | None:
    """Return what a statement lacks that its twin has; None where they differ otherwise."""
    one, two = ast.unparse(mine), ast.unparse(theirs)
    if _WIDE.search(two) and not _WIDE.search(one):
        if _WIDE.sub("", two) == one and not _widened(kernel, mine):
            return "the cast to int64"
        return None
    if "mask=" in two and "mask=" not in one and _without_keywords(theirs) == one:
        masks = [each.value for call in _calls(theirs) for each in call.keywords if each.arg == "mask"]
        known = _local_names(kernel)
        return f"the mask `{ast.unparse(masks[0])}`" if masks and names_in(masks[0]) <= known | {"tl"} else None
    if isinstance(mine, (ast.Assign, ast.AugAssign)) and isinstance(theirs, type(mine)):
        here, there = _terms(mine.value), _terms(theirs.value)
        left = one.partition("=")[0] == two.partition("=")[0]
        if not left or len(here) < 2 or len(there) != len(here) + 1:
            return None
        spelled = [ast.unparse(term) for term in here]
        extra = [term for term in there if ast.unparse(term) not in spelled]
        if len(extra) == 1 and not isinstance(extra[0], ast.Constant):
            names = names_in(extra[0])
            if (
                names
                and names <= _local_names(kernel)
                and names & _reaching(kernel, mine)
                and _mentions(kernel, names) < _mentions(other, names)
            ):
                return f"the term `{ast.unparse(extra[0])}`"
    return None


def _pairs(mine: list[tuple[str, ast.stmt]], theirs: list[tuple[str, ast.stmt]]) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Yield the statements of two differing stretches that begin alike, in order."""
    start = 0
    for text, here in mine:
        head = re.split(r"[=(]", text)[0]
        for place in range(start, len(theirs)):
            if re.split(r"[=(]", theirs[place][0])[0] == head and type(theirs[place][1]) is type(here):
                yield here, theirs[place][1]
                start = place + 1
                break


def _reaching(kernel: Function, at: ast.stmt) -> set[str]:
    return {name for name in _local_names(kernel) if kernel.flow.before(name, at)}


def _widened(kernel: Function, statement: ast.stmt) -> bool:
    """Return whether a value is widened already, or where it is used."""
    value = getattr(statement, "value", None)
    if value is None:
        return True
    targets = names_in(statement) - names_in(value)
    for node in kernel.nodes:
        cast = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cast")
        if cast and names_in(node) & targets and "int64" in ast.unparse(node):
            return True
    text = ast.unparse(value)
    for name in reached_names(kernel, value):
        for found in kernel.flow.definitions(name):
            text += ast.unparse(found.value) if found.value is not None else ""
    return "int64" in text


def _exit(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and len(node.body) == 1 and isinstance(node.body[0], ast.Return)


class FixedTwin(Rule):
    """HZ001: a rule of its own, without a hazard in the catalogue."""

    code = "HZ001"
    name = "fixed-twin"
    stable = True
    severity = "high"
    clauses = ("M1",)
    triggers = (".jit", "cute.kernel")

    def check(self, module: Module, project: Project) -> Iterator[Seen | Limit]:
        """Yield statements that lack what their twin's has."""
        for kernel in module.kernels:
            said: set[int] = set()
            for other, matcher in twins(kernel, project):
                for hit in self._compare(module, kernel, other, matcher):
                    if id(hit.node) not in said:
                        said.add(id(hit.node))
                        yield hit
        stopped = work(module).stopped
        if stopped is not None:
            yield Limit(module, f"too many kernels to compare; from line {stopped.line} on not all copies were sought")

    def _compare(
        self, module: Module, kernel: Function, other: Function, matcher: SequenceMatcher[str]
    ) -> Iterator[Hit]:
        mine, theirs = statements(kernel), statements(other)
        for tag, a, a_end, b, b_end in matcher.get_opcodes():
            if tag == "replace":
                for here, there in _pairs(mine[a:a_end], theirs[b:b_end]):
                    lacks = _missing(kernel, other, here, there)
                    if lacks is not None:
                        yield self._hit(module, kernel, other, here, there, lacks)
            elif tag == "insert" and b_end - b == 2 and _exit(theirs[b][1]) and a < len(mine):
                test = theirs[b][1].test  # type: ignore[attr-defined]
                if names_in(test) <= _reaching(kernel, mine[a][1]) and not any(_exit(node) for _, node in mine):
                    yield self._hit(
                        module, kernel, other, mine[a][1], theirs[b][1], f"the early return for `{ast.unparse(test)}`"
                    )

    def _hit(
        self, module: Module, kernel: Function, other: Function, here: ast.stmt, there: ast.stmt, lacks: str
    ) -> Hit:
        return Hit(
            module,
            here,
            kernel,
            f"`{kernel.name}` lacks {lacks} that its twin `{other.name}` has here.",
            "possible",
            f"Carry it over from `{other.name}`, or say why it is not needed.",
            [Quote(other.module, there, "the twin")],
        )


RULE = FixedTwin()
