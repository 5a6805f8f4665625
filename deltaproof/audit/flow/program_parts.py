"""Which parts of the program ids an expression of a Triton kernel depends on.

A program id that a kernel takes apart (``i_v, i_h = pid % NV, pid // NV``) has two parts for every divisor; an address
has to depend on both, or on the whole, to be one program's own.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.trace import MOST, called_name, resolved

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltaproof.audit.model.function import Function


@dataclass(frozen=True)
class Part:
    """A program id, or what is left of it after a division.

    Attributes:
        axis: its axis.
        kind: "whole", "rest" (of ``%``) or "quotient" (of ``//``).
        divisor: source text of the divisor; empty for a whole one.
    """

    axis: int
    kind: str
    divisor: str = ""

    def __str__(self) -> str:
        if self.kind == "whole":
            return f"program_id({self.axis})"
        return f"program_id({self.axis}) {'%' if self.kind == 'rest' else '//'} {self.divisor}"


def axis_of(function: Function, expr: ast.expr) -> int | None:
    """Return the axis, if an expression is a program id, cast or not; else None."""
    for _ in range(4):
        expr = resolved(function, expr)
        if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            expr = expr.func.value
    if isinstance(expr, ast.Call) and called_name(function, expr).endswith("program_id"):
        given = arguments(expr, ("axis",)).get("axis")
        if isinstance(given, ast.Constant) and isinstance(given.value, int):
            return given.value
    return None


def parts(function: Function, expr: ast.AST | None) -> set[Part]:
    """Return the parts of program ids that an expression depends on, through all definitions and through loads."""
    found: set[Part] = set()
    waiting: list[ast.AST] = [] if expr is None else [expr]
    seen: set[int] = set()
    while waiting and len(seen) < 4 * MOST:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.FloorDiv)):
            axis = axis_of(function, node.left)
            if axis is not None:
                kind = "rest" if isinstance(node.op, ast.Mod) else "quotient"
                found.add(Part(axis, kind, ast.unparse(node.right)))
                waiting.append(node.right)
                continue
        if isinstance(node, ast.Call):
            axis = axis_of(function, node)
            if axis is not None:
                found.add(Part(axis, "whole"))
                continue
        if isinstance(node, ast.Name) and node in function.parents:
            for reached in function.flow.reaching(node.id, node):
                waiting += _sources(function, reached.value, reached.node)
            continue
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _sources(function: Function, value: ast.expr | None, node: ast.AST) -> list[ast.AST]:
    if not isinstance(node, ast.AugAssign) or not isinstance(node.target, ast.Name):
        return [] if value is None else [value]
    before = function.flow.before(node.target.id, node)
    return [node.value, *(each.value for each in before if each.value is not None and each.node is not node)]


def missing(of: set[Part], among: Iterable[Part]) -> list[Part]:
    """Return the parts of a kernel's program ids that a set of parts leaves out, by axis.

    Args:
        of: what an address depends on.
        among: what the kernel's work depends on.
    """
    whole = {part.axis for part in of if part.kind == "whole"}
    axes = {part.axis for part in of}
    found = []
    for part in sorted(set(among), key=lambda part: (part.axis, part.kind, part.divisor)):
        if part.axis in whole or part in of:
            continue
        if part.axis not in axes or (part.kind != "whole" and _other(part) in of):
            found.append(part)
    return found


def _other(part: Part) -> Part:
    return Part(part.axis, "rest" if part.kind == "quotient" else "quotient", part.divisor)
