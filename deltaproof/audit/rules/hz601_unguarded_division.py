"""A division, rsqrt or log where zero can happen.

## What it does
Reports, in kernels: an epsilon that is added to a size instead of to the measured quantity; the root of a sum of
squares that is divided by, or rsqrt of it, with no epsilon or lower bound; and a scale from the largest magnitude of
a row that is divided by without one. In the host code of such files: a division by a count of elements
(``(x != y).sum()``) or by a sum of products of two tensors that nothing tests or bounds.
Everywhere, in host code without kernels too: the logarithm of a probability that is multiplied by the probability
again, that enters a sum with masked lanes loaded as zero, or that is of a sum of exponentials which nothing shifts by
their maximum.

## Why it matters
Padding rows, zero keys and empty chunks are zero exactly. The quotient is infinity or NaN, and spreads through the
state to every later token.

## Example
Bad:

```python
@triton.jit
def kernel(x, y, D: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, D)
    b_x = tl.load(x + i * D + o)
    norm = tl.sqrt(tl.sum(b_x * b_x))
    tl.store(y + i * D + o, b_x / norm)
```

Good:

```python
@triton.jit
def kernel(x, y, D: tl.constexpr):
    i = tl.program_id(0)
    o = tl.arange(0, D)
    b_x = tl.load(x + i * D + o)
    norm = tl.sqrt(tl.sum(b_x * b_x) + 1e-6)
    tl.store(y + i * D + o, b_x / norm)
```

## Do this instead
Put the epsilon on the quantity that can be zero, inside the root, and test with zero rows.

## Seen in
TileOPs #715; Liger-Kernel pull requests 262 (a target times its logarithm) and 862 (a mixture that underflows).

## Known limits
Sums of exponentials in a softmax are taken as positive; a fully masked row is another matter, and so
are logarithms of a softmax alone, which are -inf by intent in samplers. In host code a probability is known by its name
or by the softmax or exponential that made it. Only what one function shows is followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import host_divisors
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.selects import is_where, last_name
from deltaproof.audit.flow.tiles import is_tile_kernel
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.flow.zero_logs import zero_logs
from deltaproof.audit.rule import Drop, Hit, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_LOG = re.compile(r"\blog2?\(")
_ROOTS = ("sqrt", "sqrt_rn")
_INVERSE_ROOTS = ("rsqrt",)
_INTEGERS = ("int8", "uint8", "int16", "int32")
_FLOORS = ("maximum", "clamp", "where", "if_then_else", "select", "fmax", "Max")


class UnguardedDivision(Rule):
    """HZ601."""

    code = "HZ601"
    name = "unguarded-division"
    triggers = ("triton", "tilelang", "cutlass", ".log()", "torch.log(")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield divisions by what can be zero."""
        tiles = "tilelang" in module.text
        kernels = any(each in module.text for each in ("triton", "tilelang", "cutlass"))
        for function in module.functions if _LOG.search(module.text) else ():
            yield from _logs(function)
        for function in module.functions if kernels else ():
            if not function.is_kernel and not (tiles and is_tile_kernel(function)):
                yield from _host(function)
                continue
            told: set[int] = set()
            for node, divisor in _divisions(function):
                for hit in (*_misplaced(function, node, divisor), *_zero_norm(function, node, divisor)):
                    if id(function.statement(node)) in told:
                        continue
                    told.add(id(function.statement(node)))
                    if _scaled_integer(function, node, divisor):
                        yield Drop(module, node, function, "an integer beside its stored scale, 0 for a row of zeros")
                    else:
                        yield hit


def _logs(function: Function) -> Iterator[Seen]:
    for node, of, why in zero_logs(function):
        yield Hit(
            function.module,
            node,
            function,
            f"`{ast.unparse(node)}` {why}; nothing keeps `{ast.unparse(of)}` above zero.",
            "likely",
            "Bound the argument from below, select zero there, or stay in the log domain (`logsumexp`).",
        )


def _host(function: Function) -> Iterator[Seen]:
    if not function.module.holds(".sum("):
        return
    for node, divisor, kind in host_divisors.zero_counts(function):
        yield Hit(
            function.module,
            node,
            function,
            f"`{ast.unparse(divisor)}` is {kind} and can be zero; nothing tests or bounds it.",
            "likely",
            "Bound the divisor from below, add an epsilon, or return zero there.",
        )


def _divisions(function: Function) -> Iterator[tuple[ast.AST, ast.expr]]:
    for node in function.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node, node.right
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node, node.value
        elif isinstance(node, ast.Call) and node.args and last_name(function, node) in _INVERSE_ROOTS:
            yield node, node


def _scaled_integer(function: Function, node: ast.AST, divisor: ast.expr) -> bool:
    """Return whether a quotient becomes an integer at once, and its divisor is stored as the scale to multiply with."""
    around = list(function.ancestors(node))[:4]
    cast = any(
        isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and each.func.attr == "to"
        and any(last.attr in _INTEGERS for last in each.args if isinstance(last, ast.Attribute))
        for each in around
    )
    return cast and any(
        last_name(function, call) == "store"
        and len(call.args) > 1
        and names_in(divisor) & names_in(call.args[1])
        and node not in ast.walk(call.args[1])
        for call in function.calls
    )


