"""Which functions of a tree call a host function, also through ``Class.apply`` of an autograd function."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project


@dataclass(frozen=True)
class Caller:
    """One call of a function.

    Attributes:
        function: who calls.
        call: the call.
        given: the arguments by parameter name; None where ``*`` or ``**`` hides them.
    """

    function: Function
    call: ast.Call
    given: dict[str, ast.expr] | None


def is_autograd(function: Function) -> bool:
    """Return whether a function is a method of a ``torch.autograd.Function``."""
    return function.owner is not None and any(
        ast.unparse(base).rpartition(".")[2] == "Function" for base in function.owner.bases
    )


def callers(function: Function, project: Project) -> list[Caller]:
    """Return the calls of a function in a tree, tests left out; kept with the function."""
    known: list[Caller] | None = function.__dict__.get("_callers")
    if known is not None:
        return known
    found: list[Caller] = []
    applied = is_autograd(function) and function.name == "forward" and function.owner is not None
    name = f"{function.owner.name}.apply" if applied and function.owner is not None else function.name
    for path in project.paths if function.owner is None or applied else ():
        try:
            if not project.source(path).calls(name):
                continue
            module = project.module(path)
        except Unreadable:
            continue
        if module.is_test:
            continue
        for caller, call in module.calls_by_name.get(name.rpartition(".")[2], ()):
            called = caller.called(call)
            if called == name or called.endswith(f".{name}"):
                target = function if applied else project.function(called, module)
                if target in (function, None) and caller is not function:
                    found.append(Caller(caller, call, _given(function, call, 1 if applied else 0)))
    function.__dict__["_callers"] = found
    return found


def _given(function: Function, call: ast.Call, skipped: int) -> dict[str, ast.expr] | None:
    if any(isinstance(each, ast.Starred) for each in call.args) or any(word.arg is None for word in call.keywords):
        return None
    names = [param.name for param in function.params][skipped:]
    found = dict(zip(names, call.args, strict=False))
    found.update({word.arg: word.value for word in call.keywords if word.arg is not None})
    return found
