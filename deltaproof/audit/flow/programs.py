"""Caches whose key lacks what went into the program that is compiled, or the device of the tensors that are kept."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.baked import DYNAMIC
from deltaproof.audit.flow.caches import CacheStore, cache_stores, reached
from deltaproof.audit.flow.compiled import varying
from deltaproof.audit.flow.trace import alternatives, names_in
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_DEVICE = re.compile(r"device|(^|_)dev(_|$)|cuda|gpu|ordinal", re.I)
_SIZES = ("shape", "dtype", "ndim", "size", "numel", "dim", "stride")
_MASK = re.compile(r"mask|bias", re.I)
_PLAIN = ("from_dlpack", "partial", "type", "str", "int", "tuple", "list", "get")
LEAST_SIBLINGS = 2


def into_program(function: Function, compiled: ast.Call, keys: set[str]) -> list[tuple[ast.Name, ast.Call]]:
    """Return the names that the program, the compiler's first argument, is made with and a key lacks.

    The program is a call's result. What was taken out of a mapping (``x = options.pop(..)``) is not in a key that the
    mapping makes later.
    """
    found: dict[str, tuple[ast.Name, ast.Call]] = {}
    for value in alternatives(function, compiled.args[0]) if compiled.args else ():
        if not isinstance(value, ast.Call) or not isinstance(value.func, (ast.Name, ast.Attribute)):
            continue
        if dotted(value.func).rpartition(".")[2] in _PLAIN:
            continue
        for argument in [*value.args, *(keyword.value for keyword in value.keywords)]:
            name = argument.value if isinstance(argument, ast.Starred) else argument
            if not isinstance(name, ast.Name) or name.id in keys or name.id in found:
                continue
            plain = name.id in function.param_names and not DYNAMIC.match(name.id) and not _shown(function, name.id)
            if _popped(function, name) or plain:
                found[name.id] = name, value
    return list(found.values())


def _shown(function: Function, name: str) -> bool:
    """Return whether a parameter is a tensor, or gets another value or is refused before it is used."""
    if len(function.flow.definitions(name)) > 1:
        return True
    for node in function.nodes:
        if isinstance(node, ast.Attribute) and dotted(node.value) == name:
            return True
        if isinstance(node, ast.Assert) and name in names_in(node.test):
            return True
    return False


def _popped(function: Function, name: ast.Name) -> bool:
    """Return whether a name is an entry taken out of the function's own keywords."""
    rest = function.node.args.kwarg
    values = [each.value for each in function.flow.reaching(name.id, name)] if name in function.parents else []
    return bool(values) and all(
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "pop"
        and rest is not None
        and dotted(value.func.value) == rest.arg
        for value in values
    )


def without_device(store: CacheStore, found: list[ast.AST]) -> ast.expr | None:
    """Return the device, asked of an argument, on which a kept tensor is made while the key names no device."""
    function = store.function
    if not _lasting(store) or _names_device(function, found) or _compared(function):
        return None
    whole = _whole(function, found)
    for value in alternatives(function, store.value):
        for node in ast.walk(value):
            if not isinstance(node, ast.Call):
                continue
            device = next((keyword.value for keyword in node.keywords if keyword.arg == "device"), None)
            if device is None and isinstance(node.func, ast.Attribute) and node.func.attr == "to" and node.args:
                device = node.args[0] if _DEVICE.search(ast.unparse(node.args[0])) else None
            if device is None or isinstance(device, ast.Constant):
                continue
            behind = {each.id for each in reached(function, [device]) if isinstance(each, ast.Name)}
            if behind & varying(function) and not behind & whole:
                return device
    return None


def unlike_siblings(module: Module, store: CacheStore, found: list[ast.AST]) -> CacheStore | None:
    """Return another cache of the module that tells devices apart, where all others do and this one, of masks, not."""
    function = store.function
    if not _lasting(store) or not _MASK.search(f"{store.container} {function.name}"):
        return None
    if _names_device(function, found) or _compared(function):
        return None
    if not any(isinstance(value, ast.Call) for value in alternatives(function, store.value)):
        return None
    others: dict[str, CacheStore] = {}
    for other in module.functions:
        for each in cache_stores(other) if not other.is_kernel and other is not function else ():
            if each.container == store.container or not _lasting(each):
                continue
            if not _names_device(other, reached(other, each.keys)):
                return None
            others.setdefault(each.container, each)
    return next(iter(others.values())) if len(others) >= LEAST_SIBLINGS else None


def _lasting(store: CacheStore) -> bool:
    """Return whether a container is the module's own, and its key no constant."""
    tree = store.function.module.tree.body
    named = [each.targets[0] if isinstance(each, ast.Assign) else each.target for each in tree if _assigns(each)]  # type: ignore[attr-defined]
    return any(dotted(each) == store.container for each in named) and not isinstance(store.keys[0], ast.Constant)


def _assigns(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Assign, ast.AnnAssign))


def _whole(function: Function, found: list[ast.AST]) -> set[str]:
    """Return the names of a key that may carry a device: all but tensors that are asked for sizes or dtype alone."""
    names: set[str] = set()
    for node in found:
        if isinstance(node, ast.Name):
            around = function.parents.get(node)
            if not isinstance(around, ast.Attribute) or around.attr not in _SIZES:
                names.add(node.id)
    return names


def _names_device(function: Function, found: list[ast.AST]) -> bool:
    """Return whether a key holds a device, or a tensor or object that is asked for more than its sizes."""
    for node in found:
        text = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if _DEVICE.search(text) or text in ("data_ptr", "rank", "local_rank"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "id":
            return True
    return False


def _compared(function: Function) -> bool:
    """Return whether the function compares devices, or moves what it finds to one."""
    for node in function.nodes:
        if isinstance(node, ast.Compare) and _DEVICE.search(ast.unparse(node)):
            return True
        moved = isinstance(node, ast.Return) and isinstance(node.value, ast.Call)
        if moved and _DEVICE.search(ast.unparse(node.value)) and ".to(" in ast.unparse(node.value):  # type: ignore[attr-defined]
            return True
    return False
