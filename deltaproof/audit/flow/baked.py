"""What a compiled kernel has baked in, and what makes sure that it never differs: checks of dtypes, strides, sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from deltaproof.audit.flow.caches import CacheStore, reached
from deltaproof.audit.flow.compiled import derived, from_shape
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.names import dotted
from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

DYNAMIC = re.compile(r"^(b|n|m|s|t|l|bs|batch\w*|num_seqs?|num_batch\w*|\w*tokens?\w*|total\w*|\w*seq_?len\w*)$", re.I)
"""Names of sizes that kernels take at run time."""

_QUERIES = ("get_device_properties", "get_device_capability")
_CASTS = ("float", "half", "bfloat16", "int", "long")
_KEEPING = ("contiguous", "detach", "reshape", "view", "flatten")
_DTYPE = re.compile(r"^(torch|cutlass)\.\w+$")


def refusals(function: Function, *, returns: bool = False) -> Iterator[tuple[ast.AST, ast.expr]]:
    """Yield where a function refuses what it is given, and the test: asserts, ifs that raise (or leave as well)."""
    leaves = (ast.Raise, ast.Return) if returns else (ast.Raise,)
    for node in function.nodes:
        if isinstance(node, ast.Assert) or (
            isinstance(node, ast.If) and any(isinstance(inner, leaves) for inner in node.body)
        ):
            yield node, node.test


def fixed(function: Function, name: str) -> bool:
    """Return whether a function accepts one value of a name only: it compares it with a constant and refuses."""
    for node, test in refusals(function):
        wanted = ast.Eq if isinstance(node, ast.Assert) else ast.NotEq
        for part in ast.walk(test):
            if isinstance(part, ast.Compare) and len(part.ops) == 1 and isinstance(part.ops[0], wanted):
                sides = (part.left, part.comparators[0])
                named = [dotted(each) for each in sides]
                constant = [isinstance(each, ast.Constant) or dotted(each).isupper() for each in sides]
                if name in named and any(constant):
                    return True
    return False


def key_names(function: Function, found: list[ast.AST]) -> set[str]:
    """Return the names that make a key, those that are unpacked from it too."""
    names = {node.id for node in found if isinstance(node, ast.Name)}
    for node in function.nodes:
        unpacked = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        if unpacked and found and isinstance(found[0], ast.Name) and dotted(node.value) == found[0].id:  # type: ignore[attr-defined]
            names |= names_in(node.targets[0])  # type: ignore[attr-defined]
    return names


def missing_sizes(function: Function, given: list[ast.expr], names: set[str]) -> list[str]:
    """Return the sizes, taken from shapes, that a compiler is given and the names of a key do not settle."""
    return sorted(
        {
            each.id
            for each in given
            if isinstance(each, ast.Name) and from_shape(function, each) and not DYNAMIC.match(each.id)
            if each.id not in names and not derived(function, each, names) and not fixed(function, each.id)
        }
    )


def strides_checked(function: Function, owner: str, at: ast.AST) -> bool:
    """Return whether other strides than the one asked for at a node cannot differ, or are not baked in.

    Tensors may be refused by their strides, or come here only if another stride is as it must be. A stride that is
    handed to the kernel as a number shows that the kernel computes its addresses itself, not from a layout.
    """
    spelled = {f"{owner}.stride(", f"{owner}.is_contiguous()"}
    if any(text in ast.unparse(test) for _, test in refusals(function) for text in spelled):
        return True
    own = ast.unparse(at)
    for guard in guards(function, at):
        for part in ast.walk(guard.test) if guard.holds else ():
            asked = isinstance(part, ast.Call) and ast.unparse(part.func) == f"{owner}.stride"
            if asked and ast.unparse(part) != own:
                return True
    for call in function.calls:
        if not isinstance(call.func, ast.Name) or owner not in [dotted(each) for each in call.args]:
            continue
        for helper in function.module.functions:
            meant = helper.name == call.func.id and helper.outer in (None, function)
            if meant and any(".stride(" in ast.unparse(test) for _, test in refusals(helper)):
                return True
    return _handed_on(function, at)


def _handed_on(function: Function, stride: ast.AST) -> bool:
    """Whether the name that a stride was given to is an argument of the call that makes a kernel."""
    statement = function.statement(stride)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if not isinstance(target, ast.Name) or statement.value is not stride:  # type: ignore[attr-defined]
        return False
    return any(
        isinstance(keyword.value, ast.Name) and keyword.value.id == target.id and "stride" in (keyword.arg or "")
        for call in function.calls
        for keyword in call.keywords
    )


def free_dtypes(project: Project, store: CacheStore, compiled: ast.Call, given: list[ast.expr]) -> set[str]:
    """Return the tensors shown to a compiler whose dtype nothing fixes.

    A dtype is fixed by a tensor that is made here, by a check in this module or in one that calls it, and by a
    compiled function that checks its arguments itself (TVM-FFI).
    """
    function = store.function
    if "tvm" in ast.unparse(compiled).lower():
        return set()
    found: set[str] = set()
    for expr in given:
        for part in reached(function, [expr]):
            if not isinstance(part, ast.Call) or dotted(part.func).rpartition(".")[2] != "from_dlpack":
                if isinstance(part, ast.Call) and dotted(part.func).rpartition(".")[2] == "make_ptr":
                    found |= {
                        dotted(each.value)
                        for each in ast.walk(part)
                        if isinstance(each, ast.Attribute) and each.attr == "dtype"
                    }
                continue
            if any(keyword.arg == "enable_tvm_ffi" for keyword in part.keywords):
                continue
            shown = part.args[0] if part.args else None
            while isinstance(shown, ast.Call) and isinstance(shown.func, ast.Attribute):
                shown = shown.func.value
            if isinstance(shown, ast.Name) and not _made(function, shown):
                found.add(_like(function, shown))
    if not found:
        return found
    near = list(_around(project, function))
    for module in near:
        for other in module.functions:
            for _, test in refusals(other, returns=True):
                if any(isinstance(part, ast.Attribute) and part.attr == "dtype" for part in ast.walk(test)):
                    found -= names_in(test)
    return {name for name in found if not _made_by_callers(near, function, name)}


def _like(function: Function, name: ast.Name) -> str:
    """Return the tensor whose dtype a name has: of ``empty_like(q)`` it is ``q``."""
    value = function.flow.value(name)
    if isinstance(value, ast.Call) and dotted(value.func).endswith("_like") and not value.keywords and value.args:
        return dotted(value.args[0]) or name.id
    return name.id


def _made(function: Function, name: ast.Name) -> bool:
    """Whether a name is a tensor made with, or cast to, a dtype that is spelled out."""
    values = [each.value for each in function.flow.reaching(name.id, name)]
    return bool(values) and all(value is not None and _has_dtype(function, value) for value in values)


def _has_dtype(function: Function, value: ast.expr) -> bool:
    if isinstance(value, ast.Name):
        return value in function.parents and _made(function, value)
    if not isinstance(value, ast.Call):
        return False
    spelled = [*value.args, *(keyword.value for keyword in value.keywords if keyword.arg == "dtype")]
    if any(_DTYPE.match(dotted(each) or "") for each in spelled):
        return True
    if not isinstance(value.func, ast.Attribute):
        return False
    return value.func.attr in _CASTS or (value.func.attr in _KEEPING and _has_dtype(function, value.func.value))


def _made_by_callers(near: list[Module], function: Function, name: str) -> bool:
    """Whether every call hands a tensor over that was made with a spelled-out dtype."""
    order = [param.name for param in function.params]
    if name not in order:
        return False
    seen = 0
    for module in near:
        for caller, call in module.calls():
            if caller is None or dotted(call.func).rpartition(".")[2] != function.name:
                continue
            argument = next((each.value for each in call.keywords if each.arg == name), None)
            place = order.index(name)
            if argument is None and place < len(call.args):
                argument = call.args[place]
            if not isinstance(argument, ast.Name) or not _made(caller, argument):
                return False
            seen += 1
    return seen > 0


def _around(project: Project, function: Function) -> Iterator[Module]:
    """Yield a function's module and those near it that name the function or the module."""
    yield function.module
    folder = PurePosixPath(function.module.path).parent.parent
    stem = PurePosixPath(function.module.path).stem
    for path in project.paths:
        relative = project.relative(path)
        if relative == function.module.path or not PurePosixPath(relative).is_relative_to(folder):
            continue
        try:
            text = project.source(path).text
            if f"{function.name}(" in text or stem in text:
                yield project.module(path)
        except Unreadable:
            continue


