"""How wide an index of a Triton kernel is, and how large it gets in practice.

An index is a product of dimensions; each has a practical bound, in bits. A batch index and a position of a sequence
bound one another: together they count the packed tokens, whatever the two are alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from deltaproof.audit.flow.dimensions import Size, few_tokens, of_index, of_name, of_table
from deltaproof.audit.flow.host_sizes import ROWS, grid_axes, host_size
from deltaproof.audit.flow.long_data import long_data
from deltaproof.audit.flow.narrow_tables import narrow_table
from deltaproof.audit.flow.strides import stride_size
from deltaproof.audit.flow.trace import called_name
from deltaproof.audit.flow.wide_helpers import widens
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

WIDE = ("int64", "uint64", "i64", "u64", "Int64", "Uint64")
NARROW = ("int32", "uint32", "i32", "u32", "Int32", "Uint32")
MOST_ALTERNATIVES = 6
NEAR = 4
"""Bits by which terms of a sum may differ so that the larger index counts, not the larger term."""
AXIS_BITS = 16
"""Axes y and z of a grid have at most 65535 programs."""


@dataclass(frozen=True)
class Extent:
    """One value that an expression may have.

    Attributes:
        size: how large it gets.
        wide: whether it is computed in 64 bits, or in an unknown width.
        static: whether it is known at compile time, so that it cannot wrap.
        roots: the narrow indices that it is made of.
        span: bits of the largest of these indices alone.
    """

    size: Size
    wide: bool = False
    static: bool = False
    roots: tuple[ast.AST, ...] = ()
    span: float = 0

    @property
    def wraps(self) -> bool:
        """Return whether it may pass 31 bits where it has 32."""
        return not self.wide and not self.static and bool(self.roots) and self.size.bits > 31


class Widths:
    """The widths of one kernel's expressions."""

    def __init__(self, function: Function, project: Project) -> None:
        self.function = function
        self.project = project
        self._known: dict[int, list[Extent]] = {}
        self._open: set[int] = set()

    @cached_property
    def launches(self) -> list[Launch]:
        """The kernel's launches, tests left out where there are others."""
        found = self.project.launches_of(self.function)
        return [launch for launch in found if not launch.host.module.is_test] or found

    def of(self, expr: ast.AST) -> list[Extent]:
        """Return the values that an expression may have; none where it is no index."""
        known = self._known.get(id(expr))
        if known is not None:
            return known
        if id(expr) in self._open or len(self._open) > 60:
            return []
        self._open.add(id(expr))
        found = _pruned(self._of(expr))
        self._open.discard(id(expr))
        self._known[id(expr)] = found
        return found

    def _of(self, expr: ast.AST) -> list[Extent]:
        if isinstance(expr, ast.Constant):
            if isinstance(expr.value, int) and not isinstance(expr.value, bool):
                return [Extent(Size(rest=max(abs(expr.value), 1).bit_length() - 1), static=True)]
            return []
        if isinstance(expr, ast.Name):
            return self._name(expr)
        if isinstance(expr, ast.IfExp):
            return self.of(expr.body) + self.of(expr.orelse)
        if isinstance(expr, ast.Subscript) and not isinstance(expr.value, ast.Name):
            return self.of(expr.value)
        if isinstance(expr, ast.Subscript):
            return self.of(expr.value) if _only_axes(expr.slice) else []
        if isinstance(expr, ast.BinOp):
            lefts, rights = self.of(expr.left), self.of(expr.right)
            if not lefts or not rights:  # what is wide stays wide, whatever it meets
                return [replace(each, static=False) for each in lefts or rights if each.wide]
            pairs = [(left, right) for left in lefts for right in rights]
            return [found for left, right in pairs if (found := _joined(expr.op, left, right)) is not None]
        if isinstance(expr, ast.Call):
            return self._call(expr)
        return []

    def _name(self, name: ast.Name) -> list[Extent]:
        function = self.function
        if name not in function.parents:
            return []
        found: list[Extent] = []
        for reached in function.flow.reaching(name.id, name):
            if reached.kind == "param":
                found += self._param(name.id)
            elif reached.kind == "augmented" and isinstance(reached.value, ast.BinOp):
                before = function.flow.before(name.id, reached.node)  # type: ignore[arg-type]
                olds = [old for each in before if each.kind == "assign" and each.value for old in self.of(each.value)]
                for old in olds:
                    for added in self.of(reached.value.right):
                        joined = _joined(reached.value.op, old, added)
                        found += [] if joined is None else [joined]
            elif reached.kind == "loop" and isinstance(reached.value, ast.Call) and reached.value.args:
                found += self._loop(reached.node, reached.value.args)
            elif reached.kind == "assign" and reached.value is not None:
                found += self.of(reached.value)
        return found or ([] if function.flow.reaching(name.id, name) else self._global(name.id))

    def _loop(self, loop: ast.AST, bounds: list[ast.expr]) -> list[Extent]:
        """Return what a loop counts: as far as its end, as wide as the widest of its bounds."""
        found: list[Extent] = []
        for start, end in _pairs([self.of(part) for part in bounds[:2]]):
            wide = start.wide or end.wide
            larger = start if start.size.bits > end.size.bits else end
            found.append(replace(larger, wide=wide, static=False, roots=larger.roots or (loop,), span=larger.size.bits))
        return found

    def _global(self, name: str) -> list[Extent]:
        size = of_name(name) if name.isupper() else None
        return [] if size is None else [Extent(size, static=True)]

    def _param(self, name: str) -> list[Extent]:
        param = next(param for param in self.function.params if param.name == name)
        wide = any(part in param.annotation for part in WIDE)
        size = stride_size(self.function, self.launches, name) or of_name(name, self.function.param_names)
        if few_tokens(self.function.name, name):
            size = Size(rest=4)
        return [] if size is None else [Extent(size, wide=wide, static=param.constexpr)]

    def _call(self, call: ast.Call) -> list[Extent]:
        name = called_name(self.function, call)
        last = name.rpartition(".")[2] or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
        if last == "program_id":
            found = self._program(call)
            if found and widens(self.function, self.project, name):
                return [replace(each, wide=True, roots=()) for each in found]
            return found
        if last in ("to", "cast") and isinstance(call.func, ast.Attribute) and len(call.args) == 1:
            return self._cast(call, call.func.value, call.args[0])
        if last == "cast" and len(call.args) >= 2:
            return self._cast(call, call.args[0], call.args[1])
        if last == "load" and call.args:
            size = of_table(self.function, call.args[0])
            if size is not None and narrow_table(self.function, self.launches, call.args[0]):
                return [Extent(size, roots=(call,), span=size.bits)]
            return [Extent(size or Size(), wide=True)]
        if last == "arange" and len(call.args) == 2:
            return [replace(end, static=False, roots=()) for end in self.of(call.args[1])]
        if last == "cdiv" and len(call.args) == 2:
            tops, unders = self.of(call.args[0]), self.of(call.args[1])
            return [each for top in tops for under in unders if (each := _joined(ast.FloorDiv(), top, under))]
        if last in ("min", "minimum", "max", "maximum") and len(call.args) == 2:
            pick = min if last.startswith("min") else max
            return [_either(pair, pick) for pair in _pairs([self.of(part) for part in call.args])]
        if last == "where" and len(call.args) == 3:
            return [_either(pair, max) for pair in _pairs([self.of(part) for part in call.args[1:]])]
        if last in ("multiple_of", "max_contiguous", "max_constancy", "broadcast_to", "expand_dims") and call.args:
            return self.of(call.args[0])
        return []

    def _cast(self, call: ast.Call, value: ast.expr, to: ast.expr) -> list[Extent]:
        target = dotted(to).rpartition(".")[2]
        if target in WIDE:
            return [replace(each, wide=True, static=False, roots=()) for each in self.of(value)] or [
                Extent(Size(), wide=True)
            ]
        if target not in NARROW:
            return []
        if isinstance(value, ast.Call) and called_name(self.function, value).endswith("load") and value.args:
            size = of_table(self.function, value.args[0])
            return [] if size is None else [Extent(size, roots=(call,), span=size.bits)]
        return [replace(each, wide=False, static=False, roots=each.roots or (call,)) for each in self.of(value)]

    def _program(self, call: ast.Call) -> list[Extent]:
        axis = call.args[0] if call.args else next((each.value for each in call.keywords), None)
        place = axis.value if isinstance(axis, ast.Constant) and isinstance(axis.value, int) else 0
        named, size = of_index(self._given_to(call)), self._grid_axis(place)
        if named is not None and named.tokens and "decode" in self.function.name:
            named = Size(batch=True)  # one token a sequence
        if size is None or (size == ROWS and named is not None):
            size = named
        elif size.tokens and "draft" in self.function.name:
            size = Size(batch=True, rest=size.rest + 4)
        if size is None:
            return []
        if place and size.bits > AXIS_BITS:
            size = replace(size, rest=size.rest - (size.bits - AXIS_BITS))
        return [Extent(size, roots=(call,), span=size.bits)]

    def _given_to(self, call: ast.Call) -> str:
        statement = self.function.statement(call)
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                return target.id
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                for name, value in zip(target.elts, statement.value.elts, strict=False):
                    if isinstance(name, ast.Name) and any(part is call for part in ast.walk(value)):
                        return name.id
        return ""

    def _grid_axis(self, place: int) -> Size | None:
        sizes = []
        for launch in self.launches[:4]:
            for axes in grid_axes(launch):
                if place < len(axes):
                    size = host_size(launch.host, axes[place], long=long_data(self.function, self.launches))
                    if size is not None:
                        sizes.append(size)
        return max(sizes, key=lambda size: size.bits, default=None)


