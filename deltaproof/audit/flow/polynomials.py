"""Index arithmetic of a Triton kernel as sums of products.

An index or a pointer becomes a polynomial: whole factors of products of atoms. An atom is a name, a program id, a loop
variable, a range (``tl.arange``) on one axis of the block, a quotient, or any other expression by its text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.trace import called_name, is_broadcast, names_in

if TYPE_CHECKING:
    from deltaproof.audit.flow.definitions import Definition
    from deltaproof.audit.model.function import Function

MOST = 48
"""Products in a polynomial at most; a longer one becomes one atom."""
TRANSPARENT = ("cast", "multiple_of", "max_contiguous", "max_constancy", "broadcast_to", "assume", "to_tensor")
"""Functions whose value is their first argument's."""


@dataclass(frozen=True)
class Atom:
    """A factor that is followed no further.

    Attributes:
        kind: "name", "pid", "loop", "range", "moved" (what a loop added to a name), "quotient" or "text".
        text: the name, the axis of a program id, the extent of a range, else the source text.
        axis: of a range: which axis of the block, counted from the last one, which is 0; of a loop: its line.
        inner: of a quotient: the dividend.
    """

    kind: str
    text: str
    axis: int = 0
    inner: Poly | None = None


Product = tuple[Atom, ...]
Poly = frozenset[tuple[Product, int]]


def _poly(terms: dict[Product, int]) -> Poly:
    return frozenset((product, count) for product, count in terms.items() if count)


def atom(one: Atom) -> Poly:
    """Return the polynomial of one atom."""
    return frozenset({((one,), 1)})


def add(left: Poly, right: Poly, sign: int = 1) -> Poly:
    """Return the sum, or with sign -1 the difference."""
    terms = dict(left)
    for product, count in right:
        terms[product] = terms.get(product, 0) + sign * count
    return _poly(terms)


def times(left: Poly, right: Poly) -> Poly:
    """Return the product."""
    terms: dict[Product, int] = {}
    for first, count in left:
        for second, other in right:
            product = tuple(sorted((*first, *second), key=_order))
            terms[product] = terms.get(product, 0) + count * other
    return _poly(terms)


def _order(one: Atom) -> tuple[str, str, int]:
    return one.kind, one.text, one.axis


def ranges(poly: Poly, *, quotients: bool = True) -> set[Atom]:
    """Return the ranges in a polynomial, those inside quotients too."""
    found: set[Atom] = set()
    for product, _ in poly:
        for one in product:
            if one.kind == "range":
                found.add(one)
            elif quotients and one.inner is not None:
                found |= ranges(one.inner)
    return found


def atoms(poly: Poly) -> set[Atom]:
    """Return every atom of a polynomial, those inside quotients too."""
    found: set[Atom] = set()
    for product, _ in poly:
        for one in product:
            found.add(one)
            if one.inner is not None:
                found |= atoms(one.inner)
    return found


def flat(poly: Poly) -> Poly:
    """Return the polynomial with every range on axis 0, for comparing indices of blocks laid out differently."""
    terms: dict[Product, int] = {}
    for product, count in poly:
        same = tuple(
            Atom(one.kind, one.text, 0, flat(one.inner) if one.inner is not None else None)
            if one.kind in ("range", "quotient")
            else one
            for one in product
        )
        terms[same] = terms.get(same, 0) + count
    return _poly(terms)


def dividends(poly: Poly) -> Iterator[Poly]:
    """Yield the polynomial and what is divided in it."""
    yield poly
    for one in atoms(poly):
        if one.inner is not None:
            yield one.inner


def holds(whole: Poly, index: Poly) -> bool:
    """Return whether an index, times some stride, is part of a polynomial; both flat."""
    marks = [product for product, count in index if count == 1 and any(one.kind == "range" for one in product)]
    if len(marks) != 1 or len(marks[0]) != 1:
        return False
    known = dict(whole)
    for product in known:
        if marks[0][0] in product:
            rest = list(product)
            rest.remove(marks[0][0])
            stride: Poly = frozenset({(tuple(rest), known[product])})
            if all(known.get(each) == count for each, count in times(index, stride)):
                return True
    return False


def text(poly: Poly) -> str:
    """Return a polynomial as a reader would write it."""
    parts = []
    for product, count in sorted(poly, key=lambda term: [_order(one) for one in term[0]]):
        names = [_name(one) for one in product]
        parts.append(" * ".join(([str(count)] if count != 1 or not names else []) + names))
    return " + ".join(parts) or "0"


def _name(one: Atom) -> str:
    if one.kind == "range":
        return f"arange({one.text})"
    return f"program_id({one.text})" if one.kind == "pid" else one.text


