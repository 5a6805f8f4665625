"""Rows without lanes: one row at a tile's place plus a counter, read or stored though the tile may end earlier."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.bounds import Bound, bounds
from deltaproof.audit.flow.polynomials import Atom, Poly, Product, add, indices, ranges
from deltaproof.audit.flow.row_bounds import VARIES, compared_in_mask, guarded, is_size, strides
from deltaproof.audit.flow.trace import called_name, names_in, origins

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function


@dataclass(frozen=True)
class Row:
    """A row that no comparison keeps below the limit that a sibling keeps the tile's rows below.

    Attributes:
        access: the access.
        why: how far it gets.
        bound: the sibling's bound.
    """

    access: Access
    why: str
    bound: Bound


def past_rows(kernel: Function, kinds: tuple[str, ...]) -> Iterator[Row]:
    """Yield the accesses of one row of a tile that may lie behind the last one."""
    known: dict[tuple[Poly, str], Bound] = {}
    for each in accesses(kernel):
        for bound in bounds(each):
            known.setdefault((bound.index, bound.limit), bound)
    starts = [found for bound in known.values() if (found := _start(kernel, bound)) is not None]
    if not starts:
        return
    for access in accesses(kernel):
        if access.kind in kinds:
            row = _clamped(access, starts) or _plain(access, starts) if access.block is None else _flat(access, starts)
            if row is not None:
                yield row


def _start(kernel: Function, bound: Bound) -> tuple[Poly, Bound] | None:
    """Return where the rows start that a bound keeps below a length, if every program has its own."""
    lanes = ranges(bound.index)
    start = frozenset(term for term in bound.index if not any(one.kind == "range" for one in term[0]))
    if len(lanes) != 1 or len(bound.index) != len(start) + 1 or not bound.limit.isidentifier():
        return None
    if not any(one.kind in ("pid", "quotient", "text", "name") and _sized(term) for term, _ in start for one in term):
        return None
    return start, bound


def _sized(product: Product) -> bool:
    """Return whether a product is a tile's number times its size."""
    return any(is_size(one) for one in product) and len(product) > 1


def _at(whole: Poly, stride: Product, count: int) -> Poly:
    """Return what a pointer multiplies by a stride: the terms that hold all of its factors, without these."""
    found: dict[Product, int] = {}
    for product, size in whole:
        rest = list(product)
        for one in stride:
            if one not in rest:
                break
            rest.remove(one)
        else:
            if size % count == 0:
                found[tuple(rest)] = size // count
    return frozenset(found.items())


def _plain(access: Access, starts: list[tuple[Poly, Bound]]) -> Row | None:
    index = indices(access.function)
    for whole in index.pointers(access.pointer):
        for start, bound in starts:
            for stride, count in strides(whole, start):
                row = _at(whole, stride, count)
                if _has_lanes(row, stride):
                    continue
                row = add(row, _moved(access, whole, stride))
                found = _beyond(access, row, start, stride, bound)
                if found is not None:
                    return found
    return None


def _flat(access: Access, starts: list[tuple[Poly, Bound]]) -> Row | None:
    """A row of a block pointer that is bounded by all elements only: ``(T * K,)`` at ``row * K + column``."""
    block = access.block
    shape, offsets = (None, None) if block is None else (block.shape, block.offsets)
    if not isinstance(shape, ast.Tuple) or not isinstance(offsets, ast.Tuple):
        return None
    if len(shape.elts) != 1 or len(offsets.elts) != 1:
        return None
    index = indices(access.function)
    whole, extent = index.of(offsets.elts[0]), index.of(shape.elts[0])
    for start, bound in starts:
        for stride, count in strides(whole, start):
            row = _at(whole, stride, count)
            flat = frozenset({(tuple(sorted((*stride, Atom("name", bound.limit)), key=_order)), 1)})
            if not stride or _sorted(extent) != flat or _has_lanes(row, stride):
                continue
            found = _beyond(access, row, start, stride, bound)
            if found is not None:
                return found
    return None


def _sorted(terms: Poly) -> Poly:
    return frozenset((tuple(sorted(product, key=_order)), count) for product, count in terms)


def _order(one: Atom) -> str:
    return one.text


def _has_lanes(row: Poly, stride: Product) -> bool:
    """Return whether the row itself has lanes; without a stride everything belongs to the row."""
    return any(one.kind == "range" for product, _ in row for one in product) or any(
        one.kind == "range" for one in stride
    )


