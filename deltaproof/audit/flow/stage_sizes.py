"""Tile sizes that a function writes as a number while a sibling reads them from a tensor, or the next stage differs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import resolved

if TYPE_CHECKING:
    import re

    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project


def _number(node: ast.AST | None) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int and value > 1 else None


def _assigned(function: Function, size: re.Pattern[str]) -> Iterator[tuple[ast.Assign, str, ast.expr]]:
    """Yield the sizes that a function sets once, outside any branch."""
    for node in function.node.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and size.match(node.targets[0].id):
            yield node, node.targets[0].id, node.value


def _shape(value: ast.expr) -> tuple[str, str] | None:
    """Return the tensor and the axis of ``A.shape[-1]``."""
    if not isinstance(value, ast.Subscript) or not isinstance(value.value, ast.Attribute):
        return None
    if value.value.attr != "shape" or not isinstance(value.value.value, ast.Name):
        return None
    return value.value.value.id, ast.unparse(value.slice)


def beside_tensor(module: Module, size: re.Pattern[str]) -> Iterator[tuple[Function, ast.Assign, Function, ast.expr]]:
    """Yield numbers for a size that another function of the file reads from a tensor which this one is given too.

    Yields:
        The function, the assignment of the number, the sibling and what it reads.
    """
    if ".shape[" not in module.text:
        return
    read: dict[tuple[str, str], tuple[Function, ast.expr]] = {}
    fixed: list[tuple[Function, ast.Assign, str]] = []
    for function in module.functions:
        if function.is_kernel:
            continue
        for node, name, value in _assigned(function, size):
            shape = _shape(value)
            if shape is not None and shape[0] in function.param_names:
                read.setdefault((name, shape[0]), (function, value))
            elif _number(value) is not None:
                fixed.append((function, node, name))
    for function, node, name in fixed:
        for (known, tensor), (sibling, value) in read.items():
            if known == name and tensor in function.param_names and not _looked_at(function, tensor):
                yield function, node, sibling, value
                break


def _looked_at(function: Function, tensor: str) -> bool:
    """Return whether a function compares the shape of a tensor with anything."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "shape"
        and isinstance(node.value, ast.Name)
        and node.value.id == tensor
        and any(isinstance(around, (ast.Compare, ast.Assert)) for around in function.ancestors(node))
        for node in function.nodes
    )


def next_stage(
    module: Module, project: Project, function: Function, size: re.Pattern[str]
) -> Iterator[tuple[ast.Call, str, int, ast.Call, int]]:
    """Yield calls that are given a number for a size while a later stage falls back to another one.

    Yields:
        The call, the size's name, the number, the later call that takes a result of it or a tensor of the first, and
        that one's default.
    """
    given: list[tuple[ast.Call, str, int]] = []
    for call in function.calls:
        for keyword in call.keywords:
            number = _number(resolved(function, keyword.value))
            if keyword.arg is not None and size.match(keyword.arg) and number is not None:
                given.append((call, keyword.arg, number))
    for first, name, number in given:
        made = _results(function, first)
        for call in function.calls:
            if call is first or not made & _taken(call) or any(word.arg in (name, None) for word in call.keywords):
                continue
            default = _default(module, project, call, name)
            if default is not None and default != number:
                yield first, name, number, call, default
                break


def _results(function: Function, call: ast.Call) -> set[str]:
    statement = function.statement(call)
    if not isinstance(statement, ast.Assign) or statement.value is not call:
        return set()
    return {node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _taken(call: ast.Call) -> set[str]:
    values = [*call.args, *(word.value for word in call.keywords)]
    return {value.id for value in values if isinstance(value, ast.Name)}


def _default(module: Module, project: Project, call: ast.Call, name: str) -> int | None:
    callee = project.function(module.resolve(call.func), module)
    if callee is None or any(isinstance(each, ast.Starred) for each in call.args):
        return None
    order = [param.name for param in callee.params]
    if name not in order or len(call.args) > order.index(name):
        return None
    return _number(callee.params[order.index(name)].default)
