"""How many values a function returns."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

DEPTH = 4


@dataclass(frozen=True)
class Returned:
    """One return statement.

    Attributes:
        node: the statement.
        count: how many values it returns.
        elements: the values, where each is spelled out; as many as ``count``, or none.
    """

    node: ast.Return
    count: int
    elements: tuple[ast.expr, ...]


def returned(function: Function, project: Project, depth: int = DEPTH) -> list[Returned]:
    """Return the return statements whose number of values can be told."""
    found = []
    for node in function.nodes:
        if isinstance(node, ast.Return) and node.value is not None:
            elements = _elements(function, project, node.value, depth)
            if elements is not None:
                plain = tuple(each for each in elements if each is not None)
                found.append(Returned(node, len(elements), plain if len(plain) == len(elements) else ()))
    return found


def tuple_count(function: Function, project: Project, expr: ast.expr, depth: int = DEPTH) -> int | None:
    """Return the length of a tuple that an expression surely is: spelled out, or what a called function returns."""
    expr = resolved(function, expr)
    if isinstance(expr, ast.Tuple):
        elements = _elements(function, project, expr, depth)
        return None if elements is None else len(elements)
    if not isinstance(expr, ast.Call) or not depth:
        return None
    called = project.function(function.called(expr), function.module)
    if called is None or called.is_kernel:
        return None
    every = [node for node in called.nodes if isinstance(node, ast.Return)]
    counts = {tuple_count(called, project, node.value, depth - 1) if node.value is not None else None for node in every}
    return next(iter(counts)) if len(counts) == 1 else None


def _elements(function: Function, project: Project, expr: ast.expr, depth: int) -> list[ast.expr | None] | None:
    """Return the values that a returned expression stands for, None for one that is not spelled out."""
    expr = resolved(function, expr)
    if isinstance(expr, (ast.Tuple, ast.List)):
        found: list[ast.expr | None] = []
        for each in expr.elts:
            if isinstance(each, ast.Starred):
                inner = _elements(function, project, each.value, depth)
                if inner is None:
                    return None
                found += inner
            else:
                found.append(each)
        return found
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Add):
        sides = [_elements(function, project, side, depth) for side in (expr.left, expr.right)]
        tuples = [
            isinstance(resolved(function, side), (ast.Tuple, ast.List, ast.BinOp)) for side in (expr.left, expr.right)
        ]
        return [*sides[0], *sides[1]] if all(tuples) and sides[0] is not None and sides[1] is not None else None
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Mult):
        times = expr.right if isinstance(expr.right, ast.Constant) else None
        inner = _elements(function, project, expr.left, depth) if isinstance(expr.left, (ast.Tuple, ast.List)) else None
        return inner * times.value if inner is not None and times is not None and isinstance(times.value, int) else None
    if isinstance(expr, ast.Constant) and expr.value is None:
        return [expr]
    if isinstance(expr, ast.Call):
        count = tuple_count(function, project, expr, depth)
        return None if count is None else [None] * count
    return None