def _beyond(access: Access, row: Poly, start: Poly, stride: Product, bound: Bound) -> Row | None:
    kernel = access.function
    more = [(product, count) for product, count in row - start if not _is_base(product, count, stride)]
    if any(count < 0 for product, count in more if product != ()) or bound.limit in {
        one.text for product, _ in more for one in product
    }:
        return None
    last = [(product, count) for product, count in more if len(product) == 1 and product[0].text in kernel.constexprs]
    steps = [product[0] for product, _ in more if len(product) == 1 and product[0].kind in ("loop", "moved")]
    constant = sum(count for product, count in more if product == ())
    if len(last) + len(steps) + sum(product == () for product, _ in more) != len(more) or len(steps) > 1:
        return None
    counters = {one for product, _ in row for one in product if one.kind == "loop" and one not in steps}
    if any(not _counts_tile(access, one, bound.limit) for one in (*counters, *steps)):
        return None
    if steps:
        why = f"`{_counter(access, steps[0])}` runs over a whole tile"
    elif last and constant < 0 and all(is_size(product[0]) for product, _ in last):
        why = "it is the last row of a whole tile"
    elif not more and _second_place(start):
        why = "a part of the tile may start behind the end"
    else:
        return None
    reached = frozenset(start | set(more))
    if compared_in_mask(access, reached, steps, bound) or guarded(access, start, reached, steps, bound):
        return None
    return Row(access, why, bound)


def _is_base(product: Product, count: int, stride: Product) -> bool:
    """Return whether a term places the sequence: a batch or head times a length, or a sequence's first token."""
    return (
        count > 0
        and (
            len(product) > 1
            or (bool(stride) and len(product) == 1 and product[0].kind in ("name", "pid", "text", "quotient"))
        )
        and not any(is_size(one) or one.kind in ("loop", "moved") for one in product)
    )


def _moved(access: Access, whole: Poly, stride: Product) -> Poly:
    """Return the step of a loop that moves the pointer by one row a turn, or nothing."""
    function = access.function
    for product, count in whole:
        if len(product) != 1 or product[0].kind != "moved" or count != 1:
            continue
        for around in function.ancestors(access.call):
            for each in around.body if isinstance(around, ast.For) else ():
                if not isinstance(each, ast.AugAssign) or not isinstance(each.op, ast.Add):
                    continue
                value = each.value
                steps = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                same = isinstance(each.target, ast.Name) and each.target.id == product[0].text
                if same and any(indices(function).of(step) == frozenset({(stride, 1)}) for step in steps):
                    return frozenset({(product, 1)})
    return frozenset()


def _counter(access: Access, step: Atom) -> str:
    if step.kind == "loop":
        return step.text
    loop = _loop_of(access, step)
    return ast.unparse(loop.target) if loop is not None else step.text


def _loop_of(access: Access, step: Atom) -> ast.For | None:
    """Return the loop that counts a step: whose variable it is, or whose body moves the pointer by one row."""
    for around in access.function.ancestors(access.call):
        if isinstance(around, ast.For):
            if step.kind == "loop":
                if isinstance(around.target, ast.Name) and around.target.id == step.text:
                    return around
            elif any(
                isinstance(each, ast.AugAssign) and isinstance(each.target, ast.Name) and each.target.id == step.text
                for each in around.body
            ):
                return around
    return None


def _counts_tile(access: Access, step: Atom, limit: str) -> bool:
    """Return whether a loop runs over constants and tile sizes only, more than one turn."""
    loop = _loop_of(access, step)
    if loop is None or not isinstance(loop.iter, ast.Call) or not loop.iter.args:
        return False
    name = called_name(access.function, loop.iter).rpartition(".")[2]
    stop = loop.iter.args[0 if len(loop.iter.args) == 1 else 1]
    used = {each for part in loop.iter.args for each in names_in(part)}
    if name not in ("range", "static_range") or limit in used or not used <= access.function.constexprs:
        return False
    return any(is_size(Atom("name", each)) or each in ("NC", "NT") for each in names_in(stop))


def _second_place(start: Poly) -> bool:
    """Return whether a start adds a part's place to the place of its tile."""
    sizes = set()
    for product, _ in start:
        size = [one.text for one in product if is_size(one)]
        if len(size) == 1 and len(product) == 2 and any(one.kind in VARIES for one in product):
            sizes.add(size[0])
    return len(sizes) > 1


def _clamped(access: Access, starts: list[tuple[Poly, Bound]]) -> Row | None:
    """A row that is clamped to the length itself, which is one row behind the last."""
    function = access.function
    index = indices(function)
    for whole in index.pointers(access.pointer):
        for name, call in origins(function, access.pointer).calls:
            if name.rpartition(".")[2] not in ("min", "minimum") or len(call.args) != 2:
                continue
            clamp = Atom("text", ast.unparse(call))
            for start, bound in starts:
                sides = [ast.unparse(side) for side in call.args]
                if bound.limit not in sides:
                    continue
                place = index.of(call.args[1 - sides.index(bound.limit)])
                if place != start:
                    continue
                for product, count in whole:
                    rest = [one for one in product if one != clamp]
                    if len(rest) + 1 != len(product) or count < 0:
                        continue
                    row = _at(whole, tuple(rest), count)
                    if any(size < 0 for _, size in row) or _has_lanes(row, tuple(rest)):
                        continue
                    if not compared_in_mask(access, place, [], bound) and not guarded(
                        access, frozenset(), place, [], bound
                    ):
                        return Row(access, f"`{clamp.text}` can be the length itself, not the last row", bound)
    return None
