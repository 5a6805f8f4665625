"""Options of a function: what a call gives for them, whose signature they belong to, and who asks for them."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Param
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_CHECKS = re.compile(r"^(check|validate|verify|supports?|can|should|is)_|_(check|supported|requirements?)$")


def arguments(call: ast.Call, target: Function) -> dict[str, ast.expr] | None:
    """Return a call's arguments by the target's parameters; None where some cannot be told."""
    if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
        return None
    found = dict(zip([param.name for param in target.params], call.args, strict=False))
    found.update({each.arg: each.value for each in call.keywords if each.arg is not None})
    return found


def forwarded(function: Function, bound: dict[str, ast.expr]) -> int:
    """Return how many of a call's arguments are parameters of the function that calls."""
    return sum(1 for value in bound.values() if isinstance(value, ast.Name) and value.id in function.param_names)


def own_mode(one: dict[str, ast.expr], two: dict[str, ast.expr]) -> bool:
    """Return whether two calls differ in literals of a switch: each is for a mode of its own."""
    pairs = [(one[name], two[name]) for name in one.keys() & two.keys()]
    flags = [(a.value, b.value) for a, b in pairs if isinstance(a, ast.Constant) and isinstance(b, ast.Constant)]
    return any(isinstance(a, bool) and isinstance(b, bool) and a != b for a, b in flags)


def chosen(host: Function, function: Function) -> bool:
    """Return whether a function chooses between an operator and what it calls."""
    names = {function.name}
    for _, expr in function.decorators:
        for each in ast.walk(expr):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                names.add(each.value.rpartition("::")[2])
    return any(host.called(call).rpartition(".")[2] in names for call in host.calls)


def dictated(module: Module, function: Function) -> bool:
    """Return whether a signature is another function's: a check's, a method's replacement, one of two definitions."""
    names = [param.name for param in function.params]
    if _CHECKS.search(function.name) or names[:1] == ["self"]:
        return True
    return any(each is not function and each.qualname == function.qualname for each in module.functions)


def refused(function: Function, param: Param) -> bool:
    """Return whether a function insists on another switch of the same kind (``use_a``), of which this is no part."""
    kind = param.name.partition("_")[0]
    return any(
        name != param.name and name in function.param_names and name.startswith(f"{kind}_")
        for node in function.nodes
        if isinstance(node, ast.Assert) and kind == "use"
        for name in names_in(node.test)
        if isinstance(node.test, ast.BoolOp)
    )


def only_the_default(function: Function, param: Param, project: Project) -> bool:
    """Return whether calls of a function name an option, and every one gives it its default."""
    named = re.compile(rf"\b{param.name}\s*=\s*([\w.]+)")
    given: set[str] = set()
    for path in project.paths:
        try:
            text = project.source(path).text
        except Unreadable:
            continue
        for found in re.finditer(rf"\b{function.name}\(", text) if param.name in text else ():
            end = text.find("\n\n", found.end())
            passed = named.search(text, found.end(), end if end > 0 else len(text))
            if passed is not None and not text[: found.start()].endswith("def "):
                given.add(passed[1])
    return bool(given) and param.default is not None and given == {ast.unparse(param.default)}
