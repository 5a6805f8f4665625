"""A running maximum, lane by lane, from minus infinity: infinity minus infinity where a lane has seen nothing yet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import selects
from deltaproof.audit.flow.trace import names_in, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_MINUS_INFINITY = re.compile(r"-\s*(float\(\s*['\"]inf|(\w+\.)*inf\b)|['\"]-inf", re.I)
_MAXIMA = ("maximum", "max", "fmax")


def nothing_yet(kernel: Function) -> Iterator[tuple[ast.Call, str, ast.AST]]:
    """Yield exponentials of ``old - new`` of such a maximum that no select guards, its name, and where it starts."""
    if not kernel.module.holds(_MINUS_INFINITY):
        return
    for call in kernel.calls:
        if selects.last_name(kernel, call) not in _MAXIMA or len(call.args) != 2 or call.keywords:
            continue
        statement = kernel.statement(call)
        if not isinstance(statement, ast.Assign) or statement.value is not call:
            continue
        new = statement.targets[0]
        loop = next((each for each in kernel.ancestors(call) if isinstance(each, (ast.For, ast.While))), None)
        if loop is None or not isinstance(new, ast.Name):
            continue
        for old, value in (call.args, call.args[::-1]):
            start = _starts_empty(kernel, old) if isinstance(old, ast.Name) else None
            if start is None or not _lane_by_lane(kernel, value) or _tested(kernel, new.id):
                continue
            found = _difference(kernel, loop, old.id, new.id)  # type: ignore[attr-defined]
            if found is not None:
                yield found, new.id, start
                break


def _starts_empty(kernel: Function, name: ast.Name) -> ast.AST | None:
    """Return the definition that fills a block with minus infinity, if one reaches a use."""
    for each in kernel.flow.reaching(name.id, name):
        value = each.value
        if isinstance(value, ast.Call) and selects.last_name(kernel, value) == "full":
            if _MINUS_INFINITY.search(ast.unparse(value)):
                return each.node
        elif (
            isinstance(value, ast.BinOp)
            and isinstance(value.op, ast.Sub)
            and "zeros" in ast.unparse(value.left)
            and "inf" in ast.unparse(value.right)
        ):
            return each.node
    return None


def _lane_by_lane(kernel: Function, value: ast.expr) -> bool:
    """Return whether a value is what was loaded, not the maximum of a row of it."""
    value = resolved(kernel, value, 4)
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to":
        value = resolved(kernel, value.func.value, 4)
    if not isinstance(value, ast.Call):
        return False
    name = selects.last_name(kernel, value)
    filled = name in selects.WHERES and len(value.args) == 3
    return name == "load" or (filled and any(_MINUS_INFINITY.search(ast.unparse(each)) for each in value.args[1:]))


def _tested(kernel: Function, name: str) -> bool:
    """Return whether anything compares the maximum, or what is made of it, with minus infinity."""
    for compare in kernel.of_type(ast.Compare):
        if name in names_in(compare) and "inf" in ast.unparse(compare).lower():
            return True
    return False


def _difference(kernel: Function, loop: ast.AST, old: str, new: str) -> ast.Call | None:
    """Return the exponential of the old maximum less the new one in a loop."""
    for call in kernel.calls:
        if not selects.is_exp(kernel, call) or loop not in kernel.ancestors(call):
            continue
        if any(selects.last_name(kernel, each) in selects.WHERES for each in kernel.ancestors(call)
               if isinstance(each, ast.Call)):  # fmt: skip
            continue
        inner = resolved(kernel, call.args[0], 2)
        while isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mult):
            inner = inner.left
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
            sides = [each.id if isinstance(each, ast.Name) else "" for each in (inner.left, inner.right)]
            if sides == [old, new]:
                return call
    return None