class Indices:
    """The polynomials of one kernel's expressions; kept with the function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._known: dict[tuple[ast.AST, int], Poly] = {}
        self._busy: set[tuple[ast.AST, int]] = set()

    def of(self, expr: ast.expr, axis: int = 0) -> Poly:
        """Return an expression's polynomial; ranges lie on the axis given unless brackets move them."""
        key = expr, axis
        known = self._known.get(key)
        if known is None:
            if key in self._busy or len(self._busy) > 60:
                return atom(Atom("text", ast.unparse(expr)))
            self._busy.add(key)
            known = self._of(expr, axis)
            if len(known) > MOST:
                known = atom(Atom("text", ast.unparse(expr)))
            self._busy.discard(key)
            self._known[key] = known
        return known

    def _of(self, expr: ast.expr, axis: int) -> Poly:
        if isinstance(expr, ast.Constant) and type(expr.value) is int:
            return _poly({(): expr.value})
        if isinstance(expr, ast.Name):
            return self._name(expr, axis)
        if isinstance(expr, ast.BinOp):
            if isinstance(expr.op, (ast.Add, ast.Sub)):
                sign = 1 if isinstance(expr.op, ast.Add) else -1
                return add(self.of(expr.left, axis), self.of(expr.right, axis), sign)
            if isinstance(expr.op, ast.Mult):
                return times(self.of(expr.left, axis), self.of(expr.right, axis))
            if isinstance(expr.op, ast.FloorDiv):
                return atom(Atom("quotient", ast.unparse(expr), axis, self.of(expr.left, axis)))
        if isinstance(expr, ast.UnaryOp) and isinstance(expr.op, ast.USub):
            return add(frozenset(), self.of(expr.operand, axis), -1)
        if isinstance(expr, ast.Subscript) and is_broadcast(expr):
            return self.of(expr.value, self.axis(expr) or axis)
        if isinstance(expr, ast.Call):
            return self._call(expr, axis)
        return atom(Atom("text", ast.unparse(expr)))

    @staticmethod
    def axis(node: ast.Subscript) -> int:
        """Return the axis that brackets such as ``[:, None]`` put a range on, counted from the last one."""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kept = [place for place, part in enumerate(parts) if isinstance(part, ast.Slice)]
        return len(parts) - 1 - kept[-1] if len(kept) == 1 else 0

    def _call(self, call: ast.Call, axis: int) -> Poly:
        name = called_name(self.function, call).rpartition(".")[2]
        if name == "to" and isinstance(call.func, ast.Attribute):
            return self.of(call.func.value, axis)
        if name == "arange":
            given = arguments(call, ("start", "end"))
            start, end = given.get("start"), given.get("end")
            if start is not None and end is not None:
                extent = add(self.of(end), self.of(start), -1)
                return add(self.of(start), atom(Atom("range", text(extent), axis)))
        if name == "program_id":
            return atom(Atom("pid", text(self.of(arguments(call, ("axis",)).get("axis") or ast.Constant(0)))))
        if name in TRANSPARENT and call.args:
            return self.of(call.args[0], axis)
        if name == "expand_dims" and len(call.args) == 2 and isinstance(call.args[1], ast.Constant):
            return self.of(call.args[0], 1 if call.args[1].value in (1, -1) else axis)
        return atom(Atom("text", ast.unparse(call)))

    def _name(self, name: ast.Name, axis: int) -> Poly:
        if name not in self.function.parents:
            return atom(Atom("name", name.id))
        starts, moved = self.starts(name)
        if len(starts) == 1:
            start = starts[0]
            if start.kind in ("assign", "augmented") and start.value is not None:
                found = self._started(start, axis)
                return add(found, atom(Atom("moved", name.id))) if moved else found
            if start.kind == "loop":
                return atom(Atom("loop", name.id, getattr(start.node, "lineno", 0)))
        return atom(Atom("name", name.id))

    def _started(self, start: Definition, axis: int) -> Poly:
        assert start.value is not None
        if start.kind == "augmented" and isinstance(start.value, ast.BinOp):
            statement = self.function.flow.augmented[start.value.right]
            before = [each for each in self.function.flow.before(start.name, statement) if each is not start]
            if len(before) == 1 and isinstance(start.value.op, (ast.Add, ast.Sub)):
                sign = 1 if isinstance(start.value.op, ast.Add) else -1
                first = before[0]
                base = atom(Atom("name", start.name)) if first.value is None else self._started(first, axis)
                return add(base, self.of(start.value.right, axis), sign)
            return atom(Atom("name", start.name))
        return self.of(start.value, axis)

    def starts(self, name: ast.Name) -> tuple[list[Definition], bool]:
        """Return the definitions that give a name its value before a loop moves it, and whether one moves it."""
        reached = self.function.flow.reaching(name.id, name)
        fresh = [each for each in reached if not _moves(each)]
        if not fresh or len(reached) == 1:
            return reached, False
        return fresh, len(fresh) < len(reached)

    def pointers(self, expr: ast.expr) -> list[Poly]:
        """Return the polynomials that a pointer may have: one for each way in which its name got its value."""
        if isinstance(expr, ast.Name) and expr in self.function.parents:
            starts, _ = self.starts(expr)
            if 1 < len(starts) <= 4:
                return [
                    self.of(each.value)
                    for each in starts
                    if each.kind == "assign" and each.value is not None and not _moves(each)
                ]
        return [self.of(expr)]


def _moves(definition: Definition) -> bool:
    if definition.kind == "augmented":
        return True
    return (
        definition.kind == "assign" and definition.value is not None and definition.name in names_in(definition.value)
    )


def indices(function: Function) -> Indices:
    """Return the polynomials of a kernel."""
    known: Indices | None = function.__dict__.get("_indices")
    if known is None:
        known = function.__dict__["_indices"] = Indices(function)
    return known
