"""Which ranges of a Triton access its mask bounds, and which bounds its siblings have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.polynomials import Atom, Indices, Poly, add, atom, dividends, flat, holds, indices
from deltaproof.audit.flow.polynomials import ranges as ranges_of
from deltaproof.audit.flow.polynomials import text as written
from deltaproof.audit.flow.trace import is_broadcast, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_UPPER = (ast.Lt, ast.LtE)
_LOWER = (ast.Gt, ast.GtE)
_TILE = re.compile(r"^(B[A-Z]{1,2}\d?|\w*(BLOCK|TILE|CHUNK|SPLIT|chunk_size|block_size)\w*|\d+)$")
"""Names of tile sizes: an index below one of them stays inside its tile, whatever the data's length is."""
_WHOLE_TILES = re.compile(r"even|divis|align|full|mask|bound|exact|_pad|pad_|interior|tail|partial", re.I)
"""Names of switches that tell whether tiles are whole."""


def is_tile_size(name: str) -> bool:
    """Return whether a name is, by the customs of the field, the size of a tile."""
    return _TILE.match(name) is not None


@dataclass(frozen=True)
class Bound:
    """A comparison that keeps an index below a limit.

    Attributes:
        index: the index, ranges on axis 0.
        limit: the limit, as a text.
        node: the comparison, or the block pointer.
        access: the access that it belongs to.
    """

    index: Poly
    limit: str
    node: ast.AST
    access: Access


@dataclass(frozen=True)
class Gap:
    """A range of an access that nothing bounds while a sibling bounds it.

    Attributes:
        access: the access.
        range: the range.
        sibling: the sibling's bound.
        guard: the node that makes up for it, or None.
    """

    access: Access
    range: Atom
    sibling: Bound
    guard: ast.AST | None


@dataclass(frozen=True)
class Compared:
    """``low < high``, ``low <= high`` or, with ``equal``, ``low == high``, as polynomials."""

    low: Poly
    high: Poly
    node: ast.Compare
    equal: bool


def _comparisons(
    index: Indices, expr: ast.expr, axis: int, seen: set[tuple[ast.AST, int]]
) -> Iterator[Compared | ast.expr]:
    """Yield the comparisons of a mask, low side first; what cannot be followed is yielded itself."""
    if (expr, axis) in seen:
        return
    seen.add((expr, axis))
    function = index.function
    if isinstance(expr, ast.Compare):
        left = expr.left
        for operator, right in zip(expr.ops, expr.comparators, strict=True):
            one, other = index.of(left, axis), index.of(right, axis)
            if isinstance(operator, _UPPER):
                yield Compared(one, other, expr, False)
            elif isinstance(operator, _LOWER):
                yield Compared(other, one, expr, False)
            elif isinstance(operator, ast.Eq):
                yield Compared(one, other, expr, True)
            left = right
    elif isinstance(expr, ast.BinOp) and isinstance(expr.op, (ast.BitAnd, ast.BitOr, ast.Mult)):
        yield from _comparisons(index, expr.left, axis, seen)
        yield from _comparisons(index, expr.right, axis, seen)
    elif isinstance(expr, ast.BoolOp):
        for value in expr.values:
            yield from _comparisons(index, value, axis, seen)
    elif isinstance(expr, ast.IfExp):
        yield from _comparisons(index, expr.body, axis, seen)
        yield from _comparisons(index, expr.orelse, axis, seen)
    elif isinstance(expr, ast.Subscript) and is_broadcast(expr):
        yield from _comparisons(index, expr.value, index.axis(expr) or axis, seen)
    elif isinstance(expr, ast.Name) and expr in function.parents:
        for reached in function.flow.reaching(expr.id, expr):
            if reached.value is None or reached.kind not in ("assign", "augmented"):
                yield expr
            elif reached.kind == "augmented" and isinstance(reached.value, ast.BinOp):
                statement = function.flow.augmented[reached.value.right]
                yield from _comparisons(index, reached.value.right, axis, seen)
                for before in function.flow.before(expr.id, statement):
                    if before.value is not None and before is not reached and before.kind == "assign":
                        yield from _comparisons(index, before.value, axis, seen)
            else:
                yield from _comparisons(index, reached.value, axis, seen)
    elif isinstance(expr, ast.Call):
        inner = [*expr.args, *(keyword.value for keyword in expr.keywords)]
        if isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            inner = [expr.func.value]
        found = [each for part in inner for each in _comparisons(index, part, axis, seen)]
        yield from (each for each in found if isinstance(each, Compared))
        yield expr
    elif (isinstance(expr, ast.UnaryOp) and isinstance(expr.op, (ast.Invert, ast.Not))) or not isinstance(
        expr, ast.Constant
    ):
        yield expr


