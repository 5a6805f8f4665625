"""Masks that bound another index than the one the pointer goes by, though both have the same lanes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.bounds import Compared, bounds, compared, is_tile_size, whole_tiles
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.polynomials import Atom, Poly, add, atoms, flat, indices, ranges, text
from deltaproof.audit.flow.row_bounds import strides
from deltaproof.audit.flow.trace import names_in, origins

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_GROWS = ("loop", "pid", "range")


@dataclass(frozen=True)
class Bounded:
    """An index with lanes that a mask, or a block pointer's check, keeps below a limit.

    Attributes:
        index: the index, ranges on axis 0.
        high: the limit.
        lanes: extents of the ranges that the index is made of.
        node: the comparison, or the block pointer.
        access: the access that it belongs to.
    """

    index: Poly
    high: Poly
    lanes: frozenset[str]
    node: ast.AST
    access: Access

    @property
    def name(self) -> str:
        """Return the index as the source writes it."""
        if isinstance(self.node, ast.Compare):
            sides = (self.node.left, self.node.comparators[0])
            side = sides[0] if isinstance(self.node.ops[0], (ast.Lt, ast.LtE)) else sides[1]
            return ast.unparse(side.value if isinstance(side, ast.Subscript) else side)
        return text(self.index)


@dataclass(frozen=True)
class Mismatch:
    """An access whose mask bounds one index while its pointer goes by another one that a sibling bounds.

    Attributes:
        access: the access.
        own: what its mask bounds.
        sibling: what the sibling bounds.
    """

    access: Access
    own: Bounded
    sibling: Bounded


def mismatches(kernel: Function, kinds: tuple[str, ...]) -> Iterator[Mismatch]:
    """Yield the accesses whose mask bounds another index, or by a loop's counter instead of the length."""
    if not any(each.kind in kinds and each.mask is not None for each in accesses(kernel)):
        return
    known: dict[ast.AST, tuple[frozenset[str], frozenset[str]]] = {}
    every = [each for access in accesses(kernel) for each in _bounded(access, known)]
    if len({(each.index, each.high) for each in every}) < 2:
        return
    for access in accesses(kernel):
        if access.kind not in kinds or access.block is not None or access.mask is None:
            continue
        own = [each for each in every if each.access is access]
        if own:
            found = next(_mismatch(access, own, every), None)
            if found is not None:
                yield found


def _bounded(access: Access, known: dict[ast.AST, tuple[frozenset[str], frozenset[str]]]) -> list[Bounded]:
    function = access.function
    if access.block is not None:
        return [
            Bounded(each.index, _name(each.limit), frozenset(one.text for one in ranges(each.index)), each.node, access)
            for each in bounds(access)
            if each.limit.isidentifier()
        ]
    if access.mask is None:
        return []
    found = []
    for one in compared(indices(function), access.mask):
        if not isinstance(one, Compared) or one.equal or len(one.node.ops) != 1 or not one.high or _is_tile(one.high):
            continue
        sides = [one.node.left, one.node.comparators[0]]
        if not isinstance(one.node.ops[0], (ast.Lt, ast.LtE)):
            sides.reverse()
        if one.node not in known:
            known[one.node] = _extents(function, sides[0]), _extents(function, sides[1])
        low, high = known[one.node]
        if low and not high:
            found.append(Bounded(flat(one.low), flat(one.high), low, one.node, access))
    return found


def _is_tile(high: Poly) -> bool:
    names = [one for product, _ in high for one in product]
    return not names or all(is_tile_size(one.text) for one in names)


def _name(limit: str) -> Poly:
    return frozenset({((Atom("name", limit),), 1)})


def _extents(function: Function, expr: ast.expr) -> frozenset[str]:
    calls = [call for name, call in origins(function, expr).calls if name.endswith("arange")]
    return frozenset(ast.unparse(call.args[-1]) for call in calls if call.args)


def _mismatch(access: Access, own: list[Bounded], every: list[Bounded]) -> Iterator[Mismatch]:
    for pointer in indices(access.function).pointers(access.pointer):
        spread: dict[str, set[int]] = {}
        for one in ranges(pointer):
            spread.setdefault(one.text, set()).add(one.axis)
        whole = flat(pointer)
        for sibling in every:
            if sibling.access is access or any(len(spread.get(each, ())) > 1 for each in sibling.lanes):
                continue
            same = [each for each in own if each.lanes & sibling.lanes]
            if not same or not _runs(access.function, sibling.index) or not _goes_by(whole, sibling):
                continue
            if any(each.index != sibling.index and _goes_by(whole, each) for each in same):
                continue
            equal = [each for each in same if each.index == sibling.index]
            if equal:
                if len(same) == len(equal) == 1 and _counts_only(access, equal[0], sibling):
                    yield Mismatch(access, equal[0], sibling)
            elif not any(
                _reads_alike(each, sibling) or _enough(access, each, sibling) for each in same
            ) and not _tested(access, sibling):
                yield Mismatch(access, same[0], sibling)


