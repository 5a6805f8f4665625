"""Pointer arithmetic in 32 bits.

## What it does
Follows the index of every product in a Triton kernel back to what it is made of: a program id, a value loaded and
narrowed to int32, a loop variable. It reports a product that has 32 bits and passes 2**31 in practice: a batch,
token, row or slot index times strides or head sizes, before the widening. What a program id can be is read off the
launch grid. Rows of a flattened tensor count all tokens, and flat elements all of them times a row, where the kernel
has a backward pass beside it, works on a vocabulary or widens something. In CuTe-DSL and cuTile kernels it reports row
indices in 32 bits that a layout multiplies by a row's length, slots of a pool read from a table of int32, and symbolic
strides of 32 bits.

## Why it matters
A program id is an int32, and so is a product of it. Past 2**31 it wraps to a negative offset: the kernel reads or
writes memory of another tensor, silently, and only with long inputs or many sequences. A cast of the product comes
too late.

## Example
Bad:

```python
@triton.jit
def scale(x, y, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    bos = tl.load(cu_seqlens + i_n).to(tl.int32)
    o_k = tl.arange(0, BK)
    offset = ((bos + i_t) * H + i_h) * K + o_k
    tl.store(y + offset, tl.load(x + offset, mask=o_k < K), mask=o_k < K)
```

Good:

```python
@triton.jit
def scale(x, y, cu_seqlens, T, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    i_t, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // H, i_nh % H
    bos = tl.load(cu_seqlens + i_n).to(tl.int64)
    o_k = tl.arange(0, BK)
    offset = ((bos + i_t) * H + i_h) * K + o_k
    tl.store(y + offset, tl.load(x + offset, mask=o_k < K), mask=o_k < K)
```

## Do this instead
Widen one factor before the first product: ``tl.program_id(0).to(tl.int64)``, ``tl.load(cu_seqlens + i).to(tl.int64)``,
``Int64(row) * stride``. Keep the length of one sequence in 32 bits if the loop over it should stay cheap.

## Seen in
flash-linear-attention #138, #692, #911, #964, #965; flashinfer #3007, #3392, #3743, #4263, #4572.

## Known limits
How large a dimension gets is guessed from its name and from the launch, a stride from the shape of its tensor: 4096
sequences, 131072 tokens in one of them, 4 million in all, 64 heads of size 128; few new tokens where it decodes.
An index within one sequence is not reported, nor one that the guess leaves below 2**31. A helper of the tree that
wraps a program id is wide where all that it returns is cast to 64 bits. The width of a value that is
loaded and not cast depends on the tensor; it is taken to be wide unless the launch shows an int32 tensor. Rows of
flattened tensors are not reported in kernels for inference alone, whose batches a server cuts. A row of a CuTe tensor
is reported where the module shows that the strides are constants: symbolic ones have 64 bits, and those of a TMA
descriptor do not wrap.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.cute_rows import narrow_rows
from deltaproof.audit.flow.index_switch import index_switch
from deltaproof.audit.flow.widening import widening
from deltaproof.audit.flow.width import Extent, Widths
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_BOUND = re.compile(r"2\s*\*\*\s*31|1\s*<<\s*31|INT32?_MAX|int32\)\.max|2147483647|0x7fffffff", re.IGNORECASE)
BITS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift)
QUOTED = 4


class NarrowOffset(Rule):
    """See the module's docstring."""

    code = "HZ103"
    name = "narrow-offset"
    stable = True
    triggers = ("program_id", "sym_int", "block_idx", "ct.kernel", "tile.kernel")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield one finding for each narrow index of a kernel."""
        for function in module.functions:
            if function.kind in ("triton", "gluon"):
                yield from self._products(function, project)
            else:
                yield from self._rows(function, project)

    def _products(self, function: Function, project: Project) -> Iterator[Seen]:
        module = function.module
        widths = Widths(function, project)
        found: dict[ast.AST, list[tuple[ast.BinOp, Extent]]] = {}
        for node in function.nodes:
            if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
                continue
            if _is_bits(function, node):
                continue
            inner = function.parents.get(node)
            for extent in widths.of(node):
                if not extent.wraps:
                    continue
                met = found.setdefault(extent.roots[0], [])
                if met and inner is not None and any(node is each or _within(node, each) for each, _ in met):
                    continue
                met.append((node, extent))
        looped = {id(products[0][0]) for root, products in found.items() if isinstance(root, ast.For)}
        for root, products in found.items():
            if not isinstance(root, ast.For) and id(products[0][0]) in looped:
                continue  # the same index before the loop counts on
            guard = self._guarded(widths)
            if guard is not None:
                yield Drop(module, products[0][0], function, f"the launch is bounded at line {guard}")
                continue
            switch = index_switch(function, widths.launches, products[0][0])
            if switch is not None:
                line = getattr(switch, "lineno", function.line)
                yield Drop(module, products[0][0], function, f"large data takes the other arm of line {line}")
                continue
            node, extent = products[0]
            index = _given(function, root)
            late = _late_cast(function, node)
            said = "is widened only after" if late else "has 32 bits in"
            quotes = [Quote(module, root, "the index is made here, in 32 bits")] if _differs(root, node) else []
            quotes += [
                Quote(module, other, "the same index in another product of 32 bits")
                for other, _ in products[1:QUOTED]
                if _differs(other, node)
            ]
            yield Hit(
                module,
                node,
                function,
                f"{index} {said} {_short(node)}, which passes 2**31 in practice (about 2**{extent.size.bits:.0f}).",
                "likely" if late or extent.size.tokens else "possible",
                "Widen the index to int64 before the first product.",
                quotes,
                widening(function, node, root),
            )

    def _rows(self, function: Function, project: Project) -> Iterator[Seen]:
        rows = list(narrow_rows(function, project))
        if not rows:
            return
        first = rows[0]
        yield Hit(
            function.module,
            first.node,
            function,
            f"{_short(first.index)} {first.how}.",
            "likely",
            first.fix,
            [Quote(function.module, row.node, "the same with another tensor") for row in rows[1:QUOTED]],
        )

    def _guarded(self, widths: Widths) -> int | None:
        """Return the line of a test of the size against 2**31 in every function that launches the kernel."""
        line = None
        for launch in widths.launches:
            host = launch.host
            lines = host.module.lines[host.line - 1 : host.end_line]
            line = next((host.line + at for at, text in enumerate(lines) if _BOUND.search(text)), None)
            if line is None:
                return None
        return line


def _within(node: ast.AST, other: ast.AST) -> bool:
    return any(part is other for part in ast.walk(node)) or any(part is node for part in ast.walk(other))


def _is_bits(function: Function, node: ast.BinOp) -> bool:
    """Return whether a product is packed or hashed rather than added to a pointer."""
    if any(
        isinstance(side, ast.Constant) and isinstance(side.value, int) and side.value >= 1 << 24
        for side in (node.left, node.right)
    ):
        return True
    return any(isinstance(each, ast.BinOp) and isinstance(each.op, BITS) for each in function.ancestors(node))


def _differs(one: ast.AST, other: ast.AST) -> bool:
    return getattr(one, "lineno", 0) != getattr(other, "lineno", 0)


def _late_cast(function: Function, node: ast.AST) -> bool:
    around = function.parents.get(node)
    while isinstance(around, ast.BinOp):
        around = function.parents.get(around)
    if isinstance(around, ast.Attribute) and around.attr == "to":
        call = function.parents.get(around)
        return isinstance(call, ast.Call) and "int64" in ast.unparse(call.args[0] if call.args else call)
    return False


def _given(function: Function, root: ast.AST) -> str:
    """Return the name that an index was given, or its own text."""
    if isinstance(root, ast.For):
        return ast.unparse(root.target)
    statement = function.statement(root)
    if isinstance(statement, ast.Assign):
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, part in zip(target.elts, value.elts, strict=False):
                if any(each is root for each in ast.walk(part)):
                    return ast.unparse(name)
        if isinstance(target, ast.Name):
            return target.id
    return _short(root)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."


RULE = NarrowOffset()
