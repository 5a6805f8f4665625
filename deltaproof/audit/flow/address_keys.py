"""Caches that are keyed by an object's address: whether the entry keeps the object alive, or goes with it."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.caches import CacheStore
from deltaproof.audit.flow.trace import MOST, resolved
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_SHARING = ("reshape", "view", "detach", "flatten", "unsqueeze", "squeeze", "transpose", "permute", "expand")
_MARKING = ("mark_layout_dynamic", "mark_compact_shape_dynamic")
_IDENTITY = re.compile(r"^(name|key|uid|uuid)$|_(key|uid|uuid)$")
_ENDS = ("finalize", "weakref.ref")


def owner_of(node: ast.AST) -> ast.expr | None:
    """Return x of ``id(x)`` and of ``x.data_ptr()``."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "id" and len(node.args) == 1:
            return node.args[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("data_ptr", "untyped_storage"):
            return node.func.value
    return None


def kept_alive(module: Module, store: CacheStore, owner: str) -> bool:
    """Return whether an entry's address stays its owner's: the entry holds it, goes with it, or is asked for it."""
    function = store.function
    if _evicted(module, store, owner):
        return True
    weak = is_weak(module, store.container)
    held = any(isinstance(each, (ast.Name, ast.Attribute)) and dotted(each) == owner for each in _kept(store))
    checked = any(
        isinstance(each, ast.Compare) and isinstance(each.ops[0], (ast.Is, ast.IsNot)) and _spells(each, owner)
        for each in function.nodes
    )
    return (held and not weak) or checked


def named_too(found: list[ast.AST], owner: str) -> bool:
    """Return whether a key also holds a name of its owner: an attribute such as ``x.key``, or ``getattr(x, ...)``."""
    for node in found:
        if isinstance(node, ast.Attribute) and dotted(node.value) == owner and _IDENTITY.search(node.attr):
            return True
        if (
            isinstance(node, ast.Call)
            and dotted(node.func) == "getattr"
            and node.args
            and dotted(node.args[0]) == owner
        ):
            return True
    return False


def is_buffer(store: CacheStore) -> bool:
    """Return whether what is stored is but memory that every call writes anew: ``out=`` beside the lookup."""
    function = store.function
    if not isinstance(store.value, ast.Name):
        return False
    around = function.parents[store.node]
    for call in function.calls:
        for keyword in call.keywords:
            written = keyword.arg == "out" and isinstance(keyword.value, ast.Name)
            if written and keyword.value.id == store.value.id and around not in function.ancestors(call):  # type: ignore[attr-defined]
                return True
    return False


def _evicted(module: Module, store: CacheStore, owner: str) -> bool:
    """Whether the entry is dropped with its owner, here, in a helper, or by a function that forgets an address."""
    for call in store.function.calls:
        if store.function.called(call).endswith(_ENDS):
            return True
        helper = module.by_qualname.get(dotted(call.func))
        given = {dotted(each) for each in call.args}
        if helper is None or not given & {store.container, owner}:
            continue
        if any(helper.called(each).endswith(_ENDS) for each in helper.calls):
            return True
    if f"{store.container}.pop(" not in module.text:
        return False
    for other in module.functions:
        drops = any(dotted(call.func) == f"{store.container}.pop" for call in other.calls)
        if drops and any(owner_of(node) is not None for node in other.nodes):
            return True
    return False


def _kept(store: CacheStore) -> list[ast.AST]:
    """Return what the stored value itself holds: names, tuples and dicts of them, views; no other calls' results."""
    function = store.function
    waiting: list[ast.AST] = [resolved(function, store.value)]
    found: list[ast.AST] = [store.value]
    while waiting and len(found) < MOST:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.Name):
            inner = resolved(function, node)
            viewing = isinstance(inner, ast.Call) and dotted(inner.func).rpartition(".")[2] in (
                "from_dlpack",
                *_MARKING,
            )
            if inner is not node and viewing:
                waiting.append(inner)
        elif isinstance(node, (ast.Tuple, ast.List, ast.Dict)):
            waiting.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Attribute) or node.func.attr == "from_dlpack":
                waiting.extend([*node.args, *(keyword.value for keyword in node.keywords)])
            elif node.func.attr in (*_SHARING, *_MARKING):
                waiting.append(node.func.value)
    return found


def looked_up(function: Function, container: str) -> bool:
    """Return whether a function also reads the container it stores into: a cache, not a register."""
    for node in function.nodes:
        if isinstance(node, ast.Compare) and any(dotted(each) == container for each in node.comparators):
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("get", "setdefault") and dotted(node.value) == container:
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and dotted(node.value) == container:
            return True
    return False


def _spells(node: ast.AST, text: str) -> bool:
    return any(isinstance(each, (ast.Name, ast.Attribute)) and dotted(each) == text for each in ast.walk(node))


def is_weak(module: Module, container: str) -> bool:
    """Return whether a container of the module holds its keys or values weakly."""
    for statement in module.tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == container for target in targets):
            return "Weak" in ast.unparse(statement)
    return False
