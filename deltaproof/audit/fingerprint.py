"""What names a finding while it stays: rule, enclosing function and normalised statement, whatever line it is on."""

from __future__ import annotations

import ast
import copy
import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


def _bodies(node: ast.AST) -> Iterator[list[ast.AST]]:
    for field in _BODIES:
        inner = getattr(node, field, None)
        if isinstance(inner, list):
            yield inner


def first_line(node: ast.AST) -> int:
    """Return the line a node begins on, its decorators counted."""
    own: int = getattr(node, "lineno", 0)
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    patterns = [node.pattern.lineno] if isinstance(node, ast.match_case) else []
    return min([own or 1 << 60, *(expr.lineno for expr in decorators), *patterns])


def last_line(node: ast.AST) -> int:
    """Return the last line of a node; of a compound statement that of its header."""
    begin: int = getattr(node, "lineno", 0)
    end: int | None = getattr(node, "end_lineno", None)
    inner = [statement for body in _bodies(node) for statement in body] if isinstance(node, ast.stmt) else []
    if not inner:
        return end or begin
    return max(begin, min(first_line(statement) for statement in inner) - 1)


def statement_at(tree: ast.Module, line: int) -> ast.AST | None:
    """Return the innermost statement that covers a line; None where there is none."""
    found: ast.AST | None = None
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for body in _bodies(node):
            at = bisect_left(body, line, key=_end)
            if at < len(body) and first_line(body[at]) <= line:
                inner = body[at]
                if isinstance(inner, ast.stmt):
                    found = inner
                waiting = [inner]
                break
    return found


def _end(node: ast.AST) -> int:
    end: int | None = getattr(node, "end_lineno", None)
    if end is None:  # a case ends where its last statement does
        end = max((getattr(part, "end_lineno", 0) or 0 for part in getattr(node, "body", ())), default=0)
    return end


def normalised(statement: ast.AST) -> str:
    """Return a statement without its formatting and comments; of a compound one the header.

    Raises:
        RecursionError, ValueError: it cannot be written out.
    """
    if not any(True for body in _bodies(statement) if body):
        return ast.unparse(statement)
    header = copy.copy(statement)
    for field in _BODIES:
        if isinstance(getattr(header, field, None), list):
            setattr(header, field, [])
    return ast.unparse(header)


class Fingerprints:
    """Fingerprints of the findings of one file, in order: the second of the same kind differs from the first."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, code: str, function: str, statement: str) -> str:
        """Return the fingerprint of the next finding of a rule, in a function, on a normalised statement."""
        # Quotes keep the parts apart whatever they hold.
        key = "\n".join(map(ascii, (code, function, statement)))
        self._seen[key] += 1
        return hashlib.sha256(f"{key}\n{self._seen[key]}".encode()).hexdigest()[:20]
