"""Logarithms of probabilities that can be zero: multiplied by the probability, summed, or of a sum of exponentials."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.selects import is_exp, is_where, last_name
from deltaproof.audit.flow.trace import names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

LOGS = ("log", "log2")
_SAFE = ("maximum", "clamp", "clamp_min", "clamp_", "clamp_min_", "where", "max", "fmax", "nan_to_num", "masked_fill")
_CASTS = ("to", "float", "double", "detach", "unsqueeze", "squeeze", "view", "reshape", "contiguous", "cast")
_PROBABILITY = re.compile(r"(^|_)(probs?|probabilit(y|ies)|targets?|true|gt|dist|[pq])(_|$)", re.IGNORECASE)
_ZERO = re.compile(r"^-?0(\.0*)?$")
DEPTH = 6


def zero_logs(function: Function) -> Iterator[tuple[ast.Call, ast.expr, str]]:
    """Yield the logarithms of what can be zero, what they are taken of, and what happens then; one a statement."""
    told: set[ast.stmt] = set()
    for call in function.calls:
        of = _log_of(function, call)
        statement = None if of is None else function.statement(call)
        if of is None or statement in told or _kept(function, call, of):
            continue
        why = _times_itself(function, call, of) or _of_exponentials(function, of) or _summed(function, call, of)
        if why and statement is not None:
            told.add(statement)
            yield call, of, why


def _log_of(function: Function, call: ast.Call) -> ast.expr | None:
    """Return what a call takes the logarithm of; ``math.log`` is of numbers and none."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in LOGS and not call.args and not call.keywords:
        return call.func.value
    if len(call.args) == 1 and last_name(function, call) in LOGS and not function.called(call).startswith("math."):
        return call.args[0] if isinstance(call.func, (ast.Attribute, ast.Name)) else None
    return None


def _uncast(function: Function, expr: ast.expr) -> ast.expr:
    """Return what an expression is made from, through names with one definition and through casts."""
    for _ in range(DEPTH):
        expr = resolved(function, expr)
        if not isinstance(expr, ast.Call) or last_name(function, expr) not in _CASTS:
            break
        if not isinstance(expr.func, ast.Attribute):
            break
        expr = expr.func.value if expr.func.attr != "cast" else expr.args[0]
    return expr


def _kept(function: Function, call: ast.Call, of: ast.expr) -> bool:
    """Return whether something keeps the argument from zero, or the result out where it is zero."""
    made = _uncast(function, of)
    loaded = isinstance(made, ast.Call) and last_name(function, made) == "load"
    if not loaded and any(isinstance(node, (ast.Compare, ast.IfExp)) for node in ast.walk(made)):
        return True
    if isinstance(made, ast.Call) and last_name(function, made) in _SAFE:
        return True
    around = [each for each in function.ancestors(call) if isinstance(each, ast.Call)]
    if any(is_where(function, each) or last_name(function, each) in _SAFE for each in around):
        return True
    names = names_in(of)
    if any(names & names_in(guard.test) for guard in guards(function, call)):
        return True
    result = _bound_to(function, call)
    return result != "" and any(
        (is_where(function, each) or last_name(function, each) in ("nan_to_num", "masked_fill", "isinf", "isfinite"))
        and result in names_in(each)
        for each in function.calls
    )


def _bound_to(function: Function, call: ast.Call) -> str:
    statement = function.statement(call)
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""


def _times_itself(function: Function, call: ast.Call, of: ast.expr) -> str:
    """Return what happens where a probability is multiplied by its own logarithm: zero times infinity."""
    if not _is_probability(function, of):
        return ""
    text = ast.unparse(of)
    inner: ast.AST = call
    for around in function.ancestors(call):
        if isinstance(around, ast.BinOp) and isinstance(around.op, ast.Mult):
            other = around.right if around.left is inner else around.left
            if text in {ast.unparse(each) for each in _factors(other)}:
                return f"is multiplied by `{text}` again, and zero times infinity is NaN"
        elif not isinstance(around, (ast.BinOp, ast.UnaryOp)):
            break
        inner = around
    result = _bound_to(function, call)
    if result and function.parents.get(call) is function.statement(call):
        for node in function.of_type(ast.BinOp):
            if isinstance(node.op, ast.Mult) and {ast.unparse(node.left), ast.unparse(node.right)} == {result, text}:
                return f"is multiplied by `{text}` again, and zero times infinity is NaN"
    return ""


