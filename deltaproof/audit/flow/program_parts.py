"""Which parts of the program ids an expression of a Triton kernel depends on.

A program id that a kernel takes apart (``i_v, i_h = pid % NV, pid // NV``) is a number with several digits; an address
has to depend on all of them, or on the whole, to be one program's own. Helpers that return the digits as a tuple are
followed too.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.trace import MOST, called_name, factors, resolved

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltaproof.audit.flow.definitions import Definition
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

Factors = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A program id, or one digit of it: what ``(pid // low) % size`` gives.

    Attributes:
        axis: its axis.
        low: source texts of the factors that are divided away, sorted.
        size: those of what the remainder is taken by; None where it is not taken.
        shown: how the kernel writes it, after the program id.
    """

    axis: int
    low: Factors = ()
    size: Factors | None = None
    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"program_id({self.axis}){self.shown}"

    def apart(self, other: Part) -> bool:
        """Return whether two parts of one axis surely share no digit."""
        return _ends(self, other) or _ends(other, self)


def _ends(first: Part, second: Part) -> bool:
    return first.size is not None and not Counter((*first.low, *first.size)) - Counter(second.low)


def factor_texts(function: Function, expr: ast.expr) -> Factors:
    """Return the source texts of a product's factors, names followed where they have one definition."""
    found = []
    for each in factors(function, expr):
        plain = resolved(function, each)
        again = factors(function, plain) if isinstance(plain, ast.BinOp) else [plain]
        found += [text_of(resolved(function, one)) for one in again]
    return tuple(sorted(found))


def text_of(expr: ast.expr) -> str:
    """Return an expression's source text, a rounded division without its module."""
    return ast.unparse(expr).replace("triton.cdiv(", "cdiv(").replace("tl.cdiv(", "cdiv(")


def digit(function: Function, expr: ast.expr, project: Project | None = None, depth: int = 8) -> Part | None:
    """Return the part of a program id that an expression is, cast or not; None where it is none."""
    if not depth:
        return None
    if isinstance(expr, ast.Call):
        if isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            return digit(function, expr.func.value, project, depth - 1)
        if called_name(function, expr).endswith("program_id"):
            given = arguments(expr, ("axis",)).get("axis")
            if isinstance(given, ast.Constant) and isinstance(given.value, int):
                return Part(given.value)
        return None
    if isinstance(expr, ast.Name) and expr in function.parents:
        reached = function.flow.reaching(expr.id, expr)
        if len(reached) == 1 and reached[0].kind == "param":
            told = bound(function).get(expr.id, frozenset())
            return next(iter(told)) if len(told) == 1 else None
        if len(reached) != 1 or reached[0].value is None or reached[0].value is expr:
            return None
        if reached[0].kind == "unpacked":
            return _helped(function, reached[0], project, depth - 1)
        return digit(function, reached[0].value, project, depth - 1) if reached[0].kind == "assign" else None
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, (ast.Mod, ast.FloorDiv)):
        whole = digit(function, expr.left, project, depth - 1)
        return None if whole is None else _taken(whole, expr, factor_texts(function, expr.right))
    return None


def _taken(whole: Part, expr: ast.BinOp, by: Factors) -> Part | None:
    shown = ast.unparse(expr.right)
    if isinstance(expr.op, ast.Mod):
        return Part(whole.axis, whole.low, by, f"{whole.shown} % {shown}")
    left: Factors | None = None
    if whole.size is not None:
        if Counter(by) - Counter(whole.size):
            return None
        left = tuple(sorted((Counter(whole.size) - Counter(by)).elements()))
    return Part(whole.axis, tuple(sorted((*whole.low, *by))), left, f"{whole.shown} // {shown}")


def _helped(function: Function, made: Definition, project: Project | None, depth: int) -> Part | None:
    """Return the digit that a name gets from a helper's tuple of them."""
    statement, call = made.node, made.value
    if project is None or not isinstance(call, ast.Call) or not isinstance(statement, ast.Assign):
        return None
    target = statement.targets[0]
    helper = project.function(function.called(call), function.module)
    if helper is None or helper is function or not isinstance(target, ast.Tuple):
        return None
    names = [each.id if isinstance(each, ast.Name) else "" for each in target.elts]
    for node in helper.nodes:
        value = node.value if isinstance(node, ast.Return) else None
        if isinstance(value, ast.Tuple) and len(value.elts) == len(names) and made.name in names:
            found = digit(helper, value.elts[names.index(made.name)], project, depth - 1)
            given = arguments(call, tuple(param.name for param in helper.params))
            return None if found is None else _renamed(function, found, given)
    return None


