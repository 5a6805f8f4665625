"""Exponentials, and whether what follows selects their values or multiplies them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import called_name, is_broadcast, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

EXPS = ("exp", "exp2", "fast_expf", "fast_exp")
WHERES = ("where", "if_then_else", "select")
_WRAPS = ("to", "trans", "cast", "reshape", "permute", "T")


def last_name(function: Function, call: ast.Call) -> str:
    """Return the last part of what is called."""
    return called_name(function, call).rpartition(".")[2]


def is_exp(function: Function, node: ast.AST) -> bool:
    """Return whether a node is an exponential that clamps nothing."""
    return isinstance(node, ast.Call) and bool(node.args) and last_name(function, node) in EXPS


def is_where(function: Function, node: ast.AST) -> bool:
    """Return whether a node selects: ``where``, ``if_then_else``, or ``a if c else b``."""
    return isinstance(node, ast.IfExp) or (isinstance(node, ast.Call) and last_name(function, node) in WHERES)


def zero_where(function: Function, node: ast.AST) -> list[ast.expr]:
    """Return condition and selected value of a select whose other value is a constant; else nothing."""
    if isinstance(node, ast.IfExp):
        parts = [node.test, node.body, node.orelse]
    elif isinstance(node, ast.Call) and is_where(function, node) and len(node.args) == 3:
        parts = list(node.args)
    else:
        return []
    condition, left, right = parts
    if _constant(right):
        return [condition, left]
    return [condition, right] if _constant(left) else []


def _constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    if isinstance(node, ast.Call):  # a cast of a constant, float("-inf")
        return bool(node.args) and all(_constant(each) for each in node.args[:1])
    return isinstance(node, ast.Constant)


def product_parts(function: Function, expr: ast.expr, depth: int = 6) -> Iterator[ast.expr]:
    """Yield the factors of a product through names with one definition, casts and transpositions; no selects."""
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Mult):
        if expr in function.parents:
            yield from product_parts(function, expr.left, depth)
        elif isinstance(expr.left, ast.Name):
            statement = function.flow.augmented.get(expr.right)
            for each in function.flow.before(expr.left.id, statement) if statement is not None and depth else ():
                if each.value is not None and each.kind == "assign":
                    yield from product_parts(function, each.value, depth - 1)
        yield from product_parts(function, expr.right, depth)
    elif isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
        yield from product_parts(function, expr.func.value, depth)
    elif isinstance(expr, ast.Call) and last_name(function, expr) in ("trans", "cast") and expr.args:
        yield from product_parts(function, expr.args[0], depth)
    elif isinstance(expr, ast.UnaryOp):
        yield from product_parts(function, expr.operand, depth)
    elif isinstance(expr, ast.Name) and depth and expr in function.parents:
        value = resolved(function, expr, 1)
        if value is expr:
            yield expr
        else:
            yield from product_parts(function, value, depth - 1)
    else:
        yield expr


def broadcast(expr: ast.expr) -> str:
    """Return "rows" for ``x[:, None]``, "columns" for ``x[None, :]``, "" for anything else."""
    if not isinstance(expr, ast.Subscript) or not is_broadcast(expr) or not isinstance(expr.slice, ast.Tuple):
        return ""
    kinds = [isinstance(part, ast.Slice) for part in expr.slice.elts]
    return {(True, False): "rows", (False, True): "columns"}.get((kinds[0], kinds[-1]), "")


def outer_difference(function: Function, call: ast.Call) -> tuple[ast.expr, ast.expr] | None:
    """Return the two values of ``exp(a[:, None] - b[None, :])``."""
    inner = resolved(function, call.args[0], 2)
    if (
        isinstance(inner, ast.BinOp)
        and isinstance(inner.op, ast.Sub)
        and {broadcast(inner.left), broadcast(inner.right)} == {"rows", "columns"}
    ):
        return inner.left.value, inner.right.value  # type: ignore[attr-defined]
    return None


def masks_order(function: Function, expr: ast.AST, depth: int = 5) -> bool:
    """Return whether a condition compares by order (a causal or a length mask) or sorts out NaN, through names."""
    for node in ast.walk(expr):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == ast.unparse(node.comparators[0]):
            return True
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for op in node.ops):
            return True
        if isinstance(node, ast.Name) and depth and node in function.parents:
            for each in function.flow.reaching(node.id, node):
                if each.value is not None and each.value is not expr and masks_order(function, each.value, depth - 1):
                    return True
    return False


def selected_later(function: Function, node: ast.expr) -> ast.AST | None:
    """Return the select with a constant that a value goes through, directly or by the names it is bound to."""
    statement = function.statement(node)
    for around in function.ancestors(node):
        parts = zero_where(function, around)
        if parts and any(each is node for each in ast.walk(parts[1])) and masks_order(function, parts[0]):
            return around
        if around is statement:
            break
    names = _bound(statement)
    for _ in range(3):
        grown = set(names)
        for each in function.nodes:
            parts = zero_where(function, each)
            if (
                parts
                and each.lineno >= statement.lineno  # type: ignore[attr-defined]
                and masks_order(function, parts[0])
                and any(isinstance(name, ast.Name) and name.id in names for name in ast.walk(parts[1]))
            ):
                return each
            if (
                isinstance(each, (ast.Assign, ast.AugAssign))
                and each.lineno >= statement.lineno
                and isinstance(each.value, (ast.BinOp, ast.Name, ast.UnaryOp))
                and any(isinstance(name, ast.Name) and name.id in names for name in ast.walk(each.value))
            ):
                grown |= _bound(each)
        if grown == names:
            break
        names = grown
    return None


def _bound(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    found = set()
    for target in targets:
        if isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Name):
            found.add(target.id)
    return found
