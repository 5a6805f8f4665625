"""How large the integers of a host function get in practice: grids, shapes and strides of tensors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.dimensions import Size, few_tokens, of_dimension, of_name, of_table
from deltaproof.audit.flow.flat_rows import row_count
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch

ROWS = Size(batch=True, rest=5)
"""The first dimension of a tensor that nothing else is known of."""
ELEMENTS = Size(batch=True, time=True, rest=10)
"""All elements of a tensor: its tokens times the length of a row."""
TILE = Size(rest=6)
"""A tile of at least 64."""
_ELEMENTS = re.compile(r"(n_elements|num_elements|numel|total_elements|n_elem|xnumel)$")
_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
_SAME = ("contiguous", "to", "float", "half", "bfloat16", "clone", "detach", "type", "zero_", "cuda")
_MADE = ("empty", "zeros", "ones", "new_empty", "new_zeros", "new_ones")
_FILLED = ("full", "new_full")


def grid_axes(launch: Launch) -> Iterator[list[ast.expr]]:
    """Yield the axes of every grid that a launch may have: a tuple, a name, a lambda or a nested function."""
    yield from _axes(launch.host, launch.grid, 4)


def _axes(host: Function, expr: ast.expr, depth: int) -> Iterator[list[ast.expr]]:
    if not depth:
        return
    if isinstance(expr, (ast.Tuple, ast.List)):
        yield list(expr.elts)
    elif isinstance(expr, ast.Lambda):
        yield from _axes(host, expr.body, depth - 1)
    elif isinstance(expr, ast.IfExp):
        yield from _axes(host, expr.body, depth - 1)
        yield from _axes(host, expr.orelse, depth - 1)
    elif isinstance(expr, ast.Name):
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            if isinstance(reached.node, ast.FunctionDef):
                for node in ast.walk(reached.node):
                    if isinstance(node, ast.Return) and node.value is not None:
                        yield from _axes(host, node.value, depth - 1)
            elif reached.kind == "assign" and reached.value is not None:
                yield from _axes(host, reached.value, depth - 1)


def host_size(host: Function, expr: ast.expr, depth: int = 8, *, long: bool = True) -> Size | None:
    """Return how large an integer of a host function gets; None where nothing is known.

    Args:
        host: the function.
        expr: the integer.
        depth: how many steps to follow.
        long: whether the rows of a flattened tensor may be all tokens of a training batch.
    """
    if isinstance(expr, ast.Constant) and isinstance(expr.value, int):
        return Size(rest=max(abs(expr.value), 1).bit_length() - 1)
    if not depth:
        return None

    def within(part: ast.expr) -> Size | None:
        return host_size(host, part, depth - 1, long=long)

    if long and isinstance(expr, (ast.Name, ast.Subscript, ast.Call, ast.BinOp)) and row_count(host, expr):
        return Size(True, True)
    if isinstance(expr, ast.Name):
        named = of_name(expr.id)
        if named is not None:
            return named
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            if reached.kind == "assign" and reached.value is not None:
                found = within(reached.value)
                if found is not None:
                    return found
        return ELEMENTS if long and _ELEMENTS.match(expr.id) else None
    if isinstance(expr, ast.Attribute):
        return Size(rest=8) if expr.attr == "multi_processor_count" else of_name(expr.attr)
    if isinstance(expr, ast.Subscript) and isinstance(expr.slice, ast.Constant):
        if isinstance(expr.value, ast.Attribute) and expr.value.attr == "shape":
            text = ast.unparse(expr.value)
            if re.search(r"weight|scale|expert", text):
                return Size(rest=14) if expr.slice.value == 0 else None
            return (Size(batch=True) if "logit" in text.lower() else ROWS) if expr.slice.value == 0 else None
        return of_name(str(expr.slice.value)) if isinstance(expr.slice.value, str) else None
    if isinstance(expr, ast.IfExp):
        arms = [size for part in (expr.body, expr.orelse) if (size := within(part)) is not None]
        return max(arms, key=lambda size: size.bits, default=None)
    if isinstance(expr, ast.BinOp):
        left, right = within(expr.left), within(expr.right)
        if right is not None and isinstance(expr.op, ast.FloorDiv):
            right = _tile(expr.right, right)
        return _host_joined(expr.op, left, right)
    if isinstance(expr, ast.Call):
        last = (expr.func.attr if isinstance(expr.func, ast.Attribute) else dotted(expr.func)).rpartition(".")[2]
        if last == "numel" and isinstance(expr.func, ast.Attribute):
            flat = re.search(r"loc|ind|ids|idx|len|slot|mask|rows", ast.unparse(expr.func.value))
            return Size(rest=17) if flat else ELEMENTS if long else Size(batch=True, time=True, rest=6)
        if last == "cdiv" and len(expr.args) == 2:
            parts = [within(part) for part in expr.args]
            return _host_joined(ast.FloorDiv(), parts[0], TILE if parts[1] is None else _tile(expr.args[1], parts[1]))
        if last in ("len", "size") and expr.args:
            return of_table(host, expr.args[0]) if last == "len" else None
        if last in ("min", "max") and expr.args:
            sizes = [size for part in expr.args if (size := within(part)) is not None]
            pick = min if last == "min" else max
            return pick(sizes, key=lambda size: size.bits) if sizes else None
    return None


def _tile(expr: ast.expr, size: Size) -> Size:
    """Return the size of a divisor; a written number is a tile, which counts as the kernel's name for it does."""
    return TILE if isinstance(expr, ast.Constant) and size.rest > TILE.rest else size


