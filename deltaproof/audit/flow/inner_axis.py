"""How long the innermost axis of a pointer is: the lanes that are added without a stride, and what bounds them."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.dimensions import Size, of_name
from deltaproof.audit.flow.trace import addends, called_name, factors, names_in

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


def inner_axis(function: Function, stride: str) -> Size | None:
    """Return how long the axis is that lies without a stride behind one that a stride steps over; None for none."""
    known: dict[str, Size | None] = function.__dict__.setdefault("_inner_axes", {})
    if stride not in known:
        known[stride] = _inner_axis(function, stride)
    return known[stride]


def _inner_axis(function: Function, stride: str) -> Size | None:
    for access in accesses(function) if _limits(function) else ():
        if stride not in _strides(function, access.offsets):
            continue
        for term in access.offsets:
            if isinstance(term, ast.Call) and called_name(function, term).endswith("arange"):
                limit = _limits(function).get(term)
                if limit is not None:
                    return of_name(limit, function.param_names) or Size(rest=7)
    return None


def _strides(function: Function, terms: list[ast.expr]) -> set[str]:
    return {name for term in terms for part in factors(function, term) for name in names_in(part)}


def _limits(function: Function) -> dict[ast.expr, str]:
    """Return the names that comparisons keep ranges below: range → name."""
    known: dict[ast.expr, str] | None = function.__dict__.get("_lane_limits")
    if known is not None:
        return known
    found: dict[ast.expr, str] = {}
    for node in function.nodes:
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or not isinstance(node.ops[0], ast.Lt):
            continue
        limit = node.comparators[0]
        if isinstance(limit, ast.Name):
            for term in addends(function, node.left):
                if isinstance(term, ast.Call) and called_name(function, term).endswith("arange"):
                    found.setdefault(term, limit.id)
    function.__dict__["_lane_limits"] = found
    return found
