"""What names mean: imports and aliases of a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")


@lru_cache(maxsize=1 << 14)
def snaked(name: str) -> str:
    """Return a name in camel case as one in snake case: ``StateIndices`` → ``state_indices``; others as they are."""
    return _HUMP.sub("_", name).lower() if _HUMP.search(name) else name


def dotted(expr: ast.AST) -> str:
    """Return "a.b.c" for names and attributes, else an empty text."""
    parts: list[str] = []
    while isinstance(expr, ast.Attribute):
        parts.append(expr.attr)
        expr = expr.value
    if not isinstance(expr, ast.Name):
        return ""
    return ".".join([expr.id, *reversed(parts)])


def imported(statements: Iterable[ast.stmt], package: str) -> dict[str, str]:
    """Return what import statements bind: local name → dotted name.

    Args:
        statements: Import and ImportFrom statements.
        package: dotted name of the package that relative imports start from.
    """
    found: dict[str, str] = {}
    for statement in statements:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                parts = package.split(".") if package else []
                kept = parts[: len(parts) - statement.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            for alias in statement.names:
                if alias.name != "*":
                    found[alias.asname or alias.name] = f"{base}.{alias.name}" if base else alias.name
    return found