def compared(index: Indices, expr: ast.expr) -> list[Compared | ast.expr]:
    """Return the comparisons that a condition joins; parts that cannot be followed as they are."""
    return list(_comparisons(index, expr, 0, set()))


def whole_tiles(name: str) -> bool:
    """Return whether a name is, by the customs of the field, a switch that tells whether tiles are whole."""
    return _WHOLE_TILES.search(name) is not None


def _mask(access: Access) -> list[Compared | ast.expr]:
    return [] if access.mask is None else compared(indices(access.function), access.mask)


def _dimensions(access: Access) -> list[tuple[str, ast.expr, Poly, bool]]:
    """Return a block pointer's dimensions: limit, block's extent, index, whether it is checked."""
    block = access.block
    if block is None or not (
        isinstance(block.shape, ast.Tuple)
        and isinstance(block.offsets, ast.Tuple)
        and isinstance(block.block_shape, ast.Tuple)
    ):
        return []
    index = indices(access.function)
    checked: set[object] = set()
    if access.boundary_check is not None:
        given = resolved(access.function, access.boundary_check)
        parts = given.elts if isinstance(given, (ast.Tuple, ast.List)) else [given]
        if not all(isinstance(part, ast.Constant) for part in parts):
            return []
        checked = {part.value for part in parts if isinstance(part, ast.Constant)}
    found = []
    dimensions = zip(block.shape.elts, block.offsets.elts, block.block_shape.elts, strict=False)
    for place, (limit, offset, extent) in enumerate(dimensions):
        lanes = atom(Atom("range", written(index.of(extent))))
        found.append((written(index.of(limit)), extent, add(index.of(offset), lanes), place in checked))
    return found


def _split(low: Poly, high: Poly) -> tuple[Poly, Poly]:
    """Return what a comparison ``low < high`` bounds, and its limit.

    What changes from lane to lane, program to program or turn to turn belongs to the index, whatever its sign.
    """
    whole = add(low, high, -1)
    index = frozenset(
        (product, count)
        for product, count in whole
        if count > 0 or any(one.kind in ("range", "pid", "loop", "moved") for one in product)
    )
    return index, frozenset((product, -count) for product, count in whole - index)


def bounds(access: Access) -> list[Bound]:
    """Return what an access keeps below a limit, comparisons that always hold left out."""
    found = []
    for limit, _, index, checked in _dimensions(access):
        if checked and not _vacuous(index, limit):
            assert access.block is not None
            found.append(Bound(flat(index), limit, access.block.call, access))
    for one in _mask(access):
        if not isinstance(one, Compared) or one.equal:
            continue
        index, high = _split(one.low, one.high)
        limit = written(high)
        if ranges_of(index) and not ranges_of(high) and not _vacuous(index, limit) and high:
            found.append(Bound(flat(index), limit, one.node, access))
    return found


def _vacuous(index: Poly, limit: str) -> bool:
    """Return whether an index is a bare range that ends at the limit."""
    lanes = ranges_of(index)
    return is_tile_size(limit) or (len(index) == 1 and len(lanes) == 1 and next(iter(lanes)).text == limit)


def covered(access: Access) -> set[tuple[str, int]] | None:
    """Return extent and axis of the ranges that a mask bounds; None where the mask cannot be followed."""
    found: set[tuple[str, int]] = set()
    relations: list[tuple[set[Atom], set[Atom]]] = []
    for one in _mask(access):
        if not isinstance(one, Compared):
            if _opaque(access.function, one):
                return None
            continue
        low, high = ranges_of(one.low), ranges_of(one.high)
        if low and not high:
            found |= {(each.text, each.axis) for each in low}
        elif one.equal and high and not low:
            found |= {(each.text, each.axis) for each in high}
        elif high and not low and any(count < 0 for _, count in one.high):
            found |= {(each.text, each.axis) for each in high}  # a range that ends at a length: first lanes are cut
        elif low and high:
            relations.append((low, high))
        if not low and not high:
            for side in (one.node.left, *one.node.comparators):
                lanes = [call for name, call in origins(access.function, side).calls if name.endswith("arange")]
                if lanes and origins(access.function, side).calls_any("load"):
                    return None
    for _ in relations:
        for low, high in relations:
            if all((each.text, each.axis) in found for each in high):
                found |= {(each.text, each.axis) for each in low}
    return found


