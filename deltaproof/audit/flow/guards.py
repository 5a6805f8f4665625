"""Conditions under which a statement runs."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.definitions import leaves

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


@dataclass(frozen=True)
class Guard:
    """One condition.

    Attributes:
        test: the condition.
        holds: whether it is true where the statement runs, or false.
        node: the statement that tests it.
        kind: "if", "early exit", "assert", "while", "conditional" (an ``a if c else b``), "bool" (behind ``and``) or
            "loop".
    """

    test: ast.expr
    holds: bool
    node: ast.AST
    kind: str


def guards(function: Function, node: ast.AST) -> list[Guard]:
    """Return the conditions that hold where a node runs, innermost first: ifs around it, exits and asserts before."""
    found: list[Guard] = []
    here = node
    for around in function.ancestors(node):
        if isinstance(around, ast.IfExp):
            if here is around.body:
                found.append(Guard(around.test, True, around, "conditional"))
            elif here is around.orelse:
                found.append(Guard(around.test, False, around, "conditional"))
        elif isinstance(around, ast.BoolOp) and here in around.values:
            before = around.values[: around.values.index(here)]  # type: ignore[arg-type]
            found += [Guard(test, isinstance(around.op, ast.And), around, "bool") for test in before]
        elif isinstance(around, (ast.If, ast.While)) and here is not around.test:
            kind = "if" if isinstance(around, ast.If) else "while"
            if here in around.body:
                found.append(Guard(around.test, True, around, kind))
            elif here in around.orelse:
                found.append(Guard(around.test, False, around, kind))
        if isinstance(here, ast.stmt):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(around, name, None)
                if isinstance(block, list) and here in block:
                    found += _before(block[: block.index(here)])
        here = around
    return found


def _before(statements: list[ast.stmt]) -> list[Guard]:
    found = []
    for statement in reversed(statements):
        if isinstance(statement, ast.Assert):
            found.append(Guard(statement.test, True, statement, "assert"))
        elif isinstance(statement, ast.If):
            if leaves(statement.body):
                found.append(Guard(statement.test, False, statement, "early exit"))
            elif statement.orelse and leaves(statement.orelse):
                found.append(Guard(statement.test, True, statement, "early exit"))
    return found


def loops(function: Function, node: ast.AST) -> list[Guard]:
    """Return the ranges of the for loops around a node, innermost first: one that may be empty is a condition."""
    return [Guard(each.iter, True, each, "loop") for each in function.ancestors(node) if isinstance(each, ast.For)]


def exclusive(function: Function, first: ast.AST, second: ast.AST) -> bool:
    """Return whether a switch known at compile time keeps two nodes from running in one program."""
    known = {
        (ast.unparse(each.test), each.holds)
        for each in guards(function, first)
        if each.kind in ("if", "early exit") and _names(each.test) <= function.constexprs
    }
    return any((ast.unparse(each.test), not each.holds) in known for each in guards(function, second))


def _names(test: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
