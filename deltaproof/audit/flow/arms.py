"""Optional inputs that one branch applies to a result and another branch of the same choice does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.definitions import leaves
from deltaproof.audit.flow.trace import names_in

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

ADDED = ("bias", "residual")
"""What an optional input is called that every way of computing a result has to apply."""


@dataclass(frozen=True)
class Unapplied:
    """A branch that leaves an optional input out.

    Attributes:
        option: the input.
        result: the statement that computes the result without it.
        applied: the statement of a sibling branch that applies it.
    """

    option: str
    result: ast.stmt
    applied: ast.stmt


def unapplied(function: Function) -> Iterator[Unapplied]:
    """Yield branches that set the same variable as their siblings and leave out an optional input those apply."""
    place = function.node.args
    if not any(_applied(each.arg) for each in (*place.args, *place.kwonlyargs)):
        return
    options = {param.name for param in function.params if _optional(param.default) and _applied(param.name)}
    if not options:
        return
    for node in function.nodes:
        if not isinstance(node, ast.If) or _is_elif(function, node):
            continue
        arms = list(_arms(node))
        if len(arms) < 2:
            continue
        tests = [test for test, _ in arms if test is not None]
        for option in options:
            if any(option in names_in(test) for test in tests) or _outside(function, node, option):
                continue
            with_it = [(body, _uses(body, option)) for _, body in arms]
            users = [(body, used) for body, used in with_it if used is not None]
            for body, used in with_it if users else ():
                if used is not None or _gives_up(body):
                    continue
                mine = _results(body)
                twin = next(((other, seen) for other, seen in users if _results(other).keys() & mine.keys()), None)
                if twin is None:
                    continue
                name = next(iter(_results(twin[0]).keys() & mine.keys()))
                if option in _named(twin[0], name):
                    yield Unapplied(option, mine[name], twin[1])  # type: ignore[arg-type]


def _optional(default: ast.expr | None) -> bool:
    return isinstance(default, ast.Constant) and default.value is None


def _applied(name: str) -> bool:
    return name in ADDED


def _is_elif(function: Function, node: ast.If) -> bool:
    around = function.parents.get(node)
    return isinstance(around, ast.If) and around.orelse == [node]


def _arms(node: ast.If) -> Iterator[tuple[ast.expr | None, list[ast.stmt]]]:
    while True:
        yield node.test, node.body
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            node = node.orelse[0]
            continue
        if node.orelse:
            yield None, node.orelse
        return


def _gives_up(body: list[ast.stmt]) -> bool:
    """Return whether a branch raises, or asserts something, rather than compute."""
    return (leaves(body) and isinstance(body[-1], ast.Raise)) or any(isinstance(each, ast.Assert) for each in body)


def _uses(body: list[ast.stmt], option: str) -> ast.stmt | None:
    return next((each for each in body if option in names_in(each)), None)


def _results(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the variables that a branch computes with calls or products, with the statement."""
    found: dict[str, ast.stmt] = {}
    for each in body:
        if isinstance(each, ast.Return) and isinstance(each.value, (ast.Call, ast.BinOp)):
            found["return"] = each
        elif isinstance(each, ast.Assign) and isinstance(each.value, (ast.Call, ast.BinOp)):
            for target in each.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = each
    return found


def _named(body: list[ast.stmt], name: str) -> set[str]:
    """Return the names in the statements of a branch that compute a variable."""
    found: set[str] = set()
    for each in body:
        if isinstance(each, ast.If):
            found |= {part for one in each.body if name in names_in(one) for part in names_in(one)}
        elif name == "return" if isinstance(each, ast.Return) else name in _targets(each):
            found |= names_in(each)
    return found


def _outside(function: Function, choice: ast.If, option: str) -> bool:
    """Return whether an option is read in another place than below a choice."""
    inside = {id(each) for each in ast.walk(choice)}
    return any(isinstance(node, ast.Name) and node.id == option and id(node) not in inside for node in function.nodes)


def _targets(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
