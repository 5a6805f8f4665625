"""A kernel file as text and as a syntax tree, and edits of the text at the place of a node."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import deltaproof.ops

ROOT = Path(deltaproof.ops.__file__).parent
PACKAGE = "deltaproof.ops"
ACCESSES = ("load", "store", "atomic_add")
FLOATING = ("float32", "float16", "bfloat16", "exp", "log", "sqrt", "abs", "dot")
"""Names of `tl` that only functions on numbers with a fraction have."""


@dataclass(frozen=True)
class Edit:
    """One change of a file's text: bytes ``start`` up to ``end`` become ``after``."""

    start: int
    end: int
    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Kernel:
    """One function under ``@triton.jit``.

    Attributes:
        name: its name.
        node: its definition.
        parameters: names of its parameters.
        offsets: names that an address, a mask or a loop bound is computed from.
        pointers: names that hold addresses.
    """

    name: str
    node: ast.FunctionDef
    parameters: frozenset[str]
    offsets: frozenset[str]
    pointers: frozenset[str]


class Source:
    """The text of one file and its kernels.

    Attributes:
        text: the whole text.
        tree: its syntax tree.
        stem: path below the operators' folder without ".py", as ids have it.
        module: dotted name of the module.
    """

    def __init__(self, text: str, stem: str) -> None:
        self.text = text
        self.stem = stem
        self.module = f"{PACKAGE}.{stem.replace('/', '.')}"
        self.tree = ast.parse(text)
        self._data = text.encode()
        self._lines = [0]
        for line in self._data.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    @classmethod
    def read(cls, path: Path) -> Source:
        """Return the source of a file below the operators' folder."""
        return cls(path.read_text(encoding="utf-8"), path.relative_to(ROOT).with_suffix("").as_posix())

    def kernels(self) -> Iterator[Kernel]:
        """Yield the functions under ``@triton.jit``, in order."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and any(_is_jit(item) for item in node.decorator_list):
                names = frozenset(argument.arg for argument in node.args.args)
                yield Kernel(node.name, node, names, _offset_names(node), _pointer_names(node))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a node lies in the text, in bytes."""
        first, last = self._lines[node.lineno - 1], self._lines[node.end_lineno - 1]  # type: ignore[attr-defined]
        return first + node.col_offset, last + node.end_col_offset  # type: ignore[attr-defined]

    def segment(self, node: ast.AST) -> str:
        """Return a node's text."""
        start, end = self.span(node)
        return self._data[start:end].decode()

    def replace(self, node: ast.AST, after: str) -> Edit:
        """Return the edit that puts ``after`` in a node's place."""
        start, end = self.span(node)
        return Edit(start, end, node.lineno, self.segment(node), after)  # type: ignore[attr-defined]

    def apply(self, edit: Edit) -> str:
        """Return the whole text with one edit made."""
        return (self._data[: edit.start] + edit.after.encode() + self._data[edit.end :]).decode()


def sources(operator: str = "gated_delta_rule") -> dict[str, Source]:
    """Return the kernel files of an operator, and those that operators share, by the module's name."""
    paths = [path for folder in ("common", operator) for path in sorted((ROOT / folder).glob("**/triton_*.py"))]
    found = (Source.read(path) for path in paths)
    return {source.module: source for source in found}


def is_language_call(node: ast.AST, *names: str) -> bool:
    """Return whether a node is a call ``tl.NAME(...)`` of one of these names."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return isinstance(node.func.value, ast.Name) and node.func.value.id == "tl" and node.func.attr in names


def _is_jit(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr == "jit"


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """Return the value of a keyword argument, or None."""
    return next((item.value for item in call.keywords if item.arg == name), None)


def _names(*nodes: ast.AST | None) -> set[str]:
    return {item.id for node in nodes if node is not None for item in ast.walk(node) if isinstance(item, ast.Name)}


def _assignments(function: ast.FunctionDef) -> Iterator[tuple[set[str], ast.expr]]:
    """Yield the names and the value of every assignment."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            yield _names(*node.targets), node.value
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            yield _names(node.target), node.value


def _offset_names(function: ast.FunctionDef) -> frozenset[str]:
    attributes = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    calls = {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if not (attributes | calls) & set(FLOATING):
        return frozenset(_names(function))
    found: set[str] = set()
    for node in ast.walk(function):
        if is_language_call(node, *ACCESSES):
            assert isinstance(node, ast.Call)
            found |= _names(*node.args[:1], keyword(node, "mask"))
        elif isinstance(node, ast.For):
            found |= _names(node.iter)
        elif isinstance(node, ast.If):
            found |= _names(node.test)
    assignments = list(_assignments(function))
    size = -1
    while size != len(found):
        size = len(found)
        for targets, value in assignments:
            if targets & found:
                found |= _names(value)
    return frozenset(found)


def leftmost(node: ast.expr) -> ast.expr:
    """Return the first operand of a chain of sums."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        node = node.left
    return node


def _pointer_names(function: ast.FunctionDef) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(function):
        if is_language_call(node, *ACCESSES):
            assert isinstance(node, ast.Call)
            first = leftmost(node.args[0])
            if isinstance(first, ast.Name):
                found.add(first.id)
    for targets, value in _assignments(function):
        # a name that an address starts from was itself made from an address
        first = leftmost(value)
        if targets & found and isinstance(first, ast.Name):
            found.add(first.id)
    return frozenset(found)
