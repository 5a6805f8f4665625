"""Kernels that come in two widths: a compile-time switch chooses between 32 and 64 bits by the size of the data."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch

_SWITCH = re.compile(r"long|int_?64|64_?bit|wide|large|big|int_?32|32_?bit|index(ing)?_", re.IGNORECASE)


def index_switch(function: Function, launches: Sequence[Launch], node: ast.AST) -> ast.AST | None:
    """Return the ``if`` of a compile-time switch whose other arm computes a node's index in 64 bits; None for none.

    The switch has to say so by its name, or to be launched with a comparison.
    """
    here: ast.AST = node
    for around in function.ancestors(node):
        if isinstance(around, ast.If) and here is not around.test:
            other = around.orelse if here in around.body else around.body
            names = {each.id for each in ast.walk(around.test) if isinstance(each, ast.Name)} & function.constexprs
            chosen = any(_SWITCH.search(name) or _compared(function, launches, name) for name in names)
            if chosen and any("int64" in ast.unparse(statement) for statement in other):
                return around
        here = around
    return None


def _compared(function: Function, launches: Sequence[Launch], name: str) -> bool:
    for launch in launches:
        given = launch.bound(function).get(name)
        if given is not None and any(
            isinstance(part, ast.Compare) and isinstance(part.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE))
            for part in ast.walk(given)
        ):
            return True
    return False