def _renamed(function: Function, part: Part, given: dict[str, ast.expr]) -> Part:
    texts = {name: factor_texts(function, argument) for name, argument in given.items()}

    def outside(inner: Factors) -> Factors:
        return tuple(sorted(text for each in inner for text in texts.get(each, (each,))))

    low, size = outside(part.low), None if part.size is None else outside(part.size)
    shown = "".join(f" // ({' * '.join(low)})" if low else "")
    return Part(part.axis, low, size, shown + (f" % ({' * '.join(size)})" if size else ""))


def parts(function: Function, expr: ast.AST | None, project: Project | None = None) -> set[Part]:
    """Return the parts of program ids that an expression depends on, through all definitions and through loads."""
    found: set[Part] = set()
    waiting: list[ast.AST] = [] if expr is None else [expr]
    seen: set[int] = set()
    known: dict[ast.AST, tuple[frozenset[Part], list[ast.AST]]] = function.__dict__.setdefault("_program_parts", {})
    while waiting and len(seen) < 4 * MOST:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        step = known.get(node)
        if step is None:
            step = known[node] = _step(function, node, project)
        found |= step[0]
        waiting += step[1]
    return found


def _step(function: Function, node: ast.AST, project: Project | None) -> tuple[frozenset[Part], list[ast.AST]]:
    """Return the parts that a node is, and the nodes that it depends on besides."""
    if isinstance(node, (ast.BinOp, ast.Call, ast.Name)):
        part = digit(function, node, project)
        if part is not None:
            return frozenset((part,)), _divisors(function, node)
    if isinstance(node, ast.Name) and node in function.parents:
        own: frozenset[Part] = frozenset()
        found: list[ast.AST] = []
        for reached in function.flow.reaching(node.id, node):
            found += _sources(function, reached.value, reached.node)
            if reached.kind == "param":
                own |= bound(function).get(node.id, frozenset())
        return own, found
    wanted = (ast.expr, ast.keyword, ast.stmt)
    return frozenset(), [child for child in ast.iter_child_nodes(node) if isinstance(child, wanted)]


def bound(function: Function) -> dict[str, frozenset[Part]]:
    """Return which parts of its callers' program ids a device function's parameters depend on, as ``bind`` told."""
    told: dict[str, frozenset[Part]] = function.__dict__.get("_bound_parts", {})
    return told


def bind(function: Function, known: dict[str, frozenset[Part]]) -> None:
    """Tell a device function which parts of its callers' program ids its parameters depend on."""
    function.__dict__["_bound_parts"] = known
    function.__dict__.pop("_program_parts", None)


def _divisors(function: Function, node: ast.expr) -> list[ast.AST]:
    """Return what a digit is divided by: that may depend on a program id as well."""
    plain = resolved(function, node)
    found: list[ast.AST] = []
    while isinstance(plain, ast.BinOp):
        found.append(plain.right)
        plain = resolved(function, plain.left)
    return found


def _sources(function: Function, value: ast.expr | None, node: ast.AST) -> list[ast.AST]:
    if not isinstance(node, ast.AugAssign) or not isinstance(node.target, ast.Name):
        return [] if value is None else [value]
    before = function.flow.before(node.target.id, node)
    return [node.value, *(each.value for each in before if each.value is not None and each.node is not node)]


def missing(of: set[Part], among: Iterable[Part]) -> list[Part]:
    """Return the parts of a kernel's program ids that share no digit with a set of parts, by axis.

    Args:
        of: what an address depends on.
        among: what the kernel's work depends on.
    """
    wanted = sorted(set(among), key=lambda part: (part.axis, part.low, part.size or ()))
    return [part for part in wanted if all(part.axis != each.axis or part.apart(each) for each in of)]