def _opaque(function: Function, expr: ast.expr) -> bool:
    """Return whether a part of a mask that is no comparison may bound a range."""
    reached = origins(function, expr)
    return any(name.endswith("arange") for name, _ in reached.calls) or (
        isinstance(expr, ast.Name) and expr.id not in function.constexprs
    )


def gaps(kernel: Function, kinds: tuple[str, ...]) -> Iterator[Gap]:
    """Yield the ranges that an access of one of these kinds leaves unbounded and a sibling bounds."""
    known = [bound for each in accesses(kernel) for bound in bounds(each)]
    if not known:
        return
    for access in accesses(kernel):
        if access.kind not in kinds:
            continue
        seen = set()
        pairs = _block_gaps(access, known) if access.block is not None else _pointer_gaps(access, known)
        for lanes, sibling in pairs:
            if lanes.text not in seen:
                seen.add(lanes.text)
                yield Gap(access, lanes, sibling, guarded_tile(access, lanes))


def _block_gaps(access: Access, known: list[Bound]) -> Iterator[tuple[Atom, Bound]]:
    for limit, _, index, checked in _dimensions(access):
        if checked or _vacuous(index, limit):
            continue
        for bound in known:
            if bound.access is not access and bound.limit == limit and holds(flat(index), bound.index):
                yield next(iter(ranges_of(index))), bound
                break


def _pointer_gaps(access: Access, known: list[Bound]) -> Iterator[tuple[Atom, Bound]]:
    within = covered(access)
    if within is None:
        return
    for pointer in indices(access.function).pointers(access.pointer):
        for part in dividends(pointer):
            for lanes in sorted(ranges_of(part, quotients=False), key=lambda one: (one.text, one.axis)):
                if (lanes.text, lanes.axis) in within or lanes.text == "1":
                    continue
                whole = flat(_on_axis(part, lanes))
                for bound in known:
                    fits = any(one.text == lanes.text for one in ranges_of(bound.index))
                    if not fits or bound.access is access:
                        continue
                    if holds(whole, bound.index) and not _row(whole, lanes, bound.index):
                        yield lanes, bound
                        break


def _on_axis(poly: Poly, lanes: Atom) -> Poly:
    """Return a polynomial without the same range on other axes."""
    return frozenset(
        (product, count)
        for product, count in poly
        if not any(one.kind == "range" and one.text == lanes.text and one.axis != lanes.axis for one in product)
    )


def _row(whole: Poly, lanes: Atom, index: Poly) -> bool:
    """Return whether the pointer itself lays out rows as long as the range, so that the range fills a row exactly."""
    bare = Atom("range", lanes.text)
    own = {product for product, _ in index}
    for product, _ in whole:
        if bare not in product:
            continue
        stride = list(product)
        stride.remove(bare)
        row = tuple(sorted([*(one.text for one in stride), lanes.text]))
        for other, _ in whole:
            rest = [one for one in other if one.kind != "range"]
            names = [one.text for one in rest if one.kind == "name"]
            if other == product or not _within(row, names):
                continue
            tile = [one for one in rest]
            for each in stride:
                if each in tile:
                    tile.remove(each)
            if tuple(tile) not in own:
                return True
    return False


def _within(few: tuple[str, ...], many: list[str]) -> bool:
    left = list(many)
    for one in few:
        if one not in left:
            return False
        left.remove(one)
    return True


def guarded_tile(access: Access, lanes: Atom) -> ast.AST | None:
    """Return the condition around an access that makes its tile a whole one, if there is one."""
    function = access.function
    index = indices(function)
    for guard in guards(function, access.call):
        if guard.kind != "early exit" and any(_WHOLE_TILES.search(name) for name in names_in(guard.test)):
            return guard.node
        for one in _comparisons(index, guard.test, 0, set()):
            if isinstance(one, Compared):
                low, high = (one.low, one.high) if guard.holds else (one.high, one.low)
                ahead, _ = _split(low, high)
                if any(written(frozenset({term})) == lanes.text for term in ahead):
                    return guard.node
        if isinstance(guard.node, ast.If) and guard.kind == "if" and _other_branch(access, guard.node, guard.holds):
            return guard.node
    return None


def _other_branch(access: Access, node: ast.If, holds_here: bool) -> bool:
    """Return whether the other branch makes the same access with a mask."""
    other = node.orelse if holds_here else node.body
    inside = {id(each) for statement in other for each in ast.walk(statement)}
    return any(
        id(each.call) in inside
        and each.kind == access.kind
        and each.base == access.base
        and (each.mask is not None or each.boundary_check is not None)
        for each in accesses(access.function)
    )
