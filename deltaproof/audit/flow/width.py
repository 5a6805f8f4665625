"""How wide an index of a Triton kernel is, and how large it gets in practice.

An index is a product of dimensions; each has a practical bound, in bits. A batch index and a position of a sequence
bound one another: together they count the packed tokens, whatever the two are alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from deltaproof.audit.flow.dimensions import Size, is_last_axis, of_axis, of_index, of_name, of_table
from deltaproof.audit.flow.trace import called_name
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

WIDE = ("int64", "uint64", "i64", "u64", "Int64", "Uint64")
NARROW = ("int32", "uint32", "i32", "u32", "Int32", "Uint32")
MOST_ALTERNATIVES = 6
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
    """

    size: Size
    wide: bool = False
    static: bool = False
    roots: tuple[ast.AST, ...] = ()

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
            pairs = [(left, right) for left in self.of(expr.left) for right in self.of(expr.right)]
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
            elif reached.kind == "loop" and isinstance(reached.value, ast.Call):
                ends = [end for part in reached.value.args[:2] for end in self.of(part)]
                found += [replace(end, static=False, roots=end.roots or (reached.node,)) for end in ends]
            elif reached.kind == "assign" and reached.value is not None:
                found += self.of(reached.value)
        return found or ([] if function.flow.reaching(name.id, name) else self._global(name.id))

    def _global(self, name: str) -> list[Extent]:
        size = of_name(name) if name.isupper() else None
        return [] if size is None else [Extent(size, static=True)]

    def _param(self, name: str) -> list[Extent]:
        param = next(param for param in self.function.params if param.name == name)
        wide = any(part in param.annotation for part in WIDE)
        size = self._stride(name) or of_name(name, self.function.param_names)
        return [] if size is None else [Extent(size, wide=wide, static=param.constexpr)]

    def _stride(self, name: str) -> Size | None:
        """Return a stride's size from the dimensions of the tensor that a launch takes it from."""
        if "stride" not in name.lower():
            return None
        for launch in self.launches:
            bound = launch.bound(self.function)
            place = _stride_of(bound.get(name))
            if place is None:
                continue
            tensor, axis = place
            names = {
                each[1]: param for param, value in bound.items() if (each := _stride_of(value)) and each[0] == tensor
            }
            if min(names) < 0:
                return None
            size = Size()
            for behind in range(axis + 1, max(names) + 1):
                size = size.times(of_axis(names.get(behind, "")))
            return size if is_last_axis(names[max(names)]) else size.times(of_axis(""))
        return None

    def _call(self, call: ast.Call) -> list[Extent]:
        name = called_name(self.function, call)
        last = name.rpartition(".")[2] or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
        if last == "program_id":
            return self._program(call)
        if last == "to" and isinstance(call.func, ast.Attribute) and call.args:
            return self._cast(call, call.func.value, call.args[0])
        if last == "cast" and len(call.args) >= 2:
            return self._cast(call, call.args[0], call.args[1])
        if last == "load" and call.args:
            return [Extent(of_table(self.function, call.args[0]) or Size(), wide=True)]
        if last == "arange" and len(call.args) == 2:
            return [replace(end, static=False, roots=()) for end in self.of(call.args[1])]
        if last == "cdiv" and len(call.args) == 2:
            tops, unders = self.of(call.args[0]), self.of(call.args[1])
            return [each for top in tops for under in unders if (each := _joined(ast.FloorDiv(), top, under))]
        if last in ("min", "minimum", "max", "maximum") and len(call.args) == 2:
            both = [self.of(part) for part in call.args]
            if last.startswith("min") and all(both):
                return [min((low, high), key=lambda each: each.size.bits) for low in both[0] for high in both[1]]
            return both[0] + both[1]
        if last == "where" and len(call.args) == 3:
            return self.of(call.args[1]) + self.of(call.args[2])
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
            return [] if size is None else [Extent(size, roots=(call,))]
        return [replace(each, wide=False, static=False, roots=each.roots or (call,)) for each in self.of(value)]

    def _program(self, call: ast.Call) -> list[Extent]:
        axis = call.args[0] if call.args else next((each.value for each in call.keywords), None)
        place = axis.value if isinstance(axis, ast.Constant) and isinstance(axis.value, int) else 0
        size = self._grid_axis(place) or of_index(self._given_to(call))
        if size is None:
            return []
        if place and size.bits > AXIS_BITS:
            size = replace(size, rest=size.rest - (size.bits - AXIS_BITS))
        return [Extent(size, roots=(call,))]

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
                    size = host_size(launch.host, axes[place])
                    if size is not None:
                        sizes.append(size)
        return max(sizes, key=lambda size: size.bits, default=None)


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
    if isinstance(op, ast.Mult):
        return Extent(left.size.times(right.size), wide, static, roots)
    if isinstance(op, (ast.Add, ast.Sub)):
        if isinstance(op, ast.Sub) and left.size.tokens and right.size.tokens:
            return Extent(Size(time=True), wide, static)  # a length, from two starts
        larger = left if left.size.bits >= right.size.bits else right
        return Extent(larger.size, wide, static, larger.roots or roots)
    if isinstance(op, ast.FloorDiv):
        return Extent(left.size.over(right.size), wide, static, left.roots)
    if isinstance(op, ast.Mod):
        smaller = min((left, right), key=lambda each: each.size.bits)
        return Extent(smaller.size, wide, static, left.roots)
    return None


