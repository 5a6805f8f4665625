"""Copies of a kernel: in the same file, under the same name elsewhere, or in the same file of a sibling folder."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from heapq import merge
from typing import TYPE_CHECKING

from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

SAME = 0.6
"""Share of statements that a copy has in common with its twin at least."""
FEWEST = 8
MOST = 500
"""Statements of a kernel that is compared at most."""
MOST_TWINS = 6
MOST_COMPARED = 10_000_000
"""Statements of one file's kernels that are compared at most, each as often as it is compared."""
ALIGNED = 10
"""So many times as much as comparing a statement is aligning it."""
ROUGHLY = 0.4
"""Share of source lines in common from which on statements are compared exactly."""
_DEFINED = re.compile(r"^def (\w+)", re.MULTILINE)
_COMMENT = re.compile(r"#.*")
_TELLING = re.compile(r"int64|mask=|return|\+")
_HEADLESS = (ast.With, ast.Try, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_VARIANT = re.compile(r"_(npu|ascend|v\d|opt|new|fast|varlen|update|tma|sm\d+|t1|merged|stage\d)(?=_|$)")


def statements(function: Function) -> list[tuple[str, ast.stmt]]:
    """Return a function's statements in order with their text, of compound ones the head; kept with the function."""
    known: list[tuple[str, ast.stmt]] | None = function.__dict__.get("_statements")
    if known is None:
        known = [(_head(node), node) for node in function.nodes if isinstance(node, ast.stmt)]
        if known and isinstance(known[0][1], ast.Expr) and function.docstring_lines:
            known = known[1:]
        function.__dict__["_statements"] = known
    return known


def _head(node: ast.stmt) -> str:
    if isinstance(node, (ast.If, ast.While)):
        return f"{'if' if isinstance(node, ast.If) else 'while'} {ast.unparse(node.test)}:"
    if isinstance(node, ast.For):
        return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}:"
    if isinstance(node, _HEADLESS):
        return type(node).__name__
    return ast.unparse(node)