def _pairs(parts: list[list[Extent]]) -> list[tuple[Extent, Extent]]:
    """Return how the values of two expressions meet; one that is not known leaves the other."""
    first, second = (parts[0], parts[-1])
    if not first or not second:
        return [(each, each) for each in first or second]
    return [(one, two) for one in first for two in second]


def _either(pair: tuple[Extent, Extent], pick: Callable[..., Extent]) -> Extent:
    """Return the smaller or the larger of two values, which is as wide as the wider one."""
    chosen = pick(pair, key=lambda each: each.size.bits)
    return replace(chosen, wide=pair[0].wide or pair[1].wide, static=pair[0].static and pair[1].static)


def _pruned(found: list[Extent]) -> list[Extent]:
    """Keep the largest of what differs in size alone, and few."""
    best: dict[tuple[object, ...], Extent] = {}
    for each in found:
        key = each.wide, each.static, tuple(id(root) for root in each.roots), each.size.batch, each.size.time
        if key not in best or best[key].size.bits < each.size.bits:
            best[key] = each
    order = sorted(best.values(), key=lambda each: (each.wide, -each.size.bits))
    return order[:MOST_ALTERNATIVES]


def _joined(op: ast.operator, left: Extent, right: Extent) -> Extent | None:
    wide, static = left.wide or right.wide, left.static and right.static
    roots = tuple(dict.fromkeys((*left.roots, *right.roots)))[:4]
    span = max(left.span, right.span)
    if isinstance(op, ast.Mult):
        return Extent(left.size.times(right.size), wide, static, roots, span)
    if isinstance(op, (ast.Add, ast.Sub)):
        if isinstance(op, ast.Sub) and left.size.tokens and right.size.tokens:
            return Extent(Size(time=True), wide, static)  # a length, from two starts
        near = abs(left.size.bits - right.size.bits) <= NEAR
        larger = max((left, right), key=lambda each: each.span if near else each.size.bits)
        return Extent(larger.size, wide, static, larger.roots or roots, larger.span)
    if isinstance(op, ast.FloorDiv):
        return Extent(left.size.over(right.size), wide, static, left.roots, left.span)
    if isinstance(op, ast.Mod):
        smaller = min((left, right), key=lambda each: each.size.bits)
        return Extent(smaller.size, wide, static, left.roots, smaller.size.bits)
    return None


def _only_axes(index: ast.expr) -> bool:
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return all(isinstance(part, ast.Slice) or (isinstance(part, ast.Constant) and part.value is None) for part in parts)