def _is_epsilon(expr: ast.expr) -> bool:
    if isinstance(expr, ast.Constant):
        return isinstance(expr.value, float) and 0 < expr.value < 0.01
    last = expr.attr if isinstance(expr, ast.Attribute) else getattr(expr, "id", "")
    return "eps" in last.lower()


def _misplaced(function: Function, node: ast.AST, divisor: ast.expr) -> Iterator[Hit]:
    """Yield an epsilon on a divisor that is made of sizes alone."""
    if not isinstance(divisor, ast.BinOp) or not isinstance(divisor.op, ast.Add):
        return
    for size, small in ((divisor.left, divisor.right), (divisor.right, divisor.left)):
        if not _is_epsilon(small) or isinstance(size, ast.Constant) or not names_in(size):
            continue
        if any(isinstance(each, (ast.Subscript, ast.Call)) for each in ast.walk(size)) or not _sizes(function, size):
            continue
        yield Hit(
            function.module,
            node,
            function,
            f"`{ast.unparse(small)}` is added to the size `{ast.unparse(size)}`, which is never zero; the quotient "
            "still is zero for a row of zeros, and is a norm that somebody divides by.",
            "possible",
            "Add the epsilon to the norm, inside the root.",
        )


def _sizes(function: Function, expr: ast.expr) -> bool:
    """Return whether an expression is made of numbers and compile-time sizes: names that this function never sets."""
    for node in ast.walk(expr):
        if isinstance(node, ast.Name):
            if node.id in function.param_names and node.id not in function.constexprs and function.kind == "triton":
                return False
            if any(each.kind != "param" for each in function.flow.definitions(node.id)):
                return False
    return True


def _zero_norm(function: Function, node: ast.AST, divisor: ast.expr) -> Iterator[Hit]:
    found = _norm(function, divisor, 6)
    if not found:
        return
    if any(names_in(guard.test) & names_in(divisor) for guard in guards(function, node)):
        return
    yield Hit(
        function.module,
        node,
        function,
        f"`{ast.unparse(divisor)}` is {found} and zero for a row of zeros; nothing bounds it from below.",
        "likely",
        "Add an epsilon inside the root, or bound it from below.",
    )


def _norm(function: Function, expr: ast.expr, depth: int) -> str:
    """Return what kind of magnitude an expression is, or "" where it is none or is kept from zero."""
    if not depth:
        return ""
    if isinstance(expr, ast.Name):
        if expr not in function.parents:
            return ""
        reached = function.flow.reaching(expr.id, expr)
        if not reached or any(each.kind != "assign" or each.value is None for each in reached):
            return ""
        kinds = [_norm(function, each.value, depth - 1) for each in reached if each.value is not None]
        return kinds[0] if all(kinds) else ""
    if isinstance(expr, ast.Subscript):
        return _norm(function, expr.value, depth)
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, (ast.Mult, ast.Div)):
        if isinstance(expr.op, ast.Div) and isinstance(expr.left, ast.Constant):
            return ""
        return _norm(function, expr.left, depth)
    if isinstance(expr, ast.IfExp) or is_where(function, expr) or not isinstance(expr, ast.Call):
        return ""
    name = last_name(function, expr)
    if name in _FLOORS or not (expr.args or isinstance(expr.func, ast.Attribute)):
        return ""
    if name in ("to", "cast") and isinstance(expr.func, ast.Attribute):
        return _norm(function, expr.func.value if name == "to" else expr.args[0], depth)
    if name in (*_ROOTS, *_INVERSE_ROOTS) and expr.args:
        return "the root of a sum of squares" if _squares(function, expr.args[0], depth) else ""
    if name == "max" and expr.args:
        inner = expr.args[0]
        if isinstance(inner, ast.Name) and inner in function.parents:
            inner = function.flow.value(inner) or inner
        if isinstance(inner, ast.Call) and last_name(function, inner) == "abs":
            return "the largest magnitude of a row"
    return ""


def _squares(function: Function, expr: ast.expr, depth: int) -> bool:
    """Return whether an expression is a sum of squares, or its mean, with nothing added."""
    if not depth:
        return False
    if isinstance(expr, ast.Name):
        value = function.flow.value(expr) if expr in function.parents else None
        return value is not None and _squares(function, value, depth - 1)
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, (ast.Mult, ast.Div)):
        return _squares(function, expr.left, depth)
    if not isinstance(expr, ast.Call) or last_name(function, expr) != "sum" or not expr.args:
        return False
    inner = expr.args[0]
    if isinstance(inner, ast.Name):
        inner = function.flow.value(inner) or inner if inner in function.parents else inner
    return (
        isinstance(inner, ast.BinOp)
        and isinstance(inner.op, (ast.Mult, ast.Pow))
        and (isinstance(inner.op, ast.Pow) or ast.unparse(inner.left) == ast.unparse(inner.right))
    )


RULE = UnguardedDivision()