def _inside(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements and those in them, without those of nested functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _inside(getattr(node, field, None) or [])
        for part in (*(getattr(node, "handlers", None) or ()), *(getattr(node, "cases", None) or ())):
            yield from _inside(part.body)


def _sketch(function: Function) -> Counter[str]:
    """Return a function's statements as they are written, without blanks and comments: far cheaper than their trees."""
    known: Counter[str] | None = function.__dict__.get("_sketch")
    if known is None:
        body = function.node.body[1:] if function.docstring_lines else function.node.body
        lines = function.module.lines
        known = Counter()
        for node in _inside(body):
            inner = getattr(node, "body", None)
            last = inner[0].lineno - 1 if inner else node.end_lineno or node.lineno
            if isinstance(node, _HEADLESS):
                known[type(node).__name__] += 1
            else:
                text = "\n".join(lines[node.lineno - 1 : max(last, node.lineno)])
                known["".join((_COMMENT.sub("", text) if "#" in text else text).split())] += 1
        function.__dict__["_sketch"] = known
    return known


def _alike(mine: Counter[str], theirs: Counter[str]) -> bool:
    """Return whether two kernels may be copies of each other, and the second has something that the first may lack."""
    here, there = mine.total(), theirs.total()
    if there < FEWEST or not 0.6 < there / here < 1.7:
        return False
    small, large = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
    if 2 * sum(min(count, large[text]) for text, count in small.items()) <= ROUGHLY * (here + there):
        return False
    return any(count > mine[text] and _TELLING.search(text) for text, count in theirs.items())


def _key(name: str, folder: str) -> str:
    short = _VARIANT.sub("", name)
    return short.replace(folder, "~") if len(folder) > 2 else short


def _folder(path: str) -> str:
    parts = path.split("/")
    return parts[-2] if len(parts) > 1 else ""


def _index(project: Project) -> dict[str, list[tuple[str, object]]]:
    """Return, for each reduced name, the functions of that name in files with kernels; kept with the project."""
    known: dict[str, list[tuple[str, object]]] | None = project.__dict__.get("_twin_index")
    if known is not None:
        return known
    found: dict[str, list[tuple[str, object]]] = {}
    for path in project.paths:
        try:
            text = project.source(path).text
        except Unreadable:
            continue
        if ".jit" not in text and "cute.kernel" not in text:
            continue
        folder = _folder(project.relative(path))
        for name in _DEFINED.findall(text):
            found.setdefault(_key(name, folder), []).append((name, path))
    project.__dict__["_twin_index"] = found
    return found


class _Group:
    """Kernels of one file and language with one sketch, by their place among the file's kernels."""

    def __init__(self, sketch: Counter[str]) -> None:
        self.sketch = sketch
        self.kernels: list[tuple[int, Function]] = []


def _groups(module: Module, kind: str) -> list[_Group]:
    """Return the kernels of a file, those of one sketch together: generated copies are looked at once."""
    known: dict[str, dict[frozenset[tuple[str, int]], _Group]] | None = module.__dict__.get("_sketched")
    if known is None:
        known = module.__dict__["_sketched"] = {}
        for place, kernel in enumerate(module.kernels):
            sketch = _sketch(kernel)
            group = known.setdefault(kernel.kind, {}).setdefault(frozenset(sketch.items()), _Group(sketch))
            group.kernels.append((place, kernel))
    return list(known.get(kind, {}).values())


class Work:
    """How much of a file's comparisons is done.

    Attributes:
        left: statements that may still be compared.
        stopped: the first kernel that was not compared with all others, if there is one.
    """

    def __init__(self) -> None:
        self.left = MOST_COMPARED
        self.stopped: Function | None = None


def work(module: Module) -> Work:
    """Return how much of the comparisons of a file's kernels is done."""
    known: Work = module.__dict__.setdefault("_twin_work", Work())
    return known


def _near(kernel: Function, others: list[Function], done: Work) -> Iterator[Function]:
    """Yield the kernels of the same file, then others, that may be copies of a kernel."""
    sketch = _sketch(kernel)
    alike: list[list[tuple[int, Function]]] = []
    for group in _groups(kernel.module, kernel.kind):
        done.left -= min(len(sketch), len(group.sketch))
        if done.left < 0:
            return
        if _alike(sketch, group.sketch):
            alike.append(group.kernels)
    for _, other in merge(*alike):
        yield other
    for other in others:
        if _alike(sketch, _sketch(other)):
            yield other


def twins(kernel: Function, project: Project) -> list[tuple[Function, SequenceMatcher[str]]]:
    """Return the copies of a kernel, each with the alignment of its statements with the kernel's.

    Fewer of them, or none, once as many statements of the file were compared as may be; see ``work``.
    """
    sketch = _sketch(kernel)
    if not FEWEST <= sketch.total() <= MOST:
        return []
    module: Module = kernel.module
    done = work(module)
    near: list[Function] = []
    for name, path in _index(project).get(_key(kernel.name, _folder(module.path)), [])[: 2 * MOST_TWINS]:
        try:
            other = project.module(path).by_qualname.get(name)  # type: ignore[arg-type]
        except Unreadable:
            continue
        if other is not None and other.module is not module and other.kind == kernel.kind:
            near.append(other)
    found: list[tuple[Function, SequenceMatcher[str]]] = []
    mine: list[str] = []
    for other in _near(kernel, near, done):
        mine = mine or [text for text, _ in statements(kernel)]
        theirs = [text for text, _ in statements(other)]
        done.left -= ALIGNED * (len(mine) + len(theirs))
        if done.left < 0:
            break
        matcher: SequenceMatcher[str] = SequenceMatcher(None, mine, theirs, autojunk=False)
        if matcher.real_quick_ratio() > SAME and matcher.quick_ratio() > SAME and matcher.ratio() > SAME:
            found.append((other, matcher))
            if len(found) == MOST_TWINS:
                break
    if done.left < 0 and done.stopped is None:
        done.stopped = kernel
    return found
