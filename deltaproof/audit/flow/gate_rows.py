"""Tiles of gates whose rows behind the end of the sequence are zeros, and what they are measured against."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow import selects
from deltaproof.audit.flow.access import Access, arguments
from deltaproof.audit.flow.trace import alternatives, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

TIME = re.compile(r"T|L|S|N_CTX|[Tt]_\w+|\w*seq_?len\w*|\w*seqlen\w*")


def whole(kernel: Function, gate: Access) -> bool:
    """Return whether a tile lies before the program's own one, in a loop up to it: then all its rows exist."""
    where = origins(kernel, gate.pointer).names
    for around in kernel.ancestors(gate.call):
        if (
            isinstance(around, ast.For)
            and isinstance(around.target, ast.Name)
            and around.target.id in where
            and isinstance(around.iter, ast.Call)
            and around.iter.args
        ):
            stop = around.iter.args[0 if len(around.iter.args) == 1 else 1]
            until = origins(kernel, stop)
            ends = until.calls_any("min", "minimum") or any(TIME.fullmatch(name) for name in until.names)
            if until.calls_any("program_id") and not ends:
                return True
    return False


def zero_filled(kernel: Function, expr: ast.expr, loads: dict[int, Access], summed: str) -> Access | None:
    """Return the load of a tile whose rows behind the end are zeros, if these are the rows that are summed over."""
    shape = selects.broadcast(expr)
    if shape and shape != summed:
        return None
    if shape:
        expr = expr.value  # type: ignore[attr-defined]
    value = bare(kernel, expr)
    access = loads.get(id(value))
    if access is None:
        return None
    if access.boundary_check is not None:
        axis = _time_axis(access, bool(shape))
        return access if axis == ("rows" if shape else summed) else None
    if access.mask is None or (access.other is not None and not _is_zero(access.other)):
        return None
    axis = "flat" if shape else summed
    return access if _masked_along(kernel, access.mask, axis) else None


def _masked_along(kernel: Function, mask: ast.expr, axis: str) -> bool:
    """Return whether a mask holds a row index against the length, along "rows", "columns" or in a "flat" mask."""
    mask = resolved(kernel, mask)
    if isinstance(mask, ast.BinOp) and isinstance(mask.op, ast.BitAnd):
        return _masked_along(kernel, mask.left, axis) or _masked_along(kernel, mask.right, axis)
    if isinstance(mask, ast.Subscript):
        return selects.broadcast(mask) == axis and _masked_along(kernel, mask.value, "flat")
    if not isinstance(mask, ast.Compare) or len(mask.ops) != 1 or not isinstance(mask.ops[0], ast.Lt):
        return False
    left = mask.left
    if axis != "flat":
        if selects.broadcast(left) != axis:
            return False
        left = left.value  # type: ignore[attr-defined]
    bound = mask.comparators[0]
    if not origins(kernel, left).calls_any("arange"):
        return False
    return any(TIME.fullmatch(name) for name in (ast.unparse(bound), *_counted(kernel, bound)))


def _counted(kernel: Function, bound: ast.expr) -> set[str]:
    """Return the names that a difference, or what a minimum is taken of, goes back to: what is left of a length."""
    reached = origins(kernel, bound)
    left = any(isinstance(node, ast.Sub) for node in ast.walk(bound)) or reached.calls_any("min", "minimum")
    return reached.names if left and not reached.calls_any("arange") else set()


def _time_axis(access: Access, flat: bool) -> str:
    """Return whether time runs along "rows" or "columns" of a checked block, also where branches make it differently.

    Args:
        access: the load.
        flat: whether the block is to have one dimension; its broadcast says then which way it runs: "rows" of it are
            what is asked for.
    """
    for each in alternatives(access.function, access.pointer):
        if not isinstance(each, ast.Call) or selects.last_name(access.function, each) != "make_block_ptr":
            continue
        shape = arguments(each, ("base", "shape", "strides", "offsets", "block_shape", "order")).get("shape")
        sizes = [ast.unparse(size) for size in shape.elts] if isinstance(shape, (ast.Tuple, ast.List)) else []
        times = [place for place, size in enumerate(sizes) if TIME.fullmatch(size)]
        checked = ast.unparse(access.boundary_check) if access.boundary_check is not None else ""
        if len(times) == 1 and len(sizes) == (1 if flat else 2) and str(times[0]) in checked:
            return "rows" if times[0] == 0 else "columns"
    return ""


def bare(kernel: Function, expr: ast.expr) -> ast.expr:
    for _ in range(4):
        expr = resolved(kernel, expr)
        if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            expr = expr.func.value
        else:
            break
    return expr


def _is_zero(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Constant) and expr.value in (0, 0.0)


def reference(kernel: Function, expr: ast.expr, gate: Access, loads: dict[int, Access]) -> Access | None:
    """Return the load that a gate is measured against; None where it is none of its own: it says no sign then."""
    if isinstance(expr, ast.Subscript):
        expr = expr.value
    other = loads.get(id(bare(kernel, expr)))
    return None if other is gate else other


def centred(kernel: Function, access: Access) -> bool:
    """Return whether a reference row is the middle of its tile.

    The tile's own first row is then as far from it as a row past the end, so whoever takes the exponential of both has
    to bound the gates anyway.
    """
    waiting: list[ast.AST] = [access.pointer]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or (isinstance(node, ast.Call) and kernel.called(node).endswith((".load", "program_id"))):
            continue
        seen.add(id(node))
        half = isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and node.right
        if isinstance(half, ast.Constant) and half.value == 2:
            return True
        if isinstance(node, ast.Name) and node in kernel.parents:
            waiting += [each.value for each in kernel.flow.reaching(node.id, node) if each.value is not None]
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return False