def _host_joined(op: ast.operator, left: Size | None, right: Size | None) -> Size | None:
    if isinstance(op, ast.Mult):
        if left is None or right is None:
            return left or right
        return left.times(right)
    if left is None:
        return None
    if isinstance(op, ast.FloorDiv):
        return left.over(right) if right is not None else left
    if isinstance(op, (ast.Add, ast.Sub)):
        return max((left, right or left), key=lambda size: size.bits)
    return None


def tensor_shape(host: Function, expr: ast.expr, depth: int = 5) -> list[ast.expr] | None:
    """Return the dimensions of a tensor of a host function where the source spells them out; None elsewhere."""
    if not depth:
        return None
    if isinstance(expr, ast.IfExp):
        return tensor_shape(host, expr.body, depth - 1) or tensor_shape(host, expr.orelse, depth - 1)
    if isinstance(expr, ast.Name):
        spelled = _spelled(host).get(expr.id)
        if spelled is not None:
            return spelled
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            if reached.kind == "assign" and reached.value is not None:
                found = tensor_shape(host, reached.value, depth - 1)
                if found is not None:
                    return found
        return None
    if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Attribute):
        return None
    last, given = expr.func.attr, expr.args
    if last in _SAME:
        return tensor_shape(host, expr.func.value, depth - 1)
    if last in _LIKE and given:
        return tensor_shape(host, given[0], depth - 1)
    size = next((each.value for each in expr.keywords if each.arg == "size"), None)
    if last in _FILLED:
        given = given[:1]
    elif last not in (*_MADE, "view", "reshape", "expand"):
        return None
    return _dimensions(host, [size] if size is not None else given, depth - 1)


def _dimensions(host: Function, given: list[ast.expr], depth: int) -> list[ast.expr] | None:
    if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)):
        given = given[0].elts
    elif len(given) == 1 and isinstance(given[0], ast.Attribute) and given[0].attr == "shape":
        return tensor_shape(host, given[0].value, depth)
    found: list[ast.expr] = []
    for each in given:
        if not isinstance(each, ast.Starred):
            found.append(each)
            continue
        behind = each.value
        inner = tensor_shape(host, behind.value, depth) if _is_shape(behind) else None  # type: ignore[attr-defined]
        if inner is None:
            return None
        found += inner
    return found or None


def _is_shape(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Attribute) and expr.attr == "shape"


