"""Products that are summed up, and what selects with a constant leave of their factors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.selects import last_name, product_parts, zero_where
from deltaproof.audit.flow.trace import conjuncts, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


def sums(function: Function) -> Iterator[tuple[ast.Call, ast.expr, str]]:
    """Yield what is summed over "rows" or "columns", the call that sums first."""
    for dot in function.calls_of("tl.dot", "language.dot"):
        for place, operand in enumerate(dot.args[:2]):
            yield dot, operand, "rows" if (place == 1) is not _turned(function, operand) else "columns"
    for call in function.calls_of("tl.sum", "language.sum"):
        given = arguments(call, ("input", "axis"))
        axis = given.get("axis")
        if "input" in given and isinstance(axis, ast.Constant) and axis.value in (0, 1):
            yield call, given["input"], "columns" if axis.value else "rows"


def _turned(function: Function, operand: ast.expr) -> bool:
    expr = resolved(function, operand, 2)
    while isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
        expr = expr.func.value
    return isinstance(expr, ast.Call) and last_name(function, expr) == "trans"


def through_selects(
    function: Function, expr: ast.expr, conditions: tuple[ast.expr, ...] = ()
) -> Iterator[tuple[ast.expr, tuple[ast.expr, ...]]]:
    """Yield the factors of a product, each with the conditions of the selects around it.

    Only selects that are made after the product are followed: what is selected before it is multiplied is one factor.
    """
    for part in product_parts(function, expr):
        selected = zero_where(function, part) if len(conditions) < 4 else []
        if not selected:
            yield part, conditions
            continue
        yield from through_selects(function, selected[1], (*conditions, selected[0]))


def tells_length(function: Function, condition: ast.expr, pointer: ast.expr) -> bool:
    """Return whether a condition bounds lanes of a pointer by something that has no lanes, or cannot be followed.

    Lanes are told apart by how many they are: the same index is often written twice.
    """
    lanes = _extents(function, pointer)
    for part in conjuncts(function, condition):
        if not isinstance(part, ast.Compare) or len(part.ops) != 1:
            return True
        left, right = _extents(function, part.left), _extents(function, part.comparators[0])
        if left and right:
            continue
        if not lanes or (left | right) & lanes or not left | right:
            return True
    return False


def _extents(function: Function, expr: ast.expr) -> set[str]:
    calls = [call for name, call in origins(function, expr).calls if name.endswith("arange")]
    return {ast.unparse(call.args[-1]) for call in calls if call.args}
