"""Which tables of indices hold int32, as the source shows: what a kernel loads from them has 32 bits."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import names_in

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch

_NARROW = re.compile(r"torch\.int32\b|\.int\(\)|torch\.IntTensor")
_WIDE = re.compile(r"int64|torch\.long|\.long\(\)")


def narrow_table(function: Function, launches: Sequence[Launch], pointer: ast.expr) -> bool:
    """Return whether a launch hands over a table that its function makes, casts or requires to be int32."""
    table = next((name for name in _in_order(pointer) if name in function.param_names - function.constexprs), None)
    if table is None:
        return False
    for launch in launches:
        given = launch.bound(function).get(table)
        if given is not None and _is_narrow(launch.host, given):
            return True
    return False


def _in_order(pointer: ast.expr) -> list[str]:
    return [each.id for each in ast.walk(pointer) if isinstance(each, ast.Name)] if names_in(pointer) else []


def _is_narrow(host: Function, given: ast.expr) -> bool:
    if not isinstance(given, ast.Name):
        return bool(_NARROW.search(ast.unparse(given)))
    made = host.flow.reaching(given.id, given) if given in host.parents else host.flow.definitions(given.id)
    for each in made:
        text = "" if each.value is None else ast.unparse(each.value)
        if each.kind == "assign" and _NARROW.search(text) and not _WIDE.search(text):
            return True
    own = re.compile(rf"\b{re.escape(given.id)}\.dtype\b")
    for node in host.nodes:
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
            text = ast.unparse(node)
            if own.search(text) and "int32" in text and not _WIDE.search(text):
                return True
    return False
