"""Which tensors of a host function lie flattened: their rows are all tokens of a batch, whatever they are called."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_SAME = ("contiguous", "to", "float", "half", "bfloat16", "clone", "detach", "type", "cuda", "type_as")
_LIKE = ("empty_like", "zeros_like", "ones_like", "rand_like")
_FLATTENS = re.compile(r"(view|reshape)\([^)\n]*-1|flatten\(")
DEPTH = 4


def is_flattened(host: Function, tensor: ast.expr, depth: int = DEPTH) -> bool:
    """Return whether a tensor is a view or reshape ``(-1, row)``, in this function or in the one that calls it."""
    if not depth:
        return False
    if isinstance(tensor, ast.IfExp):
        return is_flattened(host, tensor.body, depth - 1) or is_flattened(host, tensor.orelse, depth - 1)
    if isinstance(tensor, ast.Name):
        reached = host.flow.reaching(tensor.id, tensor) if tensor in host.parents else host.flow.definitions(tensor.id)
        for each in reached:
            if each.kind == "assign" and each.value is not None and each.value is not tensor:
                if is_flattened(host, each.value, depth - 1):
                    return True
            elif each.kind == "param" and _given_flattened(host, tensor.id, depth):
                return True
        return False
    if not isinstance(tensor, ast.Call) or not isinstance(tensor.func, ast.Attribute):
        return False
    last, given = tensor.func.attr, tensor.args
    if last in ("view", "reshape"):
        if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)):
            given = given[0].elts
        if last == "reshape" and ast.unparse(tensor.func.value) == "torch":
            given = given[1].elts if len(given) > 1 and isinstance(given[1], (ast.Tuple, ast.List)) else []
        return len(given) == 2 and _is_minus_one(given[0]) and _is_row(given[1])
    if last == "flatten":
        return [ast.unparse(each) for each in given] in (["0", "-2"], ["0", "1"])
    if last in _SAME:
        return is_flattened(host, tensor.func.value, depth - 1)
    return last in _LIKE and bool(given) and is_flattened(host, given[0], depth - 1)


def row_count(host: Function, expr: ast.expr) -> bool:
    """Return whether an expression is the number of rows of a flattened tensor: ``x.shape[0]``, or unpacked from it."""
    if isinstance(expr, ast.Name):
        made = host.flow.reaching(expr.id, expr) if expr in host.parents else host.flow.definitions(expr.id)
        for each in made:
            if each.kind == "unpacked" and each.index == 0 and each.value is not None:
                tensor = _shaped(each.value)
                if tensor is not None and (_is_packed(each.node) or is_flattened(host, tensor)):
                    return True
            value = each.value if each.kind == "assign" else None
            if value is not None and not isinstance(value, ast.Name) and row_count(host, value):
                return True
        return False
    if isinstance(expr, ast.Subscript) and ast.unparse(expr.slice) == "0":
        tensor = _shaped(expr.value)
        return tensor is not None and is_flattened(host, tensor)
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "size":
        return [ast.unparse(each) for each in expr.args] == ["0"] and is_flattened(host, expr.func.value)
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.FloorDiv):  # all elements by the length of a row
        top, under = expr.left, ast.unparse(expr.right)
        whole = isinstance(top, ast.Call) and isinstance(top.func, ast.Attribute) and top.func.attr == "numel"
        return whole and (".shape[-1]" in under or isinstance(expr.right, ast.Name))
    return False


def _is_packed(node: ast.AST) -> bool:
    """Return whether a statement takes a shape apart as ``T, D``: the tokens of a batch without an axis for it."""
    targets = node.targets[0].elts if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) else []
    return len(targets) == 2 and isinstance(targets[0], ast.Name) and targets[0].id == "T"


def _shaped(value: ast.expr) -> ast.expr | None:
    """Return the tensor whose shape an expression is."""
    if isinstance(value, ast.Attribute) and value.attr == "shape":
        return value.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "size":
        return None if value.args else value.func.value
    return None


def _given_flattened(host: Function, name: str, depth: int) -> bool:
    """Return whether a function of the same module hands over a flattened tensor under a parameter's name."""
    if not host.module.holds(_FLATTENS):
        return False
    places = [param.name for param in host.params]
    for caller, call in host.module.calls_by_name.get(host.name, ()):
        if caller is host:
            continue
        if host.name != (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")):
            continue
        if caller.module.resolve(call.func).rpartition(".")[2] != host.name:
            continue
        place = places.index(name) if name in places else len(call.args)
        given = next((each.value for each in call.keywords if each.arg == name), None)
        if given is None and place < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args):
            given = call.args[place]
        if given is not None and is_flattened(caller, given, depth - 1):
            return True
    return False


def _is_minus_one(expr: ast.expr) -> bool:
    return ast.unparse(expr) == "-1"


def _is_row(expr: ast.expr) -> bool:
    """Return whether the second dimension of a view may be a row's length: a constant is a tile or a group."""
    return not isinstance(expr, ast.Constant) and not _is_minus_one(expr)
