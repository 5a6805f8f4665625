"""Calls of kernel compilers: what they are given, and what of it differs from call to call."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_COMPILERS = re.compile(r"(^|\.)(cute\.compile|tilelang\.compile|triton\.compile|compile)$")


def compile_call(function: Function, value: ast.expr) -> ast.Call | None:
    """Return the call of a compiler in what is stored."""
    for node in ast.walk(resolved(function, value)):
        if isinstance(node, ast.Call):
            called = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            name = function.module.resolve(called)
            own = "compile" in function.module.by_qualname
            if _COMPILERS.search(name) and not name.startswith(("re.", "torch.")) and (name != "compile" or own):
                return node
    return None


def baked_arguments(function: Function, call: ast.Call) -> list[ast.expr]:
    """Return a call's arguments, a starred list opened."""
    found: list[ast.expr] = []
    for argument in [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg != "options")]:
        if isinstance(argument, ast.Starred):
            inner = resolved(function, argument.value)
            found += inner.elts if isinstance(inner, (ast.List, ast.Tuple)) else [argument.value]
        else:
            found.append(argument)
    return found


def from_shape(function: Function, name: ast.Name) -> bool:
    """Return whether a name is given part of a shape."""
    for each in function.flow.reaching(name.id, name):
        if each.value is not None and any(
            isinstance(part, ast.Attribute) and part.attr == "shape" for part in ast.walk(each.value)
        ):
            return True
    return False


def derived(function: Function, name: ast.Name, keys: set[str]) -> bool:
    """Return whether a name is computed from names of the key alone."""
    values = [each.value for each in function.flow.reaching(name.id, name)]
    used = {part for value in values if value is not None for part in names_in(value)}
    tensors = any(
        isinstance(part, ast.Attribute) and part.attr == "shape"
        for value in values
        if value is not None
        for part in ast.walk(value)
    )
    return bool(used) and not tensors and used <= keys


def varying(function: Function) -> set[str]:
    """Return the names that may differ from call to call: parameters, and what is computed from them."""
    found = set(function.param_names)
    for node in function.nodes:
        if isinstance(node, ast.Assign) and names_in(node.value) & found:
            found |= {name for target in node.targets for name in names_in(target)}
    return found


def free_names(function: Function) -> list[ast.Name]:
    """Return the names that a function reads and does not define, one each."""
    own = set(function.param_names)
    for node in function.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    found: dict[str, ast.Name] = {}
    for node in function.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in own:
            found.setdefault(node.id, node)
    return list(found.values())


def derived_at(function: Function, name: str, at: ast.Call, keys: set[str]) -> bool:
    """Return whether a name has, where something is compiled, a value computed from names of the key alone."""
    values = [each.value for each in function.flow.before(name, function.statement(at))]
    used = {part for value in values if value is not None for part in names_in(value)}
    return bool(used) and used <= keys
