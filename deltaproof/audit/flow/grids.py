"""The grid of a launch, element by element."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import factors, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch


def grid_elements(launch: Launch) -> list[ast.expr]:
    """Return the expressions of a launch's grid by axis; none where it cannot be told."""
    return _elements(launch.host, resolved(launch.host, launch.grid))


def _elements(host: Function, expr: ast.expr) -> list[ast.expr]:
    if isinstance(expr, ast.Tuple):
        return [] if any(isinstance(part, ast.Starred) for part in expr.elts) else list(expr.elts)
    if isinstance(expr, ast.Lambda):
        return _elements(host, expr.body)
    if isinstance(expr, ast.Name):
        inner = [
            node
            for node in host.nodes
            if isinstance(node, ast.FunctionDef) and node.name == expr.id and isinstance(node.body[-1], ast.Return)
        ]
        last = inner[0].body[-1] if len(inner) == 1 else None
        if isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple):
            return _elements(host, last.value)
    return []


def grid_factors(launch: Launch, element: ast.expr) -> list[str]:
    """Return the source texts of one grid element's factors, as far as it is a product."""
    found: list[str] = []
    waiting = [element]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            waiting = [node.left, node.right, *waiting]
        elif isinstance(node, ast.Name) and node in launch.host.parents:
            parts = factors(launch.host, node)
            found += [ast.unparse(part) for part in parts]
        else:
            found.append(ast.unparse(node))
    return found
