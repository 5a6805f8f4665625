"""Buffers that outlive a call: made for one caller's dtype or size, handed to the next."""

from __future__ import annotations

import ast
import re

from deltaproof.audit.flow.caches import CacheStore
from deltaproof.audit.flow.compiled import varying
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.names import dotted

_MAKERS = re.compile(r"(^|[._])(empty|zeros|ones|full|arange|rand|randn)$")


def unchecked_dtype(store: CacheStore, found: list[ast.AST]) -> ast.expr | None:
    """Return the caller's dtype that a kept buffer is made with, where neither its key nor a check names it."""
    function = store.function
    made = resolved(function, store.value)
    if not isinstance(made, ast.Call) or not _MAKERS.search(function.module.resolve(made.func)):
        return None
    dtype = next((keyword.value for keyword in made.keywords if keyword.arg == "dtype"), None)
    if dtype is None or not names_in(dtype) & varying(function) or dotted(dtype).startswith(("self.", "torch.")):
        return None
    if any("dtype" in word for node in found for word in (getattr(node, "attr", ""), getattr(node, "id", ""))):
        return None
    spelled = ast.unparse(dtype)
    if any(ast.unparse(node) == spelled for node in found if isinstance(node, ast.expr)):
        return None
    if not _kept_if_there(store) or _compared(store, spelled):
        return None
    return dtype


def _names(store: CacheStore) -> list[str]:
    """Return what the buffer is called: its container, and what is taken from it or put into it."""
    names = [store.container]
    for node in store.function.nodes:
        if isinstance(node, ast.Assign) and (node is store.node or store.container in ast.unparse(node.value)):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def _spells(names: list[str], text: str) -> bool:
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text) for name in names)


def _kept_if_there(store: CacheStore) -> bool:
    """Return whether the buffer is only made where there is none yet."""
    names = _names(store)
    for guard in guards(store.function, store.node):
        for part in ast.walk(guard.test):
            if isinstance(part, ast.Compare) and isinstance(part.ops[0], (ast.Is, ast.NotIn, ast.IsNot, ast.In)):
                return _spells(names, ast.unparse(part))
    return False


def _compared(store: CacheStore, spelled: str) -> bool:
    """Return whether the buffer's dtype is compared anywhere in the function."""
    names = _names(store)
    for node in store.function.nodes:
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            typed = any(side == spelled or "dtype" in side for side in sides)
            if typed and any(_spells(names, side) for side in sides):
                return True
    return False
