"""Outputs of which a program stores the columns up to, or from, its own row only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.allocations import Allocation, returned
from deltaproof.audit.flow.skipped import Skip, base_of, passes_on
from deltaproof.audit.flow.trace import addends, called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_IDS = re.compile(r"program_id\(|load\(.*chunk")


@dataclass(frozen=True)
class Span:
    """The columns that a store covers in a loop.

    Attributes:
        loop: the loop.
        starts: whether its start depends on the program's row.
        ends: whether its end does.
    """

    loop: ast.For
    starts: bool
    ends: bool


def by_own_row(kernel: Function, made: dict[str, Allocation]) -> Iterator[Skip]:
    """Yield the outputs whose columns are walked in loops up to, or from, the program's own row.

    If none of the loops around the stores ends at a bound that is the same for all rows, columns behind the diagonal
    are never stored; if none starts at one, those before it. Loops that start and end by the row are shares of the
    whole. Scratch memory, which the function that makes it does not return, is left out.
    """
    if not kernel.of_type(ast.For):
        return
    for param, writes in stepped_stores(kernel).items():
        if param not in made or not returned(made[param].function, made[param].name):
            continue
        spans: list[Span] = []
        for access in writes:
            span = _stepped(kernel, access) or _walked(kernel, access)
            if span is None:
                break
            spans.append(span)
        else:
            below = all(each.ends for each in spans) and not all(each.starts for each in spans)
            above = all(each.starts for each in spans) and not all(each.ends for each in spans)
            if (below or above) and not passes_on(kernel, param):
                yield Skip(param, spans[0].loop, spans[0].loop.iter, writes[0])


def stepped_stores(kernel: Function) -> dict[str, list[Access]]:
    """Return the stores of a kernel by parameter, those through pointers that a loop steps too."""
    found: dict[str, list[Access]] = {}
    for access in accesses(kernel):
        if access.kind != "store":
            continue
        base = base_of(kernel, access)
        if not base and isinstance(access.pointer, ast.Name):
            for each in kernel.flow.definitions(access.pointer.id):
                made = each.value
                if isinstance(made, ast.Call) and called_name(kernel, made).endswith("make_block_ptr") and made.args:
                    terms = [term.id for term in addends(kernel, made.args[0]) if isinstance(term, ast.Name)]
                    base = next((term for term in terms if term in kernel.param_names - kernel.constexprs), "")
        if base:
            found.setdefault(base, []).append(access)
    return found


def _span(kernel: Function, loop: ast.For, rows: list[ast.expr]) -> Span | None:
    assert isinstance(loop.iter, ast.Call)
    given = loop.iter.args
    if not given or called_name(kernel, loop.iter).rpartition(".")[2] not in ("range", "static_range"):
        return None
    own = {name for row in rows for name in _tiles(kernel, row)}
    starts = len(given) > 1 and bool(_tiles(kernel, given[0]) & own)
    ends = bool(_tiles(kernel, given[1] if len(given) > 1 else given[0]) & own)
    return Span(loop, starts, ends) if starts or ends else None


def _stepped(kernel: Function, access: Access) -> Span | None:
    """Return the loop that steps a store's block pointer along an axis, if it goes by the row of the other axis."""
    if not isinstance(access.pointer, ast.Name):
        return None
    for around in kernel.ancestors(access.call):
        if not isinstance(around, ast.For) or not isinstance(around.iter, ast.Call):
            continue
        axis = _axis(kernel, around, access.pointer.id)
        if axis is None:
            continue
        made = _made(kernel, around, access.pointer.id)
        if made is None or len(made.args) < 4:
            return None
        shape, offsets = made.args[1], made.args[3]
        if not isinstance(shape, ast.Tuple) or not isinstance(offsets, ast.Tuple) or len(shape.elts) != 2:
            return None
        row = offsets.elts[1 - axis]
        if _tiles(kernel, shape.elts[axis]) & _tiles(kernel, row):
            return None
        return _span(kernel, around, [row])
    return None


def _walked(kernel: Function, access: Access) -> Span | None:
    """Return the loop whose variable is in an address beside the program's row, if it goes by that row."""
    block = access.block
    parts = list(access.addends)
    if block is not None and isinstance(block.offsets, ast.Tuple):
        parts += block.offsets.elts
    for around in kernel.ancestors(access.call):
        if not isinstance(around, ast.For) or not isinstance(around.iter, ast.Call):
            continue
        if not isinstance(around.target, ast.Name):
            continue
        variable = around.target.id
        columns = [each for each in parts if variable in origins(kernel, each).names | names_in(each)]
        if columns:
            rows = [each for each in parts if all(each is not column for column in columns)]
            return _span(kernel, around, rows)
    return None


def _axis(kernel: Function, loop: ast.For, name: str) -> int | None:
    """Return the one axis along which a loop steps a pointer."""
    for node in loop.body:
        for each in ast.walk(node):
            if not isinstance(each, ast.Assign) or not isinstance(each.targets[0], ast.Name):
                continue
            call = each.value
            if each.targets[0].id != name or not isinstance(call, ast.Call) or len(call.args) < 2:
                continue
            if called_name(kernel, call).rpartition(".")[2] != "advance" or not isinstance(call.args[1], ast.Tuple):
                continue
            moved = [
                place
                for place, step in enumerate(call.args[1].elts)
                if not (isinstance(step, ast.Constant) and step.value == 0)
            ]
            return moved[0] if len(moved) == 1 else None
    return None


def _made(kernel: Function, loop: ast.For, name: str) -> ast.Call | None:
    """Return the block pointer that a loop begins with: the last one made before it."""
    found = [
        each.value
        for each in kernel.flow.definitions(name)
        if isinstance(each.value, ast.Call)
        and called_name(kernel, each.value).endswith("make_block_ptr")
        and each.value.lineno < loop.lineno
    ]
    return max(found, key=lambda call: call.lineno, default=None)  # type: ignore[return-value]


def _tiles(kernel: Function, expr: ast.expr) -> set[str]:
    """Return the program's own numbers that an expression goes by."""
    whole = resolved(kernel, expr)
    left = [node for node in ast.walk(whole) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)]
    counted = {name for node in left for name in names_in(node.right)}
    return ((names_in(expr) | names_in(whole)) & _own(kernel)) - counted


def _own(kernel: Function) -> set[str]:
    """Return the names that hold a program id, or what is looked up or computed by one alone, as tiles are."""
    found: set[str] = set()
    for node in kernel.of_type(ast.Assign):
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets[:1]
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(targets)
        for target, value in zip(targets, values, strict=False):
            tiles = isinstance(target, ast.Name) and _IDS.search(ast.unparse(value))
            if tiles and isinstance(target, ast.Name):
                found.add(target.id)
    return found