def global_query(module: Module, function: Function) -> ast.AST | None:
    """Return where the module asks one device for its properties, if the function uses what came of it."""
    queried: dict[str, ast.AST] = {}
    for statement in module.tree.body:
        if not isinstance(statement, ast.Assign):
            continue
        asked = any(
            isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in _QUERIES
            for node in ast.walk(statement.value)
        )
        if asked or names_in(statement.value) & queried.keys():
            for target in statement.targets:
                queried.update(dict.fromkeys(names_in(target) - {"_"}, statement))
    if not queried:
        return None
    return next((queried[n.id] for n in function.nodes if isinstance(n, ast.Name) and n.id in queried), None)


def dtype_checked(function: Function) -> bool:
    """Return whether a function compares dtypes."""
    return any(
        isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Attribute) and part.attr == "dtype" for part in ast.walk(node))
        for node in function.nodes
    )


def key_node(function: Function, store: CacheStore) -> ast.AST:
    """Return the expression that the key is written as."""
    key = store.keys[0] if len(store.keys) == 1 else None
    if key is None:
        return store.node
    if isinstance(key, ast.Name):
        for each in function.flow.reaching(key.id, key):
            if isinstance(each.value, ast.Tuple):
                return each.value
    return resolved(function, key) if resolved(function, key) is not key else key
