"""How large a kernel's strides get in practice, from the tensors that its launches take them from."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.dimensions import Size, is_last_axis, of_axis, of_name
from deltaproof.audit.flow.flat_rows import is_flattened
from deltaproof.audit.flow.host_sizes import shape_sizes, stride_of
from deltaproof.audit.flow.inner_axis import inner_axis
from deltaproof.audit.flow.long_data import long_data
from deltaproof.audit.flow.trace import addends, called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch

ROW = 10
"""Bits of a row's length that nothing is known of."""


def stride_size(function: Function, launches: Sequence[Launch], name: str) -> Size | None:
    """Return a stride's size from the dimensions of the tensor that a launch takes it from; None elsewhere."""
    if "stride" not in name.lower():
        return None
    for launch in launches:
        bound, host = launch.bound(function), launch.host
        place = stride_of(host, bound.get(name))
        if place is None:
            continue
        tensor, axis = place
        text = ast.unparse(tensor)
        names = {
            each[1]: param
            for param, value in bound.items()
            if "stride" in param.lower() and (each := stride_of(host, value)) and ast.unparse(each[0]) == text
        }
        known = shape_sizes(host, tensor, function.name) or []
        long = axis in (0, -2) and long_data(function, launches)
        if long and is_flattened(host, tensor):
            return (known[-1] if known else None) or Size(rest=ROW)
        if known and axis < 0:
            axis += len(known)
        elif long and axis == -2:
            return Size(rest=ROW)
        if min((axis, *names)) < 0:
            return None
        if "conv" in text:  # as wide as the channels and few taps long, in either order
            return Size(rest=2 if axis else 14)
        size = Size()
        last = len(known) - 1 if known else max(names)
        for behind in range(axis + 1, last + 1):
            length = known[behind] if known else None
            size = size.times(length or _axis(function, names.get(behind, ""), behind == last))
        if known:
            return size
        inner = inner_axis(function, names[last])
        if inner is None and not is_last_axis(names[last]) and _unstrided(function, names[last]):
            inner = of_axis("")
        return size if inner is None else size.times(inner)
    return None


def _axis(function: Function, stride: str, last: bool) -> Size:
    """Return how long an axis is from the name of its stride; a whole axis in one tile is short."""
    length = _block_lengths(function).get(stride)
    if length is not None:
        return length
    for node in function.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            if any(isinstance(side, ast.Name) and side.id == stride for side in sides):
                index = sides[0] if isinstance(sides[1], ast.Name) and sides[1].id == stride else sides[1]
                if _whole_axis(function, index):
                    return Size(rest=5)
    return of_axis(stride, last)


def _block_lengths(function: Function) -> dict[str, Size]:
    """Return how long the axes are that block pointers step over: stride → what their shape says."""
    known: dict[str, Size] | None = function.__dict__.get("_block_lengths")
    if known is not None:
        return known
    found: dict[str, Size] = {}
    for call in function.calls_of("make_block_ptr"):
        given = arguments(call, ("base", "shape", "strides"))
        shape, strides = given.get("shape"), given.get("strides")
        if isinstance(shape, ast.Tuple) and isinstance(strides, ast.Tuple):
            for length, stride in zip(shape.elts, strides.elts, strict=False):
                size = of_name(length.id, function.param_names) if isinstance(length, ast.Name) else None
                if size is not None and isinstance(stride, ast.Name):
                    found.setdefault(stride.id, size)
    function.__dict__["_block_lengths"] = found
    return found


def _unstrided(function: Function, stride: str) -> bool:
    """Return whether a range without a stride is added to what is added to a stride's product: one more axis."""
    for node in function.nodes:
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and stride in names_in(node)):
            continue
        top: ast.expr = node
        while isinstance(around := function.parents.get(top), ast.BinOp) and isinstance(around.op, ast.Add):
            top = around
        for term in addends(function, top):
            if not isinstance(term, ast.BinOp) and origins(function, term).calls_any("arange"):
                return True
    return False


def _whole_axis(function: Function, index: ast.expr) -> bool:
    """Return whether an index is ``tl.arange(0, X)`` of a constant whose name says nothing."""
    while isinstance(index, ast.Subscript):
        index = index.value
    made = resolved(function, index)
    while isinstance(made, ast.Subscript):
        made = made.value
    if not isinstance(made, ast.Call) or not called_name(function, made).endswith("arange"):
        return False
    end = made.args[-1] if made.args else None
    return isinstance(end, ast.Name) and end.id in function.constexprs and of_name(end.id) is None
