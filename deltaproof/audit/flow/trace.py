"""Following an expression back to what it is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

MOST = 400
"""Nodes that are followed from one expression at most."""


@dataclass
class Origins:
    """What an expression's value depends on.

    Attributes:
        params: parameters of the function.
        names: every name on the way, globals too.
        calls: every call on the way, with its dotted name.
        constants: literals on the way.
    """

    params: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    calls: list[tuple[str, ast.Call]] = field(default_factory=list)
    constants: list[object] = field(default_factory=list)

    def calls_any(self, *endings: str) -> bool:
        """Return whether a call's dotted name is one of these or ends with one after a dot."""
        return any(name == ending or name.endswith(f".{ending}") for name, _ in self.calls for ending in endings)


def called_name(function: Function, call: ast.Call) -> str:
    """Return a call's dotted name, or the method's name where it is called on an expression."""
    return function.called(call) or (call.func.attr if isinstance(call.func, ast.Attribute) else "")


def _value_sources(function: Function, name: ast.Name) -> Iterator[tuple[ast.expr | None, bool]]:
    for reached in function.flow.reaching(name.id, name):
        yield reached.value, reached.kind == "param"


def origins(function: Function, expr: ast.AST, *, through_calls: bool = True) -> Origins:
    """Return what an expression depends on, through all definitions that reach its names.

    Args:
        function: the function it stands in.
        expr: the expression.
        through_calls: whether to follow the arguments of calls.
    """
    found = Origins()
    waiting: list[ast.AST] = [expr]
    seen: set[int] = set()
    while waiting and len(seen) < MOST:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.Name):
            found.names.add(node.id)
            at = node if node in function.parents else None
            if at is None:  # made by the analysis: an augmented assignment's left side
                continue
            for value, is_param in _value_sources(function, node):
                if is_param:
                    found.params.add(node.id)
                elif value is not None:
                    waiting.append(value)
                    if isinstance(value, ast.BinOp) and value not in function.parents:
                        waiting += _before(function, node.id, value)
            continue
        if isinstance(node, ast.Constant):
            found.constants.append(node.value)
        if isinstance(node, ast.Call):
            found.calls.append((called_name(function, node), node))
            if not through_calls:
                continue
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _before(function: Function, name: str, whole: ast.BinOp) -> list[ast.expr]:
    """Return what the left side of an augmented assignment stands for."""
    statement = function.flow.augmented.get(whole.right)
    if statement is None:
        return []
    reached = function.flow.before(name, statement)
    return [each.value for each in reached if each.value is not None and each.value is not whole]


def resolved(function: Function, expr: ast.expr, depth: int = 8) -> ast.expr:
    """Return the expression behind a name that has one definition; other expressions as they are."""
    while depth and isinstance(expr, ast.Name) and expr in function.parents:
        value = function.flow.value(expr)
        if value is None or value is expr:
            break
        expr, depth = value, depth - 1
    return expr


def alternatives(function: Function, expr: ast.expr, depth: int = 4) -> list[ast.expr]:
    """Return every expression that a name may stand for; of other expressions the expression itself."""
    if not isinstance(expr, ast.Name) or expr not in function.parents or not depth:
        return [expr]
    found: list[ast.expr] = []
    for reached in function.flow.reaching(expr.id, expr):
        if reached.kind == "assign" and reached.value is not None:
            found += alternatives(function, reached.value, depth - 1)
        else:
            found.append(expr)
    return found or [expr]


def addends(function: Function, expr: ast.expr, depth: int = 8) -> list[ast.expr]:
    """Return the terms of a sum, through names with one definition and through broadcasts.

    A difference's right side counts as a term too. A name that is augmented is followed to what it was before.
    """
    found: list[ast.expr] = []
    waiting: list[tuple[ast.expr, int]] = [(expr, depth)]
    while waiting and len(found) < 64:
        node, left = waiting.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            if node not in function.parents:  # an augmented assignment
                assert isinstance(node.left, ast.Name)
                values = _before(function, node.left.id, node) if left > 0 else []
                waiting = [*((each, left - 1) for each in values[:1]), (node.right, left), *waiting]
                if not values:
                    found.append(node.left)
            else:
                waiting = [(node.left, left), (node.right, left), *waiting]
        elif isinstance(node, ast.Subscript) and is_broadcast(node):
            waiting.insert(0, (node.value, left))
        elif isinstance(node, ast.Name) and left > 0 and node in function.parents:
            value = function.flow.value(node)
            if value is None:
                found.append(node)
            else:
                waiting.insert(0, (value, left - 1))
        else:
            found.append(node)
    return found


def factors(function: Function, expr: ast.expr, depth: int = 6) -> list[ast.expr]:
    """Return the factors of a product, through names with one definition, brackets of sums left whole."""
    found: list[ast.expr] = []
    waiting: list[tuple[ast.expr, int]] = [(expr, depth)]
    while waiting and len(found) < 64:
        node, left = waiting.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and node in function.parents:
            waiting = [(node.left, left), (node.right, left), *waiting]
        elif isinstance(node, ast.Subscript) and is_broadcast(node):
            waiting.insert(0, (node.value, left))
        elif isinstance(node, ast.Name) and left > 0 and node in function.parents:
            value = function.flow.value(node)
            product = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult)
            if value is not None and (product or isinstance(value, (ast.Name, ast.Subscript))):
                waiting.insert(0, (value, left - 1))
            else:
                found.append(node)
        else:
            found.append(node)
    return found


def conjuncts(function: Function, expr: ast.expr, depth: int = 8) -> list[ast.expr]:
    """Return the conditions of a mask that are joined by "&" or "and", through names and broadcasts."""
    found: list[ast.expr] = []
    waiting: list[tuple[ast.expr, int]] = [(expr, depth)]
    while waiting and len(found) < 64:
        node, left = waiting.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.Mult)):
            waiting = [(node.left, left), (node.right, left), *waiting]
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            waiting = [*((value, left) for value in node.values), *waiting]
        elif isinstance(node, ast.Subscript) and is_broadcast(node):
            waiting.insert(0, (node.value, left))
        elif isinstance(node, ast.Name) and left > 0 and node in function.parents:
            value = function.flow.value(node)
            if value is None:
                found.append(node)
            else:
                waiting.insert(0, (value, left - 1))
        else:
            found.append(node)
    return found


def is_broadcast(node: ast.Subscript) -> bool:
    """Return whether a subscript only adds dimensions, as in ``x[:, None]``."""
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return all(
        (isinstance(part, ast.Slice) and part.lower is None and part.upper is None and part.step is None)
        or (isinstance(part, ast.Constant) and part.value is None)
        for part in parts
    ) and any(isinstance(part, (ast.Slice, ast.Constant)) for part in parts)


def names_in(expr: ast.AST) -> set[str]:
    """Return the names that an expression spells out."""
    return {node.id for node in ast.walk(expr) if isinstance(node, ast.Name)}
