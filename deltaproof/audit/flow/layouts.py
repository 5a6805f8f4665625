"""Addresses that take a tensor for dense, and who makes sure of it: the function, a decorator, whoever calls."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.calling import callers, is_autograd
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.indices import products

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

CHECKS = frozenset({"is_contiguous", "stride", "contiguous", "view", "strides"})
_GUARD = re.compile(r"guard|contiguous", re.IGNORECASE)
_LEFT_OUT = re.compile(r"^(no|not|skip|exclude|except|without|ignore)(_|$)")


def guarded(function: Function | None, name: str = "") -> bool:
    """Return whether a decorator makes the tensors of a function dense, the parameter of this name among them."""
    while function is not None:
        for called, expr in function.decorators:
            if _GUARD.search(called) and name not in _left_out(expr):
                return True
        function = function.outer
    return False


def _left_out(decorator: ast.expr) -> set[str]:
    words = decorator.keywords if isinstance(decorator, ast.Call) else []
    return {
        node.value
        for word in words
        if word.arg is not None and _LEFT_OUT.search(word.arg)
        for node in ast.walk(word.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def is_guard(called: str) -> bool:
    """Return whether a function is, by its name, one that makes tensors dense or refuses others."""
    return _GUARD.search(called) is not None


def names(node: ast.AST, name: str) -> bool:
    """Return whether a node spells a name."""
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def asks(node: ast.AST) -> bool:
    """Return whether anything in a node asks for a layout or makes one."""
    return any(isinstance(each, ast.Attribute) and each.attr in CHECKS for each in ast.walk(node))


def checked(host: Function, name: str, *, strides: bool = True) -> bool:
    """Return whether a function asks for the layout of a tensor anywhere, or hands it to something that may.

    Args:
        host: the function.
        name: the tensor.
        strides: whether reading its strides counts; else only comparing them does.
    """
    for node in host.nodes:
        if isinstance(node, ast.Attribute):
            if node.attr in CHECKS and isinstance(node.value, ast.Name) and node.value.id == name:
                if strides or not node.attr.startswith("stride"):
                    return True
                if any(isinstance(around, (ast.Compare, ast.Assert)) for around in host.ancestors(node)):
                    return True
        elif isinstance(node, ast.Call):
            if _GUARD.search(host.called(node)) and names(node, name):
                return True
        elif isinstance(node, ast.For) and names(node.iter, name) and asks(node):
            return True
    return False


def layout_known(host: Function, name: str, before: ast.stmt) -> bool:
    """Return whether the layout of a tensor is looked at before a statement, or a decorator sees to it."""
    for node in host.nodes:
        if not isinstance(node, ast.Attribute) or node.attr not in ("is_contiguous", "stride"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == name and node.lineno <= before.lineno:
            return True
    return guarded(host)


def unchecked_from(
    host: Function, argument: ast.expr | None, project: Project, *, strides: bool = True, depth: int = 4
) -> Function | None:
    """Return the entry point whose caller may hand over a strided tensor; None where somebody on the way looks.

    What a function makes itself, or gets as an attribute or out of a call, counts as looked at: only a parameter that
    is handed on as it came is followed to whoever calls, as far as the tree shows it.

    Args:
        host: the function in which the argument stands.
        argument: what it hands on.
        project: the tree.
        strides: see ``checked``.
        depth: how many calls to follow upwards.
    """
    if not isinstance(argument, ast.Name) or argument not in host.parents:
        return None
    name = argument.id
    reached = host.flow.reaching(name, argument)
    if not reached or any(each.kind != "param" for each in reached):
        return None
    if guarded(host, name) or checked(host, name, strides=strides) or _is_none(host, argument):
        return None
    supplied = False
    for caller in callers(host, project) if depth else ():
        if caller.given is None:
            supplied = True
            continue
        value = caller.given.get(name)
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            continue
        supplied = True
        found = unchecked_from(caller.function, value, project, strides=strides, depth=depth - 1)
        if found is not None:
            return found
    if supplied:
        return None
    unseen = host.owner is not None and not (is_autograd(host) and host.name in ("forward", "backward"))
    return None if unseen or host.name.startswith("_") or host.is_kernel else host


def sized_product(kernel: Function, pointer: ast.expr) -> ast.expr | None:
    """Return a product in an address with a size that is a parameter: the row stride of a dense tensor."""
    waiting: list[ast.AST] = [pointer]
    seen: set[int] = set()
    while waiting and len(seen) < 200:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.Call) and kernel.called(node).endswith(".load"):
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for product, parts in products(kernel, node)[:1]:
                sizes = [
                    part
                    for part in parts
                    if isinstance(part, ast.Name) and re.fullmatch(r"[DKVNC]|dim|hidden.*", part.id)
                ]
                if len(parts) > 1 and any(part.id in kernel.param_names for part in sizes):
                    return product
        if isinstance(node, ast.Name) and node in kernel.parents:
            waiting += [each.value for each in kernel.flow.reaching(node.id, node) if each.value is not None]
        elif isinstance(node, (ast.expr, ast.keyword)):
            waiting.extend(ast.iter_child_nodes(node))
    return None


def _is_none(host: Function, argument: ast.Name) -> bool:
    """Return whether a condition around says that there is no tensor at all."""
    return any(
        guard.holds and isinstance(guard.test, ast.Compare) and ast.unparse(guard.test) == f"{argument.id} is None"
        for guard in guards(host, argument)
    )
