"""Addresses of a Triton kernel taken apart: which index goes with which stride.

An address such as ``x + (bos * H + i_h) * K + (i_t * BT + arange(BT)) * H * K`` becomes terms: the index ``bos`` with
the stride ``H * K``, ``i_h`` with ``K``, ``i_t`` in tiles of ``BT`` with ``H * K``, the range with ``H * K``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.indices import made
from deltaproof.audit.flow.polynomials import Atom, Indices, Poly, Product, add, indices, times

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_TILE = re.compile(r"^(B[A-Z]{1,2}\d?|BLOCK(_\w+)?|\w+_BLOCK(_SIZE)?|\w+_TILE)$")
_START = re.compile(r"(^|_)(bos|start|begin)(_|$)|start_(idx|index|loc)", re.IGNORECASE)
_STARTS = re.compile(r"load\((\w*(cu_|seqlens?|indptr|start_loc|offsets)\w*) \+", re.IGNORECASE)
_MOST = 4
Stride = tuple[Atom, ...]


@dataclass(frozen=True)
class Term:
    """One index of an address.

    Attributes:
        index: what counts.
        tile: name of the tile size where it counts tiles, one term for each size in a product; else "".
        stride: the factors beside them, in order, without a literal.
        count: the literal factor.
    """

    index: Atom
    tile: str
    stride: Stride
    count: int


@dataclass(frozen=True)
class Address:
    """One way in which an access gets its address.

    Attributes:
        access: the load, store or atomic.
        terms: the indices; products of several indices are left out.
        rest: those products, with what they are made of.
    """

    access: Access
    terms: tuple[Term, ...]
    rest: tuple[Product, ...]

    def starts(self, function: Function) -> list[Term]:
        """Return the terms that tell where a sequence begins."""
        return [term for term in self.terms if not term.tile and is_start(function, term.index)]

    def tiles(self) -> list[Term]:
        """Return the terms that count tiles."""
        return [term for term in self.terms if term.tile]

    def ranges(self, tile: str) -> list[Term]:
        """Return the ranges over one tile."""
        return [term for term in self.terms if term.index.kind == "range" and term.index.text == tile]


def is_start(function: Function, one: Atom) -> bool:
    """Return whether an index is, by where it is loaded from or by its name, the first token of a sequence."""
    if one.kind == "text":
        return _STARTS.search(one.text) is not None
    if one.kind != "name" or one.text in function.param_names or not _START.search(one.text):
        return False
    return any(
        found.value is not None and (".load(" in ast.unparse(found.value) or isinstance(found.value, ast.BinOp))
        for found in made(function).get(one.text, ())
    )


def _is_size(function: Function, one: Atom) -> bool:
    if one.kind == "name":
        return one.text in function.param_names
    return one.kind == "text" and "cdiv(" in one.text


def _order(one: tuple[Product, int]) -> tuple[list[str], int]:
    return [atom.text for atom in one[0]], one[1]


def _terms(function: Function, poly: Poly, base: str) -> tuple[tuple[Term, ...], tuple[Product, ...]]:
    found: list[Term] = []
    rest: list[Product] = []
    for product, count in sorted(poly, key=_order):
        if len(product) == 1 and product[0].text == base:
            continue
        counting = [one for one in product if not _is_size(function, one)]
        if len(counting) != 1:
            rest.append(product)
            continue
        factors = list(product)
        factors.remove(counting[0])
        sizes = [one for one in factors if one.kind == "name" and _TILE.match(one.text)]
        for size in [] if counting[0].kind == "range" else dict.fromkeys(sizes):
            left = list(factors)
            left.remove(size)
            found.append(Term(counting[0], size.text, tuple(left), count))
        if not sizes or counting[0].kind == "range":
            found.append(Term(counting[0], "", tuple(factors), count))
    return tuple(found), tuple(rest)


def _whole(known: Indices, access: Access) -> list[Poly]:
    """Return the polynomials of an address, a block pointer's offsets and strides multiplied out."""
    block = access.block
    if block is None:
        return known.pointers(access.pointer)
    if block.base is None or not isinstance(block.offsets, ast.Tuple) or not isinstance(block.strides, ast.Tuple):
        return []
    more: Poly = frozenset()
    for offset, stride in zip(block.offsets.elts, block.strides.elts, strict=False):
        more = add(more, times(known.of(offset), known.of(stride)))
    return [add(each, more) for each in known.pointers(block.base)]


def addresses(function: Function) -> list[Address]:
    """Return the addresses of a kernel's accesses to its parameters; kept with the function."""
    kept: list[Address] | None = function.__dict__.get("_addresses")
    if kept is not None:
        return kept
    kept = []
    known = indices(function)
    for access in accesses(function):
        if access.base not in function.param_names:
            continue
        for poly in _whole(known, access)[:_MOST]:
            terms, rest = _terms(function, poly, access.base)
            kept.append(Address(access, terms, rest))
    function.__dict__["_addresses"] = kept
    return kept


def without(whole: Stride, part: Stride) -> Stride | None:
    """Return the factors of a stride that another one lacks; None where the other is no part of it."""
    left = list(whole)
    for one in part:
        if one not in left:
            return None
        left.remove(one)
    return tuple(left)


def written(stride: Stride, count: int = 1) -> str:
    """Return a stride as a reader would write it."""
    names = [one.text for one in stride]
    return " * ".join(([str(count)] if count != 1 or not names else []) + names)
