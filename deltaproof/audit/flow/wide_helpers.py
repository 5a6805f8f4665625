"""Device functions that return 64 bits: a helper of the tree that widens what it wraps."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

_WIDE = re.compile(r"\b(u?int64|[iu]64)\b")


def widens(function: Function, project: Project, name: str) -> bool:
    """Return whether a called function is the project's own and every value that it returns was cast to 64 bits."""
    if not name or name.startswith(("tl.", "triton.language.", "gl.")):
        return False
    known: dict[str, bool] = function.module.__dict__.setdefault("_widening", {})
    if name not in known:
        called = project.function(name, function.module)
        values = [] if called is None else [node.value for node in called.nodes if isinstance(node, ast.Return)]
        known[name] = bool(values) and all(
            called is not None and value is not None and _is_wide(resolved(called, value)) for value in values
        )
    return known[name]


def _is_wide(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call) or not value.args:
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    return name in ("to", "cast") and _WIDE.search(ast.unparse(value.args[-1])) is not None
