"""Slot indices: where a kernel reads one from memory, and which expressions are addressed with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.trace import MOST, called_name
from deltaproof.audit.model.names import snaked

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_SLOT = re.compile(
    r"(^|_)slots?(_|$)|(^|_)(g?states?|g?ssm|g?conv|g?cache|h0|ht|pool|initial)(_\w+)?_(indices|index|idxs?|ids)(_|$)"
)
_NO_SLOT = re.compile(
    r"(^|_)(num|n|size|stride|strides|max|per|count|seqlens?|seq|req|token|tokens|expert|page|block|layer)(_|$)"
)


def is_slot_name(name: str) -> bool:
    """Return whether a name is that of a tensor of slot indices, as ``state_indices`` or ``slot_ids_ptr``."""
    lowered = snaked(name).lower()
    return _SLOT.search(lowered) is not None and _NO_SLOT.search(lowered) is None


def slot_reads(function: Function) -> list[ast.expr]:
    """Return the reads of slot indices in a kernel: ``tl.load`` of such a pointer, subscripts of such a tensor."""
    if not any(is_slot_name(name) for name in function.param_names):
        return []
    if function.kind in ("triton", "gluon"):
        return [
            access.call
            for access in accesses(function)
            if access.kind == "load" and access.base in function.param_names and is_slot_name(access.base)
        ]
    return [
        node
        for node in function.nodes
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id in function.param_names
        and is_slot_name(node.value.id)
    ]


def slots_in(function: Function, expr: ast.AST, reads: list[ast.expr]) -> list[ast.expr]:
    """Return the slot reads that an expression's value is computed from, other loads left closed."""
    return [node for node in walk_values(function, expr, reads) if node in reads]  # type: ignore[misc]


def walk_values(function: Function, expr: ast.AST, stops: list[ast.expr]) -> Iterator[ast.AST]:
    """Yield the nodes that an expression's value is computed from, through all definitions.

    What a load or an element of a tensor was addressed with is not followed; ``stops`` are yielded and not entered.
    """
    loads = {id(access.call) for access in accesses(function)} if function.kind in ("triton", "gluon") else set()
    waiting: list[ast.AST] = [expr]
    seen: set[int] = set()
    while waiting and len(seen) < MOST:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node in stops or id(node) in loads:
            continue
        if isinstance(node, ast.Name):
            if node in function.parents:
                for reached in function.flow.reaching(node.id, node):
                    if reached.value is not None:
                        waiting.append(reached.value)
                    if reached.kind == "augmented":
                        waiting += [
                            each.value
                            for each in function.flow.before(node.id, reached.node)  # type: ignore[arg-type]
                            if each.value is not None
                        ]
        elif isinstance(node, ast.Subscript):
            waiting.append(node.value)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def tainted_names(function: Function, reads: list[ast.expr]) -> set[str]:
    """Return the names that may hold a value computed from slot indices: cheap and generous."""
    marked = set(reads)
    pairs: list[tuple[set[str], set[str], bool]] = []
    for node in function.nodes:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            parts = list(ast.walk(node.value))
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            pairs.append((names, _names(node.value), any(each in marked for each in parts)))
    tainted: set[str] = set()
    grown = True
    while grown:
        grown = False
        for names, held, marked_here in pairs:
            if not names <= tainted and (marked_here or held & tainted):
                tainted |= names
                grown = True
    return tainted


def touches(expr: ast.AST, reads: list[ast.expr], names: set[str]) -> bool:
    """Return whether an expression spells out a slot read or one of the names."""
    return any(
        part in reads
        if isinstance(part, (ast.Call, ast.Subscript))
        else isinstance(part, ast.Name) and part.id in names
        for part in ast.walk(expr)
    )


@dataclass(frozen=True)
class Use:
    """An address that is built from a slot index.

    Attributes:
        node: the load, the store, or the subscript.
        address: the pointer, or what stands in the brackets.
        stores: whether memory is written there.
        mask: the mask of the access, or None.
        touches: where memory is touched: the access itself; of a view every copy and assignment through it.
    """

    node: ast.expr
    address: ast.expr
    stores: bool
    mask: ast.expr | None
    touches: list[ast.AST]


def uses(function: Function, reads: list[ast.expr]) -> list[Use]:
    """Return the addresses that are built from slot indices, in source order."""
    found = []
    names = tainted_names(function, reads)
    if function.kind in ("triton", "gluon"):
        for access in accesses(function):
            if access.call in reads or not touches(access.pointer, reads, names):
                continue
            if slots_in(function, access.pointer, reads):
                stores = access.kind != "load"
                found.append(Use(access.call, access.pointer, stores, access.mask, [access.call]))
        return found
    for node in function.nodes:
        if not isinstance(node, ast.Subscript) or node in reads or not touches(node.slice, reads, names):
            continue
        if slots_in(function, node.slice, reads):
            read, stored = _through(function, node)
            if read or not stored:
                found.append(Use(node, node.slice, False, None, read or [node]))
            if stored:
                found.append(Use(node, node.slice, True, None, stored))
    return found


def _through(function: Function, node: ast.Subscript) -> tuple[list[ast.AST], list[ast.AST]]:
    """Return where memory is read and written through an element or a view of a tensor."""
    if isinstance(node.ctx, ast.Store):
        return [], [node]
    views: set[ast.expr] = set()
    named: set[str] = set()

    def is_view(name: ast.AST) -> bool:
        if not isinstance(name, ast.Name) or name.id not in named:
            return False
        return any(each.value in views for each in function.flow.reaching(name.id, name))

    def holds(expr: ast.AST) -> bool:
        return any(part is node or is_view(part) for part in ast.walk(expr))

    read: list[ast.AST] = []
    stored: list[ast.AST] = []
    handed: list[ast.AST] = []
    for part in function.nodes:
        if isinstance(part, ast.Assign) and len(part.targets) == 1:
            target = part.targets[0]
            if isinstance(target, ast.Subscript):
                if any(is_view(each) for each in ast.walk(target.value)):
                    stored.append(part)
            elif isinstance(target, ast.Name):
                called = isinstance(part.value, (ast.Call, ast.Name, ast.Attribute, ast.Subscript))
                if node in ast.walk(part.value) or (called and holds(part.value)):
                    views.add(part.value)
                    named.add(target.id)
        elif isinstance(part, ast.Call) and part.args:
            name = called_name(function, part).rpartition(".")[2]
            given = [] if name in VIEWS else [holds(argument) for argument in part.args]
            if not any(given):
                continue
            if not re.search(r"copy|(^|_)(store|write|save|commit|update|load|read|gather|prefetch)", name):
                handed.append(part)
            elif "copy" in name:
                into = 2 if name == "copy" and len(given) > 2 else 1
                (stored if len(given) > into and given[into] else read).append(part)
            elif re.search(r"(^|_)(store|write|save|commit|update)", name):
                stored.append(part)
            else:
                read.append(part)
    if not read and not stored:
        read = [part for part in handed if not _VIEWING.search(called_name(function, part).rpartition(".")[2])]  # type: ignore[arg-type]
    return read, stored


_VIEWING = re.compile(r"partition|retile|slice|^get_|^make_|^(Int|Float)\d|select|recast|size|shape|print|assume")
"""Names of calls that touch no memory."""

VIEWS = ("local_tile", "flat_divide", "zipped_divide", "logical_divide", "tiled_divide", "domain_offset", "get_slice")
"""Calls that make another view and touch no memory."""


def _names(expr: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(expr) if isinstance(part, ast.Name)}