def _factors(expr: ast.expr) -> Iterator[ast.expr]:
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Mult):
        yield from _factors(expr.left)
        yield from _factors(expr.right)
    elif isinstance(expr, ast.UnaryOp):
        yield from _factors(expr.operand)
    else:
        yield expr


def _is_probability(function: Function, of: ast.expr) -> bool:
    """Return whether an expression may be a probability of zero: loaded, an exponential, a softmax, or so named."""
    made = _uncast(function, of)
    if isinstance(made, ast.Call):
        return last_name(function, made) in ("load", "softmax", "bincount") or is_exp(function, made) or _exp(made)
    if isinstance(made, ast.BinOp):
        return isinstance(made.op, (ast.Div, ast.Mult)) and not function.is_kernel and _is_named(of)
    return isinstance(made, ast.Name) and not function.is_kernel and _is_named(made)


def _is_named(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Name) and _PROBABILITY.search(expr.id) is not None


def _exp(node: ast.AST) -> bool:
    """Return whether a node is ``x.exp()`` or ``x.softmax(..)``."""
    method = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    return method in ("exp", "softmax")


def _of_exponentials(function: Function, of: ast.expr) -> str:
    """Return what happens to the logarithm of a sum of exponentials, none of which is shifted by a maximum."""
    made = _uncast(function, of)
    if not isinstance(made, ast.BinOp) or not isinstance(made.op, ast.Add):
        return ""
    parts = [_exponential(function, each) for each in _addends(made)]
    exps = [each for each in parts if each is not None]
    if len(exps) != len(parts):
        return ""
    for each in exps:
        found = origins(function, each)
        if any("max" in name.lower() for name in found.names) or found.calls_any("max", "maximum", "amax", "fmax"):
            return ""
    return "is of a sum of exponentials that can all underflow to zero"


def _addends(expr: ast.expr) -> Iterator[ast.expr]:
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.Add):
        yield from _addends(expr.left)
        yield from _addends(expr.right)
    else:
        yield expr


def _exponential(function: Function, term: ast.expr) -> ast.expr | None:
    """Return the exponential or softmax that a term is a multiple of."""
    for factor in _factors(term):
        made = _uncast(function, factor)
        if is_exp(function, made) or _exp(made):
            return made
        if isinstance(made, ast.BinOp) and isinstance(made.op, ast.Mult):
            found = _exponential(function, made)
            if found is not None:
                return found
    return None


def _summed(function: Function, call: ast.Call, of: ast.expr) -> str:
    """Return what happens to masked lanes that were loaded as zero, where a sum takes their logarithm in."""
    made = _uncast(function, of)
    if not isinstance(made, ast.Call) or last_name(function, made) != "load":
        return ""
    given = arguments(made, ("pointer", "mask", "other"))
    fill = given.get("other")
    if given.get("mask") is None or fill is None or not _ZERO.match(ast.unparse(fill)):
        return ""
    for total in function.calls:
        if last_name(function, total) == "sum" and total.args and _holds(function, total.args[0], call, DEPTH):
            return "enters a sum, where masked lanes were loaded as zero"
    return ""


def _holds(function: Function, expr: ast.AST, call: ast.Call, depth: int) -> bool:
    """Return whether a value holds a call's result, through names and with no select between."""
    if expr is call:
        return True
    if is_where(function, expr) or not depth:
        return False
    if isinstance(expr, ast.Name) and expr in function.parents:
        value = function.flow.value(expr)
        return value is not None and _holds(function, value, call, depth - 1)
    return any(_holds(function, child, call, depth) for child in ast.iter_child_nodes(expr))
