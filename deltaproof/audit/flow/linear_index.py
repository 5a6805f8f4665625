"""TileLang: elements of a parallel loop that share one place, because a flat index has the stride of another axis."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import addends, called_name, factors, names_in, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

Loops = dict[str, ast.expr]
"""Loop variable → its extent."""


def colliding(kernel: Function) -> Iterator[tuple[ast.stmt, ast.expr, str, ast.expr, ast.expr]]:
    """Yield stores in a parallel loop of which two elements have one index.

    Of ``flat[i * n + j]`` the stride ``n`` has to cover every ``j``. Where it is the extent of ``i`` and ``j`` has
    another one, or is a smaller number than the extent of ``j``, rows overlap.

    Yields:
        The statement, the index, the inner loop variable, its extent and the stride.
    """
    for node in kernel.nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: ast.expr = node.targets[0]
        elif isinstance(node, ast.AugAssign):
            target = node.target
        else:
            continue
        if not isinstance(target, ast.Subscript):
            continue
        loops = _loops(kernel, node)
        indices = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
        for index in indices if len(loops) > 1 else ():
            found = _overlap(kernel, index, loops)
            if found is None or any(found[0] in names_in(each) for each in indices if each is not index):
                continue
            if not _kept_apart(kernel, node, found[1], found[2]):
                yield node, index, *found
                break


def _loops(kernel: Function, node: ast.AST) -> Loops:
    found: Loops = {}
    for around in kernel.ancestors(node):
        if not isinstance(around, ast.For) or not isinstance(around.iter, ast.Call):
            continue
        if called_name(kernel, around.iter).rpartition(".")[2] != "Parallel":
            continue
        targets = around.target.elts if isinstance(around.target, ast.Tuple) else [around.target]
        for target, extent in zip(targets, around.iter.args, strict=False):
            if isinstance(target, ast.Name):
                found[target.id] = extent
    return found


def _overlap(kernel: Function, index: ast.expr, loops: Loops) -> tuple[str, ast.expr, ast.expr] | None:
    """Return the variable that runs into the next row, its extent, and the stride that is too short."""
    strides: dict[str, list[ast.expr]] = {}
    if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) for node in ast.walk(index)):
        return None
    for term in addends(kernel, index):
        parts = factors(kernel, term)
        own = [each.id for each in parts if isinstance(each, ast.Name) and each.id in loops]
        held = names_in(term) & loops.keys()
        if not held:
            continue
        if len(own) != 1 or held != set(own) or own[0] in strides:
            return None
        strides[own[0]] = [each for each in parts if not (isinstance(each, ast.Name) and each.id == own[0])]
    if len(strides) != 2:
        return None
    inner = next((name for name, stride in strides.items() if not stride), None)
    outer = next((name for name, stride in strides.items() if len(stride) == 1), None)
    if inner is None or outer is None:
        return None
    stride, extent = strides[outer][0], loops[inner]
    if _same(kernel, stride, extent):
        return None
    numbers = _number(kernel, stride), _number(kernel, extent)
    if numbers[0] is not None and numbers[1] is not None:
        return (inner, extent, stride) if numbers[0] < numbers[1] else None
    if _same(kernel, stride, loops[outer]):
        return inner, extent, stride
    return None


def _same(kernel: Function, one: ast.expr, two: ast.expr) -> bool:
    return ast.unparse(resolved(kernel, one)) == ast.unparse(resolved(kernel, two))


def _number(kernel: Function, expr: ast.expr) -> int | None:
    value = resolved(kernel, expr)
    return value.value if isinstance(value, ast.Constant) and type(value.value) is int else None


def _kept_apart(kernel: Function, node: ast.AST, extent: ast.expr, stride: ast.expr) -> bool:
    """Return whether a condition around the store, or an assertion on the way here, speaks of both sizes."""
    both = names_in(extent) | names_in(stride)
    around: Function | None = kernel
    if any(names_in(guard.test) & both for guard in guards(kernel, node)):
        return True
    while around is not None:
        for each in around.of_type(ast.Assert):
            if names_in(extent) & names_in(each.test) and names_in(stride) & names_in(each.test):
                return True
        around = around.outer
    return False