def _only_axes(index: ast.expr) -> bool:
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return all(isinstance(part, ast.Slice) or (isinstance(part, ast.Constant) and part.value is None) for part in parts)


def _stride_of(expr: ast.expr | None) -> tuple[str, int] | None:
    if (
        isinstance(expr, ast.Call)
        and isinstance(expr.func, ast.Attribute)
        and expr.func.attr == "stride"
        and len(expr.args) == 1
        and isinstance(expr.args[0], ast.Constant)
        and isinstance(expr.args[0].value, int)
    ):
        return ast.dump(expr.func.value), expr.args[0].value
    return None


def grid_axes(launch: Launch) -> Iterator[list[ast.expr]]:
    """Yield the axes of every grid that a launch may have: a tuple, a name, a lambda or a nested function."""
    yield from _axes(launch.host, launch.grid, 4)


def _axes(host: Function, expr: ast.expr, depth: int) -> Iterator[list[ast.expr]]:
    if not depth:
        return
    if isinstance(expr, (ast.Tuple, ast.List)):
        yield list(expr.elts)
    elif isinstance(expr, ast.Lambda):
        yield from _axes(host, expr.body, depth - 1)
    elif isinstance(expr, ast.IfExp):
        yield from _axes(host, expr.body, depth - 1)
        yield from _axes(host, expr.orelse, depth - 1)
    elif isinstance(expr, ast.Name):
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            if isinstance(reached.node, ast.FunctionDef):
                for node in ast.walk(reached.node):
                    if isinstance(node, ast.Return) and node.value is not None:
                        yield from _axes(host, node.value, depth - 1)
            elif reached.kind == "assign" and reached.value is not None:
                yield from _axes(host, reached.value, depth - 1)


def host_size(host: Function, expr: ast.expr, depth: int = 8) -> Size | None:
    """Return how large an integer of a host function gets; None where nothing is known."""
    if isinstance(expr, ast.Constant) and isinstance(expr.value, int):
        return Size(rest=max(abs(expr.value), 1).bit_length() - 1)
    if not depth:
        return None
    if isinstance(expr, ast.Name):
        named = of_name(expr.id)
        if named is not None:
            return named
        for reached in host.flow.reaching(expr.id, expr) if expr in host.parents else ():
            if reached.kind == "assign" and reached.value is not None:
                found = host_size(host, reached.value, depth - 1)
                if found is not None:
                    return found
        return None
    if isinstance(expr, ast.Attribute):
        return of_name(expr.attr)
    if isinstance(expr, ast.Subscript) and isinstance(expr.slice, ast.Constant):
        if isinstance(expr.value, ast.Attribute) and expr.value.attr == "shape":
            weights = re.search(r"weight|scale|expert", ast.unparse(expr.value)) is not None
            return (Size(rest=14) if weights else Size(batch=True, rest=5)) if expr.slice.value == 0 else None
        return of_name(str(expr.slice.value)) if isinstance(expr.slice.value, str) else None
    if isinstance(expr, ast.IfExp):
        arms = [size for part in (expr.body, expr.orelse) if (size := host_size(host, part, depth - 1)) is not None]
        return max(arms, key=lambda size: size.bits, default=None)
    if isinstance(expr, ast.BinOp):
        left, right = host_size(host, expr.left, depth - 1), host_size(host, expr.right, depth - 1)
        return _host_joined(expr.op, left, right)
    if isinstance(expr, ast.Call):
        last = (expr.func.attr if isinstance(expr.func, ast.Attribute) else dotted(expr.func)).rpartition(".")[2]
        if last == "numel" and isinstance(expr.func, ast.Attribute):
            flat = re.search(r"loc|ind|ids|idx|len|slot|mask|rows", ast.unparse(expr.func.value))
            return Size(rest=17) if flat else Size(batch=True, time=True, rest=6)
        if last == "cdiv" and len(expr.args) == 2:
            parts = [host_size(host, part, depth - 1) for part in expr.args]
            return _host_joined(ast.FloorDiv(), parts[0], parts[1] or Size(rest=6))  # a tile of at least 64
        if last in ("len", "size") and expr.args:
            return of_table(host, expr.args[0]) if last == "len" else None
        if last in ("min", "max") and expr.args:
            sizes = [size for part in expr.args if (size := host_size(host, part, depth - 1)) is not None]
            pick = min if last == "min" else max
            return pick(sizes, key=lambda size: size.bits) if sizes else None
    return None


def _host_joined(op: ast.operator, left: Size | None, right: Size | None) -> Size | None:
    if isinstance(op, ast.Mult):
        if left is None or right is None:
            return left or right
        return left.times(right)
    if left is None:
        return None
    if isinstance(op, ast.FloorDiv):
        return left.over(right) if right is not None else left
    if isinstance(op, (ast.Add, ast.Sub)):
        return max((left, right or left), key=lambda size: size.bits)
    return None
