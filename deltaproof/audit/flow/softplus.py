"""``log(1 + exp(x))`` where nothing keeps ``x`` small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import selects
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

_LOGS = ("log", "log2", "fast_logf", "fast_log2f", "fast_log")
_BOUNDED = ("abs", "fabs", "absf", "minimum", "min", "clamp", "sigmoid", *selects.WHERES)


def unbounded(function: Function, project: Project) -> Iterator[tuple[ast.Call, ast.expr]]:
    """Yield logarithms of one plus an exponential, with the exponent, in which no bound and no select is seen."""
    if not function.module.holds("log"):
        return
    for call in function.calls:
        name = selects.last_name(function, call)
        if not call.args or name not in (*_LOGS, "log1p"):
            continue
        inner = resolved(function, call.args[0], 3)
        power = _power(function, inner) if name == "log1p" else _one_plus(function, inner)
        if power is None or _kept_small(function, power.args[0]) or _selected(function, call, power):
            continue
        if not isinstance(function.statement(call), ast.Return) or not _selected_by_callers(function, project):
            yield call, power.args[0]


def _one_plus(function: Function, expr: ast.expr) -> ast.Call | None:
    if not isinstance(expr, ast.BinOp) or not isinstance(expr.op, ast.Add):
        return None
    for one, other in ((expr.left, expr.right), (expr.right, expr.left)):
        if isinstance(one, ast.Constant) and one.value == 1:
            return _power(function, other)
    return None


def _power(function: Function, expr: ast.expr) -> ast.Call | None:
    expr = resolved(function, expr, 3)
    return expr if isinstance(expr, ast.Call) and selects.is_exp(function, expr) else None


def _kept_small(function: Function, expr: ast.expr, depth: int = 4) -> bool:
    """Return whether an exponent holds a bound, a magnitude with a sign, or a difference."""
    for node in ast.walk(expr):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            return True
        if isinstance(node, ast.Call) and selects.last_name(function, node) in _BOUNDED:
            return True
        if isinstance(node, ast.Name) and depth and node in function.parents:
            value = function.flow.value(node)
            if value is not None and value is not expr and _kept_small(function, value, depth - 1):
                return True
    return False


def _selected(function: Function, call: ast.Call, power: ast.Call) -> bool:
    """Return whether a condition chooses between the logarithm and something else."""
    if any(names_in(guard.test) & names_in(power.args[0]) for guard in guards(function, call)):
        return True
    if any(selects.is_where(function, around) for around in function.ancestors(call)):
        return True
    statement = function.statement(call)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    bound = {target.id for target in targets if isinstance(target, ast.Name)}
    for node in function.nodes if bound else ():
        if selects.is_where(function, node) and bound & names_in(node):
            return True
        if isinstance(node, ast.If) and names_in(node.test) & names_in(power.args[0]):
            replaced = [each for each in node.body if isinstance(each, ast.Assign)]
            if any(isinstance(target, ast.Name) and target.id in bound for each in replaced for target in each.targets):
                return True
    return False


def _selected_by_callers(function: Function, project: Project) -> bool:
    """Return whether a caller of a helper that returns the logarithm selects its value."""
    chosen = re.compile(rf"\b(?:where|if_then_else|select)\([^\n]*\b{function.name}\(")
    for path in project.paths:
        try:
            text = project.source(path).text
        except Unreadable:
            continue
        if project.source(path).calls(function.name) and chosen.search(text):
            return True
    return False
