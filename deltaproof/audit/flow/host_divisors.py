"""Divisions of host code by a count or by a sum of products, either of which can be zero."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import names_in, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_SAME = ("item", "float", "to", "double", "unsqueeze", "view", "detach")


def zero_counts(function: Function) -> Iterator[tuple[ast.BinOp, ast.expr, str]]:
    """Yield divisions, their divisors and what these are; the first of a divisor only."""
    told: set[str] = set()
    for node in function.nodes:
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
            continue
        divisor = node.right
        kind = _kind(function, divisor)
        if not kind or ast.unparse(divisor) in told:
            continue
        names = names_in(divisor)
        if any(names & names_in(guard.test) for guard in guards(function, node)) or _tested(function, names):
            continue
        told.add(ast.unparse(divisor))
        yield node, divisor, kind


def _kind(function: Function, expr: ast.expr) -> str:
    """Return what an expression counts or sums, or ""."""
    for _ in range(5):
        expr = resolved(function, expr, 3)
        if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Attribute):
            return ""
        if expr.func.attr not in _SAME:
            break
        expr = expr.func.value
    if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Attribute) or expr.func.attr != "sum":
        return ""
    inner = expr.func.value
    if isinstance(inner, ast.Name) and inner.id == "torch" and expr.args:
        inner = expr.args[0]
    inner = resolved(function, inner, 2)
    if isinstance(inner, ast.Compare) and isinstance(inner.ops[0], (ast.NotEq, ast.Eq)):
        return "the number of elements that meet a condition"
    if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mult):
        sides = (inner.left, inner.right)
        if all(isinstance(side, ast.Name) for side in sides) and ast.unparse(sides[0]) != ast.unparse(sides[1]):
            return "a sum of products of either sign"
    return ""


def _tested(function: Function, names: set[str]) -> bool:
    """Return whether a condition anywhere in the function compares the divisor."""
    return any(isinstance(node, ast.Compare) and names & names_in(node) for node in function.nodes)
