"""Loads, stores and atomics of a Triton kernel: base pointer, offsets, ranges and masks."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from deltaproof.audit.flow.trace import addends, called_name, conjuncts, factors, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

LOADS = ("load",)
STORES = ("store",)
ATOMICS = (
    "atomic_add",
    "atomic_max",
    "atomic_min",
    "atomic_xchg",
    "atomic_cas",
    "atomic_and",
    "atomic_or",
    "atomic_xor",
)
LANGUAGES = ("tl.", "triton.language.", "gl.", "triton.experimental.gluon.language.", "language.")


@dataclass(frozen=True)
class Range:
    """A ``tl.arange`` in an index.

    Attributes:
        call: the call.
        extent: its end; None where it has none.
    """

    call: ast.Call
    extent: ast.expr | None


@dataclass(frozen=True)
class BlockPointer:
    """What ``tl.make_block_ptr`` was given."""

    call: ast.Call
    base: ast.expr | None
    shape: ast.expr | None
    strides: ast.expr | None
    offsets: ast.expr | None
    block_shape: ast.expr | None


@dataclass
class Access:
    """One load, store or atomic of a kernel.

    Attributes:
        function: the kernel.
        call: the call.
        kind: "load", "store" or "atomic".
        pointer: the pointer's expression.
        mask: the mask's expression, or None.
        other: the fill value, or None.
        value: what is stored, or None.
        boundary_check: the argument of that name, or None.
    """

    function: Function
    call: ast.Call
    kind: str
    pointer: ast.expr
    mask: ast.expr | None = None
    other: ast.expr | None = None
    value: ast.expr | None = None
    boundary_check: ast.expr | None = None

    @cached_property
    def block(self) -> BlockPointer | None:
        """The block pointer, where it is one."""
        expr = resolved(self.function, self.pointer)
        while isinstance(expr, ast.Call) and called_name(self.function, expr).endswith("advance") and expr.args:
            expr = resolved(self.function, expr.args[0])
        if not isinstance(expr, ast.Call) or not called_name(self.function, expr).endswith("make_block_ptr"):
            return None
        given = arguments(expr, ("base", "shape", "strides", "offsets", "block_shape", "order"))
        return BlockPointer(expr, *(given.get(name) for name in ("base", "shape", "strides", "offsets", "block_shape")))

    @cached_property
    def addends(self) -> list[ast.expr]:
        """The terms of the pointer, the base pointer among them; of a block pointer those of its base."""
        if self.block is not None:
            return [] if self.block.base is None else addends(self.function, self.block.base)
        return addends(self.function, self.pointer)

    @cached_property
    def base(self) -> str:
        """The parameter that the pointer starts from, or the first name that is none of the offsets; may be ""."""
        params = self.function.param_names - self.function.constexprs
        for term in self.addends:
            if isinstance(term, ast.Name) and term.id in params:
                return term.id
        for term in self.addends:
            if isinstance(term, ast.Name):
                return term.id
        return ""

    @cached_property
    def offsets(self) -> list[ast.expr]:
        """The terms of the pointer without the base."""
        return [term for term in self.addends if not (isinstance(term, ast.Name) and term.id == self.base)]

    @cached_property
    def ranges(self) -> list[Range]:
        """The ranges in the offsets."""
        found: list[Range] = []
        for term in self.offsets:
            for name, call in origins(self.function, term).calls:
                if name.endswith("arange") and all(call is not each.call for each in found):
                    extent = arguments(call, ("start", "end")).get("end")
                    found.append(Range(call, extent))
        return found

    @cached_property
    def conditions(self) -> list[ast.expr]:
        """The conditions that the mask joins."""
        return [] if self.mask is None else conjuncts(self.function, self.mask)

    def factors(self, term: ast.expr) -> list[ast.expr]:
        """Return the factors of one term."""
        return factors(self.function, term)


def arguments(call: ast.Call, names: tuple[str, ...]) -> dict[str, ast.expr]:
    """Return a call's arguments by name, positional ones by the names given."""
    found = {}
    for name, argument in zip(names, call.args, strict=False):
        if isinstance(argument, ast.Starred):
            break
        found[name] = argument
    found.update({keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None})
    return found


def _language(name: str) -> str:
    for start in LANGUAGES:
        if name.startswith(start):
            return name[len(start) :]
    return ""


def accesses(function: Function) -> list[Access]:
    """Return the loads, stores and atomics of a Triton kernel in source order; kept with the function."""
    known: list[Access] | None = function.__dict__.get("_accesses")
    if known is not None:
        return known
    found = []
    for call in function.calls:
        name = _language(function.called(call))
        if name in LOADS:
            given = arguments(call, ("pointer", "mask", "other", "boundary_check"))
            kind = "load"
        elif name in STORES:
            given = arguments(call, ("pointer", "value", "mask", "boundary_check"))
            kind = "store"
        elif name in ATOMICS:
            given = arguments(call, ("pointer", "val", "mask"))
            given.setdefault("value", given.get("val"))  # type: ignore[arg-type]
            kind = "atomic"
        else:
            continue
        pointer = given.get("pointer")
        if pointer is None:
            continue
        more = (given.get(part) for part in ("mask", "other", "value", "boundary_check"))
        found.append(Access(function, call, kind, pointer, *more))
    function.__dict__["_accesses"] = found
    return found
