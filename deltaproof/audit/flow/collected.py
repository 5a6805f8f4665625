"""Options that are collected or attached and do not arrive: keywords for a function that is called without them, and
settings that one function attaches before it may leave early, and its sibling after.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module

_REST = re.compile(r"^(?P<whose>\w+?)_(kwargs|kw|options|opts)$")
_ANY = ("fn", "func", "function", "callable", "f")
_PARTS = re.compile(r"[^_]+")


def for_a_callee(function: Function) -> Iterator[tuple[ast.Call, str]]:
    """Yield calls that lack the keywords which a function collects for what it calls, with what is called.

    Nothing reads the keywords. Whom they are meant for is told by their name (``**loss_kwargs`` beside ``loss_fn(a)``),
    or by positional arguments that are collected beside them and handed on alone (``fn(*args)``).
    """
    rest = function.node.args.kwarg
    if rest is None or function.is_kernel or rest.arg.startswith("_"):
        return
    if {rest.arg, "locals"} & {node.id for node in ast.walk(function.node) if isinstance(node, ast.Name)}:
        return
    named = _REST.match(rest.arg)
    whose = set(_PARTS.findall(named["whose"])) if named else set()
    places = function.node.args.vararg
    for call in function.calls:
        called = dotted(call.func)
        if not called or any(keyword.arg is None for keyword in call.keywords):
            continue
        words = set(_PARTS.findall(called.rpartition(".")[2]))
        given = called in function.param_names
        meant = bool(whose) and whose <= words | ({*_ANY} if given and words & {*_ANY} else set())
        alone = (
            given
            and places is not None
            and [ast.unparse(each) for each in call.args] == [f"*{places.arg}"]
            and not call.keywords
        )
        if meant or alone:
            yield call, called
            return


@dataclass(frozen=True)
class Late:
    """A setting that one function attaches behind an early return and another one before it.

    Attributes:
        function: which returns before it attaches.
        node: the statement that attaches.
        leave: the statement that may leave before.
        other: the sibling.
        early: the sibling's statement.
        what: the attribute's text.
    """

    function: Function
    node: ast.stmt
    leave: ast.If
    other: Function
    early: ast.stmt
    what: str


def attached_late(module: Module) -> Iterator[Late]:
    """Yield settings of a returned object that siblings attach on different sides of the same early return."""
    found: list[tuple[Function, dict[str, ast.If], dict[str, ast.stmt]]] = []
    for function in module.functions:
        body = function.node.body
        sets: dict[str, ast.stmt] = {ast.unparse(each): each for each in body if _targets(each)}
        if not sets:
            continue
        leaves = {ast.unparse(each.test): each for each in body if isinstance(each, ast.If) and _leaves(each)}
        if leaves:
            found.append((function, leaves, sets))
    for function, leaves, sets in found:
        for other, theirs, early in found:
            if other is function:
                continue
            for text in sets.keys() & early.keys():
                node, mine = sets[text], _targets(sets[text])
                for test in leaves.keys() & theirs.keys():
                    leave = leaves[test]
                    handed = {name for each in leave.body if isinstance(each, ast.Return) for name in _values(each)}
                    what = [each for each in mine if each.partition(".")[0] in handed]
                    if not (leave.lineno < node.lineno and early[text].lineno < theirs[test].lineno and what):
                        continue
                    if not _set_before(function, leave, what) and not _changed_between(function, leave, node, what):
                        yield Late(function, node, leave, other, early[text], what[0])


def _leaves(node: ast.If) -> bool:
    last = node.body[-1]
    return not node.orelse and isinstance(last, ast.Return) and last.value is not None


def _values(node: ast.Return) -> set[str]:
    return names_in(node.value) if node.value is not None else set()


def _targets(node: ast.stmt) -> list[str]:
    """Return the attributes of names that a statement, or the branch of an if, sets."""
    inside = node.body if isinstance(node, ast.If) else [node]
    targets = [target for each in inside if isinstance(each, ast.Assign) for target in each.targets]
    return [
        dotted(each)
        for each in targets
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id not in ("self", "ctx")
    ]


def _set_before(function: Function, leave: ast.If, what: list[str]) -> bool:
    """Return whether one of the attributes has a value where the function may leave."""
    before = function.node.body[: function.node.body.index(leave)]
    stored = {
        dotted(each)
        for statement in before
        for each in ast.walk(statement)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    return bool(stored & {*what})


def _changed_between(function: Function, leave: ast.If, node: ast.stmt, what: list[str]) -> bool:
    """Return whether a name gets another value between the return and the statement: then it is another object."""
    names = {each.partition(".")[0] for each in what}
    body = function.node.body
    between = body[body.index(leave) + 1 : body.index(node)]
    stored = {
        each.id
        for statement in between
        for each in ast.walk(statement)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    return bool(stored & names)
