"""One parsed file: imports, functions, classes, launches, and what is test or example."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath

from deltaproof.audit.model.function import Function, Launch
from deltaproof.audit.model.names import dotted, imported
from deltaproof.audit.model.source import Source, parse

_TEST_PATH = re.compile(r"(^|/)(tests?|testing|benchmarks?|benches)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")
_EXAMPLE_PATH = re.compile(r"(^|/)examples?(/|$)")
_BODIES = ("body", "orelse", "finalbody")
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_test_path(path: str) -> bool:
    """Return whether a path is a test's or a benchmark's."""
    return _TEST_PATH.search(path) is not None


class Module:
    """A parsed file.

    Attributes:
        path: relative to the root, with "/".
        name: dotted name, from the path.
        source: its text.
        tree: its syntax tree.
    """

    def __init__(self, path: str, source: Source) -> None:
        self.path = path
        self.source = source
        self.tree = parse(source)
        self._held: dict[str | re.Pattern[str], bool] = {}
        parts = PurePosixPath(path).with_suffix("").parts
        self.is_package = bool(parts) and parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)

    @property
    def text(self) -> str:
        """Return the whole text."""
        return self.source.text

    @property
    def lines(self) -> list[str]:
        """Return the lines, without their ends."""
        return self.source.lines

    def quote(self, node: ast.AST) -> str:
        """Return a node's first line, without the blanks around it."""
        return self.lines[node.lineno - 1].strip() if hasattr(node, "lineno") else ""

    @cached_property
    def is_test(self) -> bool:
        """Whether this is a test, a benchmark, or an example that has no kernel of its own."""
        if _EXAMPLE_PATH.search(self.path):
            return is_test_path(self.path) or not any(function.is_kernel for function in self.functions)
        return is_test_path(self.path)

    @cached_property
    def _scanned(self) -> tuple[list[Function], list[ast.ClassDef], list[ast.stmt]]:
        functions: list[Function] = []
        classes: list[ast.ClassDef] = []
        imports: list[ast.stmt] = []
        waiting: list[tuple[list[ast.stmt], str, ast.ClassDef | None, Function | None]] = [
            (self.tree.body, "", None, None)
        ]
        while waiting:
            body, prefix, owner, outer = waiting.pop()
            for statement in body:
                if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    function = Function(self, statement, prefix + statement.name, owner, outer)
                    functions.append(function)
                    waiting.append((statement.body, f"{prefix}{statement.name}.", None, function))
                elif isinstance(statement, ast.ClassDef):
                    classes.append(statement)
                    waiting.append((statement.body, f"{prefix}{statement.name}.", statement, outer))
                elif isinstance(statement, (ast.Import, ast.ImportFrom)):
                    imports.append(statement)
                else:
                    for field in _BODIES:
                        inner = getattr(statement, field, None)
                        if inner:
                            waiting.append((inner, prefix, owner, outer))
                    for handler in getattr(statement, "handlers", None) or getattr(statement, "cases", None) or ():
                        waiting.append((handler.body, prefix, owner, outer))
        functions.sort(key=lambda function: function.line)
        return functions, classes, imports

    def holds(self, what: str | re.Pattern[str]) -> bool:
        """Return whether the text holds another or a match of a pattern; looked for once, however often it is asked."""
        known = self._held.get(what)
        if known is None:
            found = what in self.text if isinstance(what, str) else what.search(self.text) is not None
            known = self._held[what] = found
        return known

    def lines_with(self, pattern: re.Pattern[str]) -> list[int]:
        """Return the numbers of the lines on which a pattern begins, counted from 1."""
        found, line, last = [], 1, 0
        for each in pattern.finditer(self.text):
            line += self.text.count("\n", last, each.start())
            last = each.start()
            found.append(line)
        return found

    @property
    def functions(self) -> list[Function]:
        """Return every function, methods and nested ones too, by line."""
        return self._scanned[0]

    @property
    def classes(self) -> list[ast.ClassDef]:
        """Return every class."""
        return self._scanned[1]

    @cached_property
    def imports(self) -> dict[str, str]:
        """What imports bind anywhere in the file: local name → dotted name."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        return imported(self._scanned[2], package)

    @cached_property
    def by_qualname(self) -> dict[str, Function]:
        """Functions by qualified name; of several the last one, as at run time."""
        return {function.qualname: function for function in self.functions}

    @property
    def kernels(self) -> list[Function]:
        """Return the functions that run on a device."""
        return [function for function in self.functions if function.is_kernel]

    def resolve(self, expr: ast.AST) -> str:
        """Return the dotted name behind an expression of names and attributes, aliases followed; else ""."""
        text = dotted(expr)
        if not text:
            return ""
        first, dot, rest = text.partition(".")
        return self.imports.get(first, first) + dot + rest

    def function_at(self, line: int) -> Function | None:
        """Return the innermost function around a line."""
        around = [function for function in self.functions if function.line <= line <= function.end_line]
        return max(around, key=lambda function: function.line, default=None)

    @cached_property
    def _main_spans(self) -> list[tuple[int, int]]:
        spans = []
        for statement in self.tree.body:
            if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
                spans.append((statement.lineno, statement.end_lineno or statement.lineno))
        return spans

    def in_main(self, node: ast.AST) -> bool:
        """Return whether a node lies below ``if __name__ == "__main__"``."""
        line = getattr(node, "lineno", 0)
        return any(first <= line <= last for first, last in self._main_spans)

    @cached_property
    def launches_by_name(self) -> dict[str, list[Launch]]:
        """Launches by the last part of the kernel's name."""
        found: dict[str, list[Launch]] = {}
        for launch in self.launches:
            found.setdefault(launch.name.rpartition(".")[2], []).append(launch)
        return found

    @cached_property
    def calls_by_name(self) -> dict[str, list[tuple[Function, ast.Call]]]:
        """Calls inside functions by the last part of what they call, as it is written and as imports name it."""
        found: dict[str, list[tuple[Function, ast.Call]]] = {}
        for function in self.functions:
            for call in function.calls:
                written = getattr(call.func, "attr", getattr(call.func, "id", ""))
                for name in {written, function.called(call).rpartition(".")[2]} - {""}:
                    found.setdefault(name, []).append((function, call))
        return found

    @cached_property
    def launches(self) -> list[Launch]:
        """Calls of the form ``kernel[grid](...)``, by line."""
        if "](" not in self.text:
            return []
        return [launch for function in self.functions for launch in function.launches]

    def calls(self) -> Iterator[tuple[Function | None, ast.Call]]:
        """Yield every call inside functions, with the function."""
        for function in self.functions:
            for call in function.calls:
                yield function, call
