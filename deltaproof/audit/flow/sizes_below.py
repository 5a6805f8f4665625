"""Tile sizes that a caller takes and prepares its data for, and that what it calls sets to a number by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in, origins, resolved
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_TILE = re.compile(
    r"^_?(block_?(size_?)?[mnkstv]{1,2}|b[mnkstcv]|tile_?[mnkst]|chunk_size\w*|chunk_len|tile_size)$", re.I
)
_LITERAL = re.compile(r"^\s+_?(?:block|tile|chunk|b[a-z]\b)\w*\s*=\s*\d+\s*(?:#.*)?$", re.M | re.I)


def set_below(module: Module) -> Iterator[tuple[Function, ast.Assign, Function, ast.Call, str]]:
    """Yield numbers for a size which the caller is given and shapes this call's data by.

    Yields:
        The function that sets the number, the assignment, the caller, its call and the size.
    """
    if not _LITERAL.search(module.text):
        return
    for caller in module.functions:
        sizes = [each.name for each in caller.params if _TILE.match(each.name)]
        if not sizes or caller.is_kernel:
            continue
        for call in caller.calls:
            callee = _callee(module, caller, call)
            if callee is None or callee is caller or callee.is_kernel or callee.outer is caller:
                continue
            for size in sizes:
                found = _fixed(callee, size)
                if found is not None and not _given(call, size) and _shaped(caller, call, size):
                    yield callee, found, caller, call, size


def _callee(module: Module, caller: Function, call: ast.Call) -> Function | None:
    """Return the function of the file that a call runs; of ``C.apply`` the forward method of an autograd function."""
    called = dotted(resolved(caller, call.func)) or ""
    owner, _, last = called.rpartition(".")
    if last == "apply" and owner:
        return module.by_qualname.get(f"{owner}.forward")
    return module.by_qualname.get(called) if called else None


def _fixed(callee: Function, size: str) -> ast.Assign | None:
    """Return where a function sets a size to a number, whatever it is given."""
    if any(name.lower() == size.lower() for name in callee.param_names):
        return None
    for node in callee.node.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if node.targets[0].id.lower() == size.lower() and type(value) is int and value > 1:
                return node
    return None


def _given(call: ast.Call, size: str) -> bool:
    """Return whether a call hands the size itself over, under any name, or something that cannot be told."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(each, ast.Starred) or size in names_in(each) for each in values) or any(
        keyword.arg is None for keyword in call.keywords
    )


def _shaped(caller: Function, call: ast.Call, size: str) -> bool:
    """Return whether data of a call was made with the size, and the caller accepts more than one value of it."""
    for node in caller.nodes:
        if isinstance(node, ast.Assert) and size in names_in(node.test):
            return False
        if (
            isinstance(node, ast.If)
            and size in names_in(node.test)
            and any(isinstance(e, ast.Raise) for e in node.body)
        ):
            return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(size in origins(caller, each).names for each in values)
