"""Tests as source: what a test function is, the cases it runs, and the calls that take a recurrent state."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

STATE = re.compile(r"(^|_)(initial_state|init_state|h0|s0|ssm_state|recurrent_state|state|states)($|_)")
LAYOUT = re.compile(
    r"state_v_first|v_first|k_first|transpose_state|transposed_state|state_layout|layout|(^|_)(vk|kv)($|_)"
)
_NAMED = re.compile(r"v_first|k_first|transposed?_state|state.*layout|layout.*state|layout.*_(vk|kv)|(vk|kv)_.*layout")
FINAL = re.compile(r"output_final_state|return_final_state|output_state|return_state")


def is_test(function: Function) -> bool:
    """Return whether pytest runs a function."""
    return function.name.startswith("test") and function.outer is None


def layout_words(function: Function) -> set[str]:
    """Return the words by which a test shows that it is about the layout of a state."""
    found = {function.name} if _NAMED.search(function.name) else set()
    for call in function.calls:
        found |= {word.arg for word in call.keywords if word.arg and re.search(r"v_first|k_first|layout", word.arg)}
    return found


def cases(function: Function) -> dict[str, list[object]]:
    """Return the values that ``parametrize`` gives each argument; literals only, others stand as their text."""
    found: dict[str, list[object]] = {}
    for name, decorator in function.decorators:
        if not name.endswith("parametrize") or not isinstance(decorator, ast.Call) or len(decorator.args) < 2:
            continue
        names = _names(decorator.args[0])
        for row in _rows(decorator.args[1]):
            values = row.elts if isinstance(row, (ast.Tuple, ast.List)) and len(names) > 1 else [row]
            for each, value in zip(names, values, strict=False):
                found.setdefault(each, []).append(literal(value))
    return found


def literal(value: ast.expr) -> object:
    """Return a literal's value, else its text."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


def _names(expr: ast.expr) -> list[str]:
    if isinstance(expr, ast.Constant) and isinstance(expr.value, str):
        return [part.strip() for part in expr.value.split(",") if part.strip()]
    if isinstance(expr, (ast.Tuple, ast.List)):
        return [str(each.value) for each in expr.elts if isinstance(each, ast.Constant)]
    return []


def _rows(expr: ast.expr) -> list[ast.expr]:
    """Return the rows of a list, of ``[pytest.param(*row) for row in [...]]`` and of ``pytest.param(...)`` entries."""
    if isinstance(expr, (ast.ListComp, ast.GeneratorExp)):
        return _rows(expr.generators[0].iter)
    if not isinstance(expr, (ast.List, ast.Tuple)):
        return []
    found: list[ast.expr] = []
    for each in expr.elts:
        if isinstance(each, ast.Call) and dotted(each.func).endswith("param"):
            found.append(each.args[0] if len(each.args) == 1 else ast.Tuple(list(each.args), ast.Load()))
        else:
            found.append(each)
    return found


def sizes(function: Function) -> dict[str, list[object]]:
    """Return the values that a test's size names take: parametrised, or set once to a number."""
    found = cases(function)
    for node in function.nodes:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for each, given in pairs:
            if isinstance(each, ast.Name) and isinstance(given, ast.Constant) and isinstance(given.value, int):
                found.setdefault(each.id, []).append(given.value)
    return found


def made_tensors(function: Function) -> list[tuple[str, ast.Assign, ast.Call, list[ast.expr]]]:
    """Return the tensors that a test makes by size: name, assignment, call and sizes."""
    found = []
    for node in function.nodes:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        for call in ast.walk(node.value):
            if isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in (
                "randn",
                "rand",
                "zeros",
                "empty",
                "ones",
                "full",
            ):
                given = call.args
                if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)):
                    given = given[0].elts
                found.append((node.targets[0].id, node, call, list(given)))
                break
    return found
