"""Addresses that count rows of the whole batch with the length, or the chunks, of one sequence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.definitions import Definition
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.indices import made, program_axis
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.rule import Hit, Quote, Seen

_HEADS_FIRST = re.compile(r"head_?first", re.IGNORECASE)
_VARLEN = re.compile(r"varlen|cu_seq|offsets|is_var|packed", re.IGNORECASE)


def local_row_findings(module: Module, kernel: Function) -> Iterator[Seen]:
    """Yield addresses with a program's index times one sequence's length, where siblings start at the sequence."""
    for name in sorted(kernel.param_names):
        shrunk = [each for each in made(kernel).get(name, ()) if _difference(each)]
        if not shrunk:
            continue
        counted = {node for node in kernel.nodes if _counts(kernel, node, name, shrunk[0].node)}
        if not counted:
            continue
        starts = _starts(shrunk[0])
        known = accesses(kernel)
        siblings = [access for access in known if starts & _all_names(kernel, access.pointer, name)]
        if len({access.base for access in siblings}) < 2:
            continue
        said: set[str] = set()
        for access in known:
            if access.base in said:
                continue
            node = _lost(kernel, access, name, counted, starts)
            if node is None:
                continue
            said.add(access.base)
            base = next((each for each in _pointers(kernel, access, name)), access.base)
            yield Hit(
                module,
                node,
                kernel,
                f"`{base}` is advanced by `{ast.unparse(node)}`, but `{name}` is one sequence's length here; "
                f"`{siblings[0].base}` is advanced by `{min(starts)}`.",
                "likely",
                f"Start at `{min(starts)}`, or at the chunk's number among all sequences, as the siblings do.",
                [
                    Quote(module, access.call, "the access"),
                    Quote(module, shrunk[0].node, f"`{name}` is replaced"),
                    Quote(module, siblings[0].call, "a sibling"),
                ],
            )


def _pointers(kernel: Function, access: Access, length: str) -> list[str]:
    """Return the tensors that an access may start from."""
    names = _all_names(kernel, access.pointer, length) & kernel.param_names - kernel.constexprs
    return [name for name in (access.base, *sorted(names)) if name in names and name != length]


def _difference(found: Definition) -> bool:
    """Return whether a definition makes a length from an end and a start."""
    value = found.value
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to":
        value = value.func.value
    return (
        found.kind == "assign"
        and isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Sub)
        and isinstance(value.right, ast.Name)
        and isinstance(value.left, ast.Name)
    )


def _starts(found: Definition) -> set[str]:
    value = found.value
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        value = value.func.value
    assert isinstance(value, ast.BinOp)
    return names_in(value.right)


def _lost(kernel: Function, access: Access, name: str, counted: set[ast.AST], starts: set[str]) -> ast.BinOp | None:
    """Return the product in one of an access's addresses that counts with the replaced length."""
    ways: list[ast.expr] = [access.pointer]
    if isinstance(access.pointer, ast.Name) and access.pointer in kernel.parents:
        reached = kernel.flow.reaching(access.pointer.id, access.pointer)
        ways = [each.value for each in reached if each.kind == "assign" and each.value is not None] or ways
    for way in ways:
        if starts & _all_names(kernel, way, name):
            continue
        for node in _reached(kernel, way, name):
            if node in counted and isinstance(node, ast.BinOp) and not _elsewhere(kernel, access.call, node):
                return node
    return None


def _all_names(kernel: Function, expr: ast.AST, length: str) -> set[str]:
    """Return the names that an address depends on, the length left out: it is made from the start itself."""
    return {node.id for node in _reached(kernel, expr, length) if isinstance(node, ast.Name)}


def _reached(kernel: Function, expr: ast.AST, stop: str) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [expr]
    seen: set[int] = set()
    while waiting and len(seen) < 400:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, ast.Name) and node.id == stop:
            continue
        if isinstance(node, ast.Name) and node in kernel.parents:
            for each in kernel.flow.reaching(node.id, node):
                if each.value is not None:
                    waiting.append(each.value)
                if isinstance(each.node, ast.AugAssign):
                    waiting += [one.value for one in kernel.flow.before(node.id, each.node) if one.value is not None]
        elif isinstance(node, (ast.expr, ast.keyword)):
            waiting.extend(ast.iter_child_nodes(node))


def _counts(kernel: Function, node: ast.AST, name: str, shrunk: ast.AST) -> bool:
    """Return whether a node is a whole product of a program's index and a replaced length."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    around = kernel.parents.get(node)
    if isinstance(around, ast.BinOp) and isinstance(around.op, ast.Mult):
        return False
    sides = _sides(node)
    return any(_local(kernel, side, name, shrunk) for side in sides) and any(_program(kernel, side) for side in sides)


def _sides(node: ast.BinOp) -> list[ast.expr]:
    found: list[ast.expr] = []
    for side in (node.left, node.right):
        if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mult):
            found += _sides(side)
        else:
            found.append(side)
    return found


def _local(kernel: Function, side: ast.expr, name: str, shrunk: ast.AST, depth: int = 2) -> bool:
    """Return whether a factor is the replaced length, or the chunks that were counted with it."""
    if isinstance(side, ast.Name) and side in kernel.parents:
        reached = kernel.flow.reaching(side.id, side)
        if side.id == name:
            return any(each.node is shrunk for each in reached)
        return depth > 0 and any(
            each.kind == "assign" and each.value is not None and _local(kernel, each.value, name, shrunk, depth - 1)
            for each in reached
            if isinstance(each.value, ast.Call)
        )
    if isinstance(side, ast.Call) and "cdiv" in ast.unparse(side.func) and side.args:
        return _local(kernel, side.args[0], name, shrunk, 0)
    return False


def _program(kernel: Function, side: ast.expr) -> bool:
    """Return whether a factor is a program id or a part of one."""
    if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute) and side.func.attr == "to":
        side = side.func.value
    if not isinstance(side, ast.Name) or side not in kernel.parents:
        return False
    value = resolved(kernel, side)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to":
        value = resolved(kernel, value.func.value)
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.FloorDiv, ast.Mod)):
        return program_axis(kernel, value.left) is not None
    return program_axis(kernel, value) is not None


def _elsewhere(kernel: Function, call: ast.Call, node: ast.AST) -> bool:
    """Return whether the address is only used where sequences are not packed."""
    for guard in (*guards(kernel, call), *guards(kernel, node)):
        text = ast.unparse(guard.test)
        if guard.holds and (_HEADS_FIRST.search(text) or (_VARLEN.search(text) and "not " in text)):
            return True
        if not guard.holds and _VARLEN.search(text) and "not " not in text:
            return True
    return False
