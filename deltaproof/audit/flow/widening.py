"""Where a cast to 64 bits mends a product of 32 bits, and changes nothing else."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.model.names import dotted
from deltaproof.reports.audit import Edit

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_TENSORS = ("program_id", "load")
_STEPS = 12


def widening(function: Function, product: ast.BinOp, root: ast.AST) -> Edit | None:
    """Return the edit that widens the first factor of a product made from ``root``.

    Only a value that is a tensor for certain can be cast: what is a parameter may be a plain number in a kernel that
    was compiled for it. The cast stands in the product and nowhere else, because other uses may need 32 bits, such as
    the offsets of a block pointer.
    """
    if not isinstance(root, ast.Call):
        return None
    for factor in (_first(product.left), product.right):
        namespace = _tensor(function, factor, _STEPS)
        if namespace:
            line = function.module.lines[factor.end_lineno - 1]  # type: ignore[operator]
            column = len(line.encode()[: factor.end_col_offset].decode(errors="ignore"))
            where = factor.end_lineno or factor.lineno
            return Edit(
                line=where, column=column, end_line=where, end_column=column, text=f".to({namespace}.int64)"
            )  # fmt: skip
    return None


def _first(expr: ast.expr) -> ast.expr:
    """Return the leftmost operand: what is widened there widens everything up to the product."""
    while isinstance(expr, ast.BinOp):
        expr = expr.left
    return expr


def _tensor(function: Function, expr: ast.expr, steps: int) -> str:
    """Return the namespace (such as ``tl``) of the call that an integer tensor comes from; "" where that is unsure."""
    if steps == 0:
        return ""
    if isinstance(expr, ast.Call):
        owner, _, called = dotted(expr.func).rpartition(".")
        if called in _TENSORS and function.module.resolve(expr.func).startswith("triton."):
            return owner
        if isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            return _tensor(function, expr.func.value, steps - 1)
        return ""
    if isinstance(expr, ast.BinOp):
        return _tensor(function, expr.left, steps - 1) or _tensor(function, expr.right, steps - 1)
    if not isinstance(expr, ast.Name):
        return ""
    found = [_defined(function, expr, each.kind, each.value, each.index, steps) for each in
             function.flow.reaching(expr.id, expr)]  # fmt: skip
    return found[0] if found and all(found) else ""


def _defined(
    function: Function, name: ast.Name, kind: str, value: ast.expr | None, index: int | None, steps: int
) -> str:
    if value is None or (kind == "augmented" and isinstance(value, ast.BinOp)):
        return ""
    if kind == "assign":
        return _tensor(function, value, steps - 1)
    if kind == "unpacked" and isinstance(value, ast.Tuple) and index is not None and index < len(value.elts):
        return _tensor(function, value.elts[index], steps - 1)
    return ""
