"""Caches kept between calls: what is stored under which key."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import MOST, resolved
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


@dataclass(frozen=True)
class CacheStore:
    """A value that is stored in a container which outlives the call.

    Attributes:
        function: where.
        node: the statement.
        container: the container's source text.
        keys: the expressions that make the key: the one in the brackets, or the arguments of the cached function that
            handed the container out.
        value: what is stored.
    """

    function: Function
    node: ast.stmt
    container: str
    keys: list[ast.expr]
    value: ast.expr


def cache_stores(function: Function) -> Iterator[CacheStore]:
    """Yield the stores into containers of the module, of an object, or of a cached function."""
    for node in function.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Subscript):
            continue
        target = node.targets[0]
        if isinstance(target.slice, ast.Slice):
            continue
        container = target.value
        name = dotted(container)
        if not name:
            continue
        first = name.partition(".")[0]
        if isinstance(container, ast.Name):
            made = resolved(function, container)
            if made is not container:
                if isinstance(made, ast.Call) and isinstance(target.slice, ast.Constant) and _is_cached(function, made):
                    keys = [*made.args, *(keyword.value for keyword in made.keywords)]
                    yield CacheStore(function, node, name, keys, node.value)
                continue
            if function.flow.definitions(name):
                continue  # made in this call
        elif first not in ("self", "cls") and function.flow.definitions(first):
            continue
        yield CacheStore(function, node, name, [target.slice], node.value)


def _is_cached(function: Function, call: ast.Call) -> bool:
    made = function.module.by_qualname.get(dotted(call.func))
    return made is not None and is_cached(made)


def is_cached(function: Function) -> bool:
    """Return whether a function's results are kept by its arguments."""
    return any(name.rpartition(".")[2] in ("cache", "lru_cache") for name, _ in function.decorators)


def reached(function: Function, exprs: list[ast.expr]) -> list[ast.AST]:
    """Return the nodes that expressions are computed from, through all definitions of their names."""
    waiting: list[ast.AST] = list(exprs)
    seen: dict[int, ast.AST] = {}
    while waiting and len(seen) < 4 * MOST:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, ast.Name) and node in function.parents:
            for each in function.flow.reaching(node.id, node):
                if each.value is not None:
                    waiting.append(each.value)
                if each.kind == "augmented":
                    earlier = function.flow.before(node.id, each.node)  # type: ignore[arg-type]
                    waiting += [one.value for one in earlier if one.value is not None]
        waiting.extend(ast.iter_child_nodes(node))
    return list(seen.values())