def _spelled(host: Function) -> dict[str, list[ast.expr]]:
    """Return the shapes that a host function takes apart, as in ``B, T, H, K = q.shape``, or asserts."""
    known: dict[str, list[ast.expr]] | None = host.__dict__.get("_spelled_shapes")
    if known is not None:
        return known
    found: dict[str, list[ast.expr]] = {}
    for node in host.nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names, value = list(node.targets[0].elts), node.value
            if isinstance(value, ast.Tuple) and value.elts and isinstance(value.elts[0], ast.Starred):
                names, value = names[: len(names) - len(value.elts) + 1], value.elts[0].value
            if any(isinstance(name, ast.Starred) for name in names):
                continue
            if isinstance(value, ast.Attribute) and value.attr == "shape" and isinstance(value.value, ast.Name):
                found.setdefault(value.value.id, names)
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 1:
            left, right = node.test.left, node.test.comparators[0]
            equal = isinstance(node.test.ops[0], ast.Eq) and isinstance(right, ast.Tuple)
            if equal and isinstance(left, ast.Attribute) and left.attr == "shape" and isinstance(left.value, ast.Name):
                found.setdefault(left.value.id, right.elts)  # type: ignore[attr-defined]
    host.__dict__["_spelled_shapes"] = found
    return found


def shape_sizes(host: Function, expr: ast.expr, kernel: str = "") -> list[Size | None] | None:
    """Return how long the axes of a host tensor get, None for one that is not known; None for an unknown shape.

    Args:
        host: the function.
        expr: the tensor.
        kernel: the name of the kernel that takes it.
    """
    shape = tensor_shape(host, expr)
    if shape is None:
        return None
    names = [part.id if isinstance(part, ast.Name) else "" for part in shape]
    if names[-1] in ("D", "dim") and "state" in ast.unparse(expr):
        names[-1] = "hidden"  # both sides of a state in one axis
    return [
        Size(rest=4) if few_tokens(kernel, name) else of_dimension(name, names) or host_size(host, part)
        for name, part in zip(names, shape, strict=True)
    ]


def stride_of(host: Function, expr: ast.expr | None, depth: int = 4) -> tuple[ast.expr, int] | None:
    """Return the tensor and the axis whose stride an expression is, through names and ``x.stride()[0]``."""
    if expr is None or not depth:
        return None
    if isinstance(expr, ast.IfExp):
        return stride_of(host, expr.body, depth - 1) or stride_of(host, expr.orelse, depth - 1)
    if isinstance(expr, ast.Name):
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            value = reached.value
            if reached.kind == "assign" and value is not None:
                found = stride_of(host, value, depth - 1)
                if found is not None:
                    return found
            elif reached.kind == "unpacked" and value is not None and reached.index is not None and _strides(value):
                return value.func.value, reached.index  # type: ignore[attr-defined]
        return None
    if isinstance(expr, ast.Subscript) and isinstance(expr.slice, ast.Constant) and isinstance(expr.slice.value, int):
        whole = expr.value
        if isinstance(whole, ast.Name) and whole in host.parents:
            made = [each.value for each in host.flow.reaching(whole.id, whole) if each.kind == "assign"]
            whole = next((arm for value in made if value is not None for arm in _arms(value) if _strides(arm)), whole)
        return (whole.func.value, expr.slice.value) if _strides(whole) else None  # type: ignore[attr-defined]
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "stride":
        axis = expr.args[0] if len(expr.args) == 1 else None
        negative = isinstance(axis, ast.UnaryOp) and isinstance(axis.op, ast.USub)
        if negative:
            axis = axis.operand  # type: ignore[union-attr]
        if isinstance(axis, ast.Constant) and isinstance(axis.value, int):
            return expr.func.value, -axis.value if negative else axis.value
    return None


def _arms(expr: ast.expr) -> list[ast.expr]:
    return [*_arms(expr.body), *_arms(expr.orelse)] if isinstance(expr, ast.IfExp) else [expr]


def _strides(expr: ast.expr) -> bool:
    return (
        isinstance(expr, ast.Call)
        and isinstance(expr.func, ast.Attribute)
        and expr.func.attr == "stride"
        and not expr.args
    )
