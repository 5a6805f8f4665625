"""Slots of a pool in CuTe-DSL kernels: indices read from a table as int32, which a layout multiplies by a slot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import called_name

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_TABLE = re.compile(
    r"(m|g)?(\w*(slot|page|block|pool|cache|state|h0)\w*_?(ind(ices|ex)?|idx|ids?|table|map)s?\w*|\w*block_?tables?\w*)$",
    re.IGNORECASE,
)
_WIDE = ("Int64", "Uint64")
SMALLEST_RANK = 3
"""Dimensions that a pool of states or pages has at least."""


def narrow_slots(function: Function) -> Iterator[tuple[ast.AST, ast.expr, str]]:
    """Yield where a slot of a pool is selected by an index of 32 bits: the selection, the table's read and the pool.

    One a table read: the first selection in source order.
    """
    if function.kind != "cute" or not any(_TABLE.match(name) for name in function.param_names):
        return
    met: set[ast.AST] = set()
    for node in function.nodes:
        selected = _selection(function, node)
        if selected is None:
            continue
        pool, coordinate = selected
        read = _narrow_read(function, coordinate, pool, 5)
        if read is not None and read not in met:
            met.add(read)
            yield node, read, pool


def _selection(function: Function, node: ast.AST) -> tuple[str, ast.expr] | None:
    """Return the tensor and the first coordinate where a node takes a slice of a tensor of three or more dimensions."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Tuple):
        whole = any(isinstance(each, ast.Constant) and each.value is None for each in node.slice.elts)
        pool, coordinates = node.value.id, node.slice.elts
        if not whole:
            return None
    elif (
        isinstance(node, ast.Call)
        and called_name(function, node).rpartition(".")[2] == "local_tile"
        and len(node.args) >= 3
        and isinstance(node.args[0], ast.Name)
        and isinstance(node.args[2], ast.Tuple)
    ):
        pool, coordinates = node.args[0].id, node.args[2].elts
    else:
        return None
    if pool not in function.param_names or len(coordinates) < SMALLEST_RANK:
        return None
    return pool, coordinates[0]


def _narrow_read(function: Function, expr: ast.expr, pool: str, depth: int) -> ast.expr | None:
    """Return the read of a table that an index comes from in 32 bits; None where it is wide, or no table's."""
    if not depth:
        return None
    if isinstance(expr, ast.Name) and expr in function.parents:
        found = None
        for reached in function.flow.reaching(expr.id, expr):
            value = reached.value
            if reached.kind != "assign" or value is None:
                continue
            if isinstance(value, ast.Call) and called_name(function, value).rpartition(".")[2] in _WIDE:
                return None
            found = found or _narrow_read(function, value, pool, depth - 1)
        return found
    if isinstance(expr, ast.Call) and called_name(function, expr).rpartition(".")[2] == "Int32" and expr.args:
        return _narrow_read(function, expr.args[0], pool, depth - 1)
    if isinstance(expr, ast.Subscript) and isinstance(expr.value, ast.Name) and expr.value.id != pool:
        name = expr.value.id
        scalar = not any(isinstance(each, ast.Constant) and each.value is None for each in ast.walk(expr.slice))
        return expr if scalar and name in function.param_names and _TABLE.match(name) else None
    return None
