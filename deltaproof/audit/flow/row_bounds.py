"""What keeps a row without lanes below the length that its tile ends at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.bounds import Bound, Compared, compared, is_tile_size, whole_tiles
from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.polynomials import Atom, Indices, Poly, Product, add, atoms, indices, text, times
from deltaproof.audit.flow.trace import names_in, origins

if TYPE_CHECKING:
    from deltaproof.audit.flow.access import Access

VARIES = ("pid", "loop", "quotient", "name", "text")
"""Atoms that differ from program to program or turn to turn, tile sizes left out."""


def is_size(one: Atom) -> bool:
    """Return whether an atom is a tile's size."""
    return one.kind == "name" and is_tile_size(one.text)


def strides(whole: Poly, start: Poly) -> Iterator[tuple[Product, int]]:
    """Yield the strides at which a pointer holds a start."""
    known = dict(whole)
    first, count = next(iter(sorted(start, key=lambda term: -len(term[0]))))
    for product, size in known.items():
        rest = list(product)
        for one in first:
            if one not in rest:
                break
            rest.remove(one)
        else:
            if size % count == 0 and size // count > 0:
                stride: Poly = frozenset({(tuple(rest), size // count)})
                if all(known.get(each) == number for each, number in times(start, stride)):
                    yield tuple(rest), size // count


def _touches(one: Compared, terms: Poly) -> bool:
    """Return whether a comparison tells about something that varies in these terms."""
    varying = {each for each in atoms(terms) if each.kind in VARIES and not is_size(each)}
    return bool(varying & (atoms(one.low) | atoms(one.high)))


def compared_in_mask(access: Access, row: Poly, steps: list[Atom], bound: Bound) -> bool:
    """Return whether a mask may bound the row: it tells about its counter, or about the row against the limit."""
    if access.mask is None:
        return False
    index = indices(access.function)
    for one in compared(index, access.mask):
        if not isinstance(one, Compared):
            if not isinstance(one, ast.Constant) and origins(access.function, one).calls_any("program_id", "load"):
                return True
            continue
        inside = atoms(one.low) | atoms(one.high)
        if any(step in inside for step in steps) or (_touches(one, row) and _names(one, bound.limit)):
            return True
        if any(step.kind == "moved" for step in steps) and any(each.kind == "loop" for each in inside):
            return True
    return False


def _names(one: Compared, limit: str) -> bool:
    return limit in names_in(one.node) or any(each.text == limit for each in atoms(one.low) | atoms(one.high))


def guarded(access: Access, start: Poly, row: Poly, steps: list[Atom], bound: Bound) -> bool:
    """Return whether a condition around the access keeps the row below the limit."""
    return any(_keeps(access, guard, start, row, steps, bound) for guard in guards(access.function, access.call))


def _keeps(access: Access, guard: Guard, start: Poly, row: Poly, steps: list[Atom], bound: Bound) -> bool:
    function = access.function
    index = indices(function)
    if guard.kind != "early exit" and any(whole_tiles(name) for name in names_in(guard.test)):
        return True
    for one in compared(index, guard.test):
        if not isinstance(one, Compared):
            continue
        low, high = (one.low, one.high) if guard.holds else (one.high, one.low)
        exact = add(low, high, -1)
        limit = _limit(index, bound)
        if exact == add(start, limit, -1) and row != start:
            continue  # the tile's first row exists, this one need not
        if exact == add(row, limit, -1):
            if _strict(one.node, guard.holds):
                return True
            continue
        knows = _names(one, bound.limit) or bound.limit in origins(function, guard.test).names
        if knows and _touches(one, row):
            return True
        varying = {each for each in atoms(row) if each.kind in VARIES and not is_size(each)}
        if atoms(low) & varying and not atoms(high) & varying and any(e.kind in VARIES for e in atoms(high)):
            return True  # a place before another one, which may be known to exist
    return False


def _limit(index: Indices, bound: Bound) -> Poly:
    """Return the limit of a bound as a polynomial."""
    if isinstance(bound.node, ast.Compare):
        for one in compared(index, bound.node):
            if isinstance(one, Compared) and text(one.high) == bound.limit:
                return one.high
    return frozenset({((Atom("name", bound.limit),), 1)})


def _strict(node: ast.Compare, holds: bool) -> bool:
    return isinstance(node.ops[0], (ast.Lt, ast.Gt)) == holds
