"""TileLang: memory that several threads of a block, or several blocks of a launch, use at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


def _tensors(kernel: Function) -> set[str]:
    return {param.name for param in kernel.params if "Tensor" in param.annotation or "Buffer" in param.annotation}


def _blocks(kernel: Function) -> Iterator[tuple[ast.With, set[str]]]:
    for node in kernel.nodes:
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and called_name(kernel, call).rpartition(".")[2] == "Kernel":
                    variables = set() if item.optional_vars is None else names_in(item.optional_vars)
                    yield node, variables


def _targets(inside: list[ast.AST], tensors: set[str]) -> Iterator[tuple[ast.stmt, ast.Subscript]]:
    """Yield the statements that store to a tensor's element, with the element."""
    for node in inside:
        target: ast.expr | None = node.target if isinstance(node, ast.AugAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id in tensors:
            assert isinstance(node, ast.stmt)
            yield node, target


def _again(node: ast.stmt, target: ast.Subscript) -> bool:
    """Return whether a statement changes the element that it stores."""
    read = ast.unparse(target)
    return isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Assign)
        and any(isinstance(each, ast.Subscript) and ast.unparse(each) == read for each in ast.walk(node.value))
    )


def _inside(kernel: Function, block: ast.With) -> list[ast.AST]:
    return [node for node in ast.walk(block) if node in kernel.parents]


def every_thread(kernel: Function) -> Iterator[tuple[ast.stmt, str]]:
    """Yield the updates that every thread of a block makes, with the element's text."""
    tensors = _tensors(kernel)
    for block, _ in _blocks(kernel):
        for node, target in _targets(_inside(kernel, block), tensors):
            if _again(node, target) and not _one_thread(kernel, node, target):
                yield node, ast.unparse(target)


def read_by_neighbours(kernel: Function) -> Iterator[tuple[ast.stmt, str, ast.Subscript]]:
    """Yield the stores to rows that other blocks of the launch read, with the element's text and the read."""
    tensors = _tensors(kernel)
    for block, variables in _blocks(kernel):
        inside = _inside(kernel, block)
        for node, target in _targets(inside, tensors):
            if _again(node, target) and not _one_thread(kernel, node, target):
                continue
            other = _neighbour(kernel, inside, target, variables)
            if other is not None:
                yield node, ast.unparse(target), other


def _one_thread(kernel: Function, node: ast.AST, target: ast.Subscript) -> bool:
    for around in kernel.ancestors(node):
        if isinstance(around, ast.For) and isinstance(around.iter, ast.Call):
            last = called_name(kernel, around.iter).rpartition(".")[2]
        else:
            last = ""
        if last in ("Parallel", "vectorized", "thread_binding"):
            return True
        if isinstance(around, ast.If) and origins(kernel, around.test).calls_any(
            "get_thread_binding", "get_thread_bindings"
        ):
            return True
        if isinstance(around, ast.If) and any("thread" in name or name == "tx" for name in names_in(around.test)):
            return True
    own = names_in(target.slice)
    return "tx" in own or origins(kernel, target.slice).calls_any("get_thread_binding", "get_thread_bindings")


def _neighbour(
    kernel: Function, inside: list[ast.AST], target: ast.Subscript, variables: set[str]
) -> ast.Subscript | None:
    """Return a read of the same tensor at another block's index."""
    assert isinstance(target.value, ast.Name)
    own = _indices(target)
    for node in inside:
        if not (
            isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name)
        ):
            continue
        if node.value.id != target.value.id:
            continue
        theirs = _indices(node)
        if len(theirs) != len(own):
            continue
        pairs = [(resolved(kernel, mine), resolved(kernel, other)) for mine, other in zip(own, theirs, strict=True)]
        apart = [(mine, other) for mine, other in pairs if not _same(kernel, mine, other)]
        if len(apart) != 1:
            continue  # rows that go through a table, or another head's: whether they meet cannot be told
        mine, moved = apart[0]
        own_row = isinstance(mine, ast.Name) and mine.id in variables
        if own_row and isinstance(moved, ast.BinOp) and ast.unparse(mine) in origins(kernel, moved).names:
            return node
    return None


def _same(kernel: Function, mine: ast.expr, other: ast.expr) -> bool:
    """Return whether two indices surely have one value, or are both variables of loops over the row."""
    if any(isinstance(node, ast.Subscript) for each in (mine, other) for node in ast.walk(each)):
        return False
    if ast.unparse(mine) == ast.unparse(other):
        return True
    return all(
        isinstance(each, ast.Name)
        and each in kernel.parents
        and any(reached.kind == "loop" for reached in kernel.flow.reaching(each.id, each))
        for each in (mine, other)
    )


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