def _runs(function: Function, index: Poly) -> bool:
    """Return whether an index has lanes that are not read from memory, also where branches make it differently."""
    if ranges(index):
        return True
    (product, count), *more = index
    if more or count != 1 or len(product) != 1 or product[0].kind != "name":
        return False
    made = [each.value for each in function.flow.definitions(product[0].text)]
    return bool(made) and all(value is not None and ranges(indices(function).of(value)) for value in made)


def _goes_by(whole: Poly, each: Bounded) -> bool:
    """Return whether a pointer holds an index, at one stride."""
    return any(True for _ in strides(whole, each.index))


def _reads_alike(own: Bounded, sibling: Bounded) -> bool:
    """Return whether two bounds are of one name and limit: a loop moves the index along with a pointer."""
    return own.name == sibling.name and text(own.high) == text(sibling.high)


def _enough(access: Access, own: Bounded, sibling: Bounded) -> bool:
    """Return whether an index that is bounded may keep the sibling's below its limit."""
    function = access.function
    apart = add(sibling.index, own.index, -1)
    if apart == add(sibling.high, own.high, -1):
        return True
    (ours, limit), (theirs, other) = _sides(own), _sides(sibling)
    if (ours ^ theirs) & (limit | other) and own.high != sibling.high:
        return True  # what tells the indices apart tells the limits apart too
    down = all(count < 0 and all(_positive(function, one) for one in product) for product, count in apart)
    return down and own.high == sibling.high


def _sides(each: Bounded) -> tuple[set[str], set[str]]:
    """Return the names that an index and its limit are made of, without those that memory is read by."""
    function = each.access.function
    if not isinstance(each.node, ast.Compare):
        return {one.text for one in atoms(each.index)}, {one.text for one in atoms(each.high)}
    sides = [origins(function, side, through_calls=False).names for side in (each.node.left, each.node.comparators[0])]
    if not isinstance(each.node.ops[0], (ast.Lt, ast.LtE)):
        sides.reverse()
    return sides[0] - set(_spelled(function, each)), sides[1]


def _spelled(function: Function, each: Bounded) -> set[str]:
    """Return the names of an index that stand for other ones."""
    assert isinstance(each.node, ast.Compare)
    names = names_in(each.node)
    return {name for name in names if function.flow.definitions(name) and name not in function.param_names}


def _positive(function: Function, one: Atom) -> bool:
    return one.kind in _GROWS or one.text in function.constexprs or is_tile_size(one.text)


def _counts_only(access: Access, own: Bounded, sibling: Bounded) -> bool:
    """Return whether a mask ends at a loop's counter, and the sibling's at a length."""
    counters = [product[0] for product, _ in own.high if len(product) == 1 and product[0].kind == "loop"]
    length = [product[0].text for product, _ in sibling.high if len(product) == 1]
    if len(counters) != 1 or len(own.high) != 1 or len(length) != len(sibling.high) or len(length) != 1:
        return False
    function = access.function
    if length[0] in function.constexprs:
        return False
    for around in function.ancestors(access.call):
        if isinstance(around, ast.For) and isinstance(around.target, ast.Name) and around.target.id == counters[0].text:
            stops = names_in(around.iter) & (function.param_names | {length[0]})
            return isinstance(around.iter, ast.Call) and stops <= function.constexprs and not _tested(access, sibling)
    return False


def _tested(access: Access, sibling: Bounded) -> bool:
    """Return whether a condition around the access tells about the sibling's limit, more than of the first row."""
    function = access.function
    index = indices(function)
    limits = {one.text for one in atoms(sibling.high)}
    lanes = ranges(sibling.index)
    first = frozenset(term for term in sibling.index if not lanes & set(term[0]))
    for guard in guards(function, access.call):
        if guard.kind != "early exit" and any(whole_tiles(name) for name in names_in(guard.test)):
            return True
        if not limits & names_in(guard.test):
            continue
        for one in compared(index, guard.test):
            low, high = (one.low, one.high) if isinstance(one, Compared) else (frozenset(), frozenset())
            apart = add(low, high, -1) if guard.holds else add(high, low, -1)
            if flat(apart) != add(first, sibling.high, -1):
                return True
    return False
