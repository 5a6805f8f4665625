"""Outputs that are copies: a call is told to write into a copy of a strided view that nobody keeps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

_OUT = re.compile(r"^(out|output|dst)(_(ptr|buf|buffer|tensor))?$", re.IGNORECASE)
_IN_PLACE = re.compile(
    r"^(copy|fill|zero|add|sub|mul|div|clamp|index_copy|index_add|scatter|scatter_add|masked_fill)_$"
)
_PERMUTES = ("transpose", "permute", "t", "movedim", "swapaxes")
_SAME = ("view", "unsqueeze", "squeeze", "view_as", "unflatten")
_MASKS = ("nonzero", "where", "arange", "randperm", "argsort", "isin", "logical_not", "logical_and", "logical_or")


@dataclass(frozen=True)
class Lost:
    """One output that is lost.

    Attributes:
        call: who writes it.
        copied: the expression that copies.
        source: what is copied and should have been written.
        how: what copies: "reshape()", "contiguous()", "flatten()" or "an index of tensors".
    """

    call: ast.Call
    copied: ast.expr
    source: ast.expr
    how: str


def lost_outputs(host: Function, project: Project) -> Iterator[Lost]:
    """Yield the outputs of calls whose value nobody takes, where the output is a copy that only the call knows."""
    for call in host.calls:
        if not isinstance(host.parents.get(call), ast.Expr):
            continue
        for argument in _outputs(host, call, project):
            copied = _behind(host, argument, call)
            found = None if copied is None else _copies(host, copied)
            if copied is not None and found is not None:
                yield Lost(call, copied, *found)
                break


def _outputs(host: Function, call: ast.Call, project: Project) -> Iterator[ast.expr]:
    """Yield what a call writes, by the argument's name or by what a kernel stores."""
    if isinstance(call.func, ast.Attribute) and _IN_PLACE.match(call.func.attr):
        yield call.func.value
        return
    for word in call.keywords:
        if word.arg is not None and _OUT.match(word.arg):
            yield word.value
    if isinstance(call.func, ast.Subscript):
        launch = next((each for each in host.launches if each.call is call), None)
        kernel = None if launch is None else project.kernel_of(launch)
        if launch is not None and kernel is not None:
            stored = {access.base for access in accesses(kernel) if access.kind != "load"}
            yield from (given for name, given in launch.bound(kernel).items() if name in stored)
    elif any(isinstance(each, (ast.Call, ast.Subscript)) and _copies(host, each) for each in call.args):
        target = project.function(host.called(call), host.module)
        if target is not None and target.owner is None:
            pairs = zip(target.params, call.args, strict=False)
            yield from (given for param, given in pairs if _OUT.match(param.name))


def _behind(host: Function, expr: ast.expr, call: ast.Call) -> ast.expr | None:
    """Return an output's expression; behind a name only if the name occurs in no other statement than the call."""
    if not isinstance(expr, ast.Name):
        return expr
    value = host.flow.value(expr) if expr in host.parents else None
    statement = host.statement(call)
    uses = [each for each in host.of_type(ast.Name) if each.id == expr.id and isinstance(each.ctx, ast.Load)]
    known = len(host.flow.definitions(expr.id)) == 1 and all(host.statement(each) is statement for each in uses)
    return value if known else None


def _copies(host: Function, expr: ast.expr) -> tuple[ast.expr, str] | None:
    """Return what an expression copies and how; None where it is a view, or may be one."""
    while True:
        if isinstance(expr, ast.Subscript):
            if _tensor_index(host, expr.slice):
                return expr.value, "an index of tensors"
            expr = expr.value
            continue
        if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Attribute):
            return None
        how, source = expr.func.attr, expr.func.value
        if how in ("contiguous", "flatten", "reshape") and not (how == "flatten" and (expr.args or expr.keywords)):
            given = list(expr.args)
            if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)):
                given = given[0].elts
            kept = 1 if how == "flatten" else len(given)
            if (how != "reshape" or _leading(given)) and _strided(host, source, 0 if how == "contiguous" else kept):
                return source, f"{how}()"
        elif how not in _SAME:
            return None
        expr = source


def _leading(sizes: list[ast.expr]) -> bool:
    """Return whether a shape's first size is -1: the axes in front are merged."""
    return bool(sizes) and ast.unparse(sizes[0]) == "-1"


def _strided(host: Function, expr: ast.expr, kept: int) -> bool:
    """Return whether a view is not dense for sure; with ``kept`` axes asked for, whether merging has to copy it."""
    if isinstance(expr, ast.Name):
        value = host.flow.value(expr) if expr in host.parents else None
        return value is not None and not isinstance(value, ast.Name) and _strided(host, value, kept)
    if isinstance(expr, ast.Attribute):
        return expr.attr in ("T", "mT") and kept <= 1
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr in _PERMUTES:
        if expr.func.attr == "permute":
            return kept <= 1 or (len(expr.args) > kept and ast.unparse(expr.args[0]) != "0")
        return kept <= 1
    if not isinstance(expr, ast.Subscript) or not isinstance(expr.slice, ast.Tuple):
        return False
    axes = expr.slice.elts
    if any(isinstance(each, ast.Constant) and each.value in (None, ...) for each in axes):
        last = axes[-1]
        return isinstance(axes[0], ast.Constant) and axes[0].value is ... and _part(last) and kept <= 1
    axes = [each for each in axes if isinstance(each, ast.Slice)]
    return any(place and _part(each) and place <= len(axes) - kept for place, each in enumerate(axes))


def _part(axis: ast.expr) -> bool:
    """Return whether a slice takes a part of its axis."""
    return isinstance(axis, ast.Slice) and (axis.lower is not None or axis.upper is not None or axis.step is not None)


def _tensor_index(host: Function, index: ast.expr) -> bool:
    """Return whether an index is a tensor or a list for sure: what it selects is a copy."""
    if isinstance(index, ast.Tuple):
        return any(_tensor_index(host, each) for each in index.elts)
    if isinstance(index, ast.Name) and index in host.parents:
        index = host.flow.value(index) or index
    if isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.Invert):
        return True
    if isinstance(index, ast.Call) and isinstance(index.func, ast.Attribute):
        plain = not index.args and index.func.attr in ("bool", "long")
        return plain or (index.func.attr in _MASKS and ast.unparse(index.func.value) == "torch")
    return isinstance(index, (ast.List, ast.Compare))


def returned(host: Function, name: str) -> bool:
    """Return whether a function returns a value that spells a name."""
    return any(
        isinstance(node, ast.Return)
        and node.value is not None
        and any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node.value))
        for node in host.nodes
    )
