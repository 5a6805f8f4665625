"""Functions that make keys: what they are given and leave out, and what is built beside them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.baked import DYNAMIC
from deltaproof.audit.flow.caches import CacheStore
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Param
    from deltaproof.audit.model.module import Module

KEY_FUNCTION = re.compile(r"(^|_)(key|keys|cache_?key|key_?fn|key_?func)(_|$)|_hash_?key", re.I)
"""Names of functions that make a key."""

_HASHING = re.compile(r"(^|_)(hash|digest|fingerprint)$", re.I)
_SCALAR = re.compile(r"\b(int|float|bool|str|dtype|Literal)\b")
_OPAQUE = re.compile(r"Tensor|Callable|Iterable|Iterator|Array")
_IRRELEVANT = re.compile(
    r"verbose|debug|log|name$|^name|quiet|timeout|path|dir$|file|warm|repeat|^rep$|progress|retry|prefix|stream|cache|"
    r"lock|default|device_id|rank|strict|message|description",
    re.I,
)
_HASHES = ("sha256", "md5", "sha1", "blake2b", "dumps")


@dataclass(frozen=True)
class Left:
    """Something that a key leaves out.

    Attributes:
        function: which makes the key.
        name: what.
        node: where the key is made.
        because: where it matters.
        why: in what way.
    """

    function: Function
    name: str
    node: ast.AST
    because: ast.AST
    why: str


def ignored(module: Module, function: Function) -> Iterator[Left]:
    """Yield scalar parameters that a key function never reads, while the function that it is the key of takes them."""
    if not KEY_FUNCTION.search(function.name) or function.is_kernel:
        return
    made = _returned(function)
    params = [each for each in function.params if each.name not in ("self", "cls")]
    if made is None or len(params) < 3:
        return
    read = {node.id for node in function.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unread = [each for each in params if each.name not in read]
    builders = _builders(module, function)
    for param in unread:
        if not _is_scalar(param) or _IRRELEVANT.search(param.name) or param.name.startswith("_"):
            continue
        for builder in builders:
            used = next(
                (node for node in builder.nodes if isinstance(node, ast.Name) and node.id == param.name),
                None,
            )
            if used is not None and not DYNAMIC.match(param.name):
                yield Left(function, param.name, made, used, f"`{builder.name}` is built with it")
                break


def _is_scalar(param: Param) -> bool:
    if param.annotation:
        return bool(_SCALAR.search(param.annotation)) and not _OPAQUE.search(param.annotation)
    return isinstance(param.default, ast.Constant) and isinstance(param.default.value, (bool, int, float, str))


def _returned(function: Function) -> ast.expr | None:
    """Return the expression of the key: what the last return hands out."""
    found = [node.value for node in function.nodes if isinstance(node, ast.Return) and node.value is not None]
    return resolved(function, found[-1]) if found else None


def _builders(module: Module, function: Function) -> list[Function]:
    """Return the functions whose results are kept under a key function's keys: it stands in their decorators."""
    found = []
    for each in module.functions:
        for _, node in each.decorators:
            if isinstance(node, ast.Call) and function.name in {
                dotted(given) for given in (*node.args, *(keyword.value for keyword in node.keywords))
            }:
                found.append(each)
    return found


def unhashed(module: Module) -> Iterator[Left]:
    """Yield fields of a class that its hash of contents leaves out, and that its other methods read."""
    for node in module.classes:
        fields = {
            each.target.id: each
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not _uncompared(each)
        }
        methods = [each for each in module.functions if each.qualname.rpartition(".")[0].endswith(node.name)]
        method = next((each for each in methods if each.name == "__hash__"), None)
        if len(fields) < 3 or method is None or not method.calls_of(*_HASHES):
            continue
        read = _attributes(method)
        missing = [name for name in fields if name not in read and not _IRRELEVANT.search(name)]
        if not read & set(fields) or len(missing) > len(fields) / 2:
            continue
        for name in missing:
            for other in methods:
                used = next(
                    (at for at in other.nodes if isinstance(at, ast.Attribute) and dotted(at) == f"self.{name}"), None
                )
                if used is not None:
                    yield Left(method, name, _hashed(method), used, f"`{other.name}` depends on it")
                    break


def _uncompared(field: ast.AnnAssign) -> bool:
    return isinstance(field.value, ast.Call) and any(
        keyword.arg in ("compare", "hash") and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in field.value.keywords
    )


def _attributes(function: Function) -> set[str]:
    return {
        node.attr
        for node in function.nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def _hashed(function: Function) -> ast.AST:
    """Return where a method collects what it hashes."""
    for node in function.nodes:
        if isinstance(node, (ast.Dict, ast.Tuple)) and len(getattr(node, "elts", getattr(node, "keys", ()))) > 1:
            return node
    return function.node


def unpassed(module: Module, store: CacheStore) -> Iterator[Left]:
    """Yield parameters that go into what is built and not into the call that makes its key."""
    function = store.function
    made = resolved(function, store.keys[0])
    built = resolved(function, store.value)
    if not isinstance(made, ast.Call) or not isinstance(built, ast.Call):
        return
    name = dotted(made.func)
    if not KEY_FUNCTION.search(name.rpartition(".")[2]):
        return
    keyed = {part for given in (*made.args, *made.keywords) for part in names_in(given)}
    if len(keyed) < 2 or any(keyword.arg is None for keyword in made.keywords):
        return
    for name in tuple(keyed):
        # target = options.target: the key holds what it takes from there
        keyed |= {part for each in function.flow.reaching(name, made) if each.value for part in names_in(each.value)}
    callee = dotted(built.func)
    for call in function.calls_of(callee.rpartition(".")[2]):
        for keyword in call.keywords:
            value = keyword.value
            if (
                isinstance(value, ast.Name)
                and keyword.arg == value.id
                and value.id in function.param_names
                and value.id not in keyed
                and not _IRRELEVANT.search(value.id)
                and not DYNAMIC.match(value.id)
            ):
                keyed.add(value.id)
                maker, node = _maker(module, function, made, value.id)
                yield Left(maker, value.id, node, value, f"`{callee}` is built with it")


def _maker(module: Module, function: Function, call: ast.Call, name: str) -> tuple[Function, ast.AST]:
    """Return where a key lacks a name: in the key function, where it has no such parameter, else at its call."""
    called = dotted(call.func).rpartition(".")[2]
    for each in module.functions:
        if each.name == called and name not in each.param_names:
            return each, _hashed(each)
    return function, call


def _hands_out_digest(function: Function) -> bool:
    """Return whether a function returns a digest of a hash, told by itself: what is kept under it is its key."""
    value = _returned(function)
    return value is not None and any(
        isinstance(node, ast.Attribute) and node.attr in ("hexdigest", "digest") for node in ast.walk(value)
    )


def source_only(function: Function) -> ast.Call | None:
    """Return the call that reads a function's source for a key, where nothing reads what the function closes over."""
    named = KEY_FUNCTION.search(function.name) or function.name == "__hash__"
    if not named and not (_HASHING.search(function.name) and _hands_out_digest(function)):
        return None
    if not function.calls_of(*_HASHES) or re.search(r"__closure__|getclosurevars|co_freevars", function.module.text):
        return None
    return next((call for call in function.calls_of("getsource") if len(call.args) == 1), None)
