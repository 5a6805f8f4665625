"""Where CuTe-DSL and cuTile kernels form a row's address in 32 bits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.cute_pools import narrow_slots
from deltaproof.audit.flow.cute_tensors import narrow_rows_of, wide_rows_of
from deltaproof.audit.flow.dimensions import BATCH, of_name
from deltaproof.audit.flow.trace import addends, called_name, factors, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_TILE = re.compile(r"(self\.)?_?(B[TKVSMNC]|C|\w*(tile|chunk|block|BLOCK|CHUNK|TILE)\w*|\d+)$")
_TMA = "tma_atom"
DIMENSION_BITS = 7
"""What each dimension behind the first one adds to its stride in practice."""


@dataclass(frozen=True)
class Row:
    """A row index in 32 bits that is multiplied by the row's length.

    Attributes:
        node: the expression that forms the address.
        index: the index in it.
        how: what forms the address, for a sentence.
        fix: what to write instead.
    """

    node: ast.AST
    index: ast.AST
    how: str
    fix: str


def narrow_rows(function: Function, project: Project) -> Iterator[Row]:
    """Yield the row addresses that a function forms in 32 bits, in source order."""
    symbols = _mentions(function, "sym_int(")
    cute = function.kind == "cute" and (_mentions(function, "block_idx") or _mentions(function, "local_tile("))
    if not cute and not symbols and not is_cutile(function):
        return
    for selection, read, pool in narrow_slots(function) if cute else ():
        if not narrow_rows_of(function.module, pool):
            continue
        yield Row(
            selection,
            read,
            f"is read as an int32 and selects a slot of {pool}, so that the layout forms slot * stride in 32 bits",
            f"Widen it before it selects the slot: Int64({ast.unparse(read)}).",
        )
    for node in function.nodes:
        if isinstance(node, ast.Call):
            last = called_name(function, node).rpartition(".")[2]
            if cute and last == "local_tile":
                yield from _tiles(function, node)
            elif cute and last == "crd2idx":
                yield from _coordinates(function, node)
            elif last == "make_fake_tensor" and symbols and not _by_descriptor(function.module, project):
                yield from _symbolic_strides(function, node)
            elif last == "slice" and is_cutile(function):
                yield from _ragged_slices(function, node)
        elif cute and isinstance(node, ast.Subscript):
            yield from _row_slices(function, node)


def _mentions(function: Function, text: str) -> bool:
    if not function.module.holds(text):
        return False
    return any(text in line for line in function.module.lines[function.line - 1 : function.end_line])


def _by_descriptor(module: Module, project: Project) -> bool:
    """Return whether the kernels in reach read by TMA, whose descriptor takes the strides and adds in 64 bits."""
    known: bool | None = module.__dict__.get("_by_descriptor")
    if known is None:
        names = {part for name in module.imports.values() for part in (name, name.rpartition(".")[0]) if part}
        found = (project.named(name) for name in sorted(names) if not name.startswith(("cutlass", "torch")))
        known = _TMA in module.text or any(each is not None and _TMA in each.text for each in found)
        module.__dict__["_by_descriptor"] = known
    return known


def is_cutile(function: Function) -> bool:
    """Return whether it is a kernel of cuTile."""
    return any(name in ("ct.kernel", "cuda.tile.kernel") for name, _ in function.decorators)


def _is_wide(function: Function, expr: ast.AST) -> bool:
    return origins(function, expr).calls_any("Int64", "Uint64", "get_ptr_as_int64")


def _from_block(function: Function, expr: ast.AST) -> bool:
    return origins(function, expr).calls_any("block_idx")


def _tiles(function: Function, call: ast.Call) -> Iterator[Row]:
    """A flat index over several dimensions as a tile's coordinate."""
    if len(call.args) < 3 or not isinstance(call.args[0], ast.Name) or not isinstance(call.args[2], ast.Tuple):
        return
    if call.args[0].id not in function.param_names or wide_rows_of(function.module, call.args[0].id):
        return
    behind = DIMENSION_BITS * (len(call.args[2].elts) - 1)
    for coordinate in call.args[2].elts[:1]:
        terms = addends(function, coordinate)
        if any(_is_wide(function, term) for term in terms):
            return
        for term in terms:
            parts = factors(function, term)
            if len(parts) < 2 or all(_TILE.match(ast.unparse(part)) for part in parts[1:]):
                continue  # a position in one sequence, or in one axis
            sizes = [size.bits for part in parts[1:] if (size := of_name(ast.unparse(part))) is not None]
            if BATCH + sum(sizes) + behind > 31 and not isinstance(parts[0], ast.Constant):
                yield Row(
                    function.statement(term) if term in function.parents else call,
                    parts[0],
                    f"is flattened to {ast.unparse(term)} in 32 bits, which the layout multiplies by a row's length",
                    f"Widen it before the product: Int64({ast.unparse(parts[0])}) * ...",
                )
                return


def _coordinates(function: Function, call: ast.Call) -> Iterator[Row]:
    """A row narrowed for ``crd2idx``."""
    if not call.args or not isinstance(call.args[0], ast.Tuple) or not call.args[0].elts:
        return
    row = call.args[0].elts[0]
    if not isinstance(row, ast.Call) or called_name(function, row).rpartition(".")[2] != "Int32":
        return
    if row.args and _from_block(function, row.args[0]):
        yield Row(
            call,
            row.args[0],
            "is passed as an Int32 coordinate, so that the layout forms row * length in 32 bits",
            f"Pass Int64({ast.unparse(row.args[0])}), and form the row itself from an Int64 block index.",
        )


def _row_slices(function: Function, node: ast.Subscript) -> Iterator[Row]:
    """A whole row of a tensor, taken by an index that comes from the grid."""
    if not isinstance(node.value, ast.Name) or not isinstance(node.slice, ast.Tuple) or len(node.slice.elts) < 2:
        return
    param = next((param for param in function.params if param.name == node.value.id), None)
    if param is None or not param.annotation.endswith("Tensor"):
        return
    row, *others = node.slice.elts
    if not all(isinstance(other, ast.Constant) and other.value is None for other in others):
        return
    if isinstance(row, ast.Constant) or _is_wide(function, row) or not _from_block(function, row):
        return
    whole = resolved(function, row)
    if not isinstance(whole, (ast.BinOp, ast.Name, ast.Subscript, ast.Call)):
        return
    if not narrow_rows_of(function.module, node.value.id):
        return
    yield Row(
        node,
        row,
        f"selects a row of {node.value.id}, so that the layout forms row * length in 32 bits",
        "Form the row's address in bytes from an Int64 index, and make the row's tensor from it.",
    )


def _symbolic_strides(function: Function, call: ast.Call) -> Iterator[Row]:
    """A stride that is a 32-bit symbol."""
    given = arguments(call, ("dtype", "shape", "stride"))
    strides, dtype = given.get("stride"), given.get("dtype")
    if not isinstance(strides, (ast.Tuple, ast.List)) or len(strides.elts) < 2:
        return
    if dtype is not None and ast.unparse(dtype).rpartition(".")[2] in ("Int32", "Int64", "Boolean"):
        return  # a table of indices or lengths, which stays small
    for part in strides.elts:
        made = resolved(function, part)
        if not isinstance(made, ast.Call) or called_name(function, made).rpartition(".")[2] != "sym_int":
            continue
        width = arguments(made, ("width",)).get("width")
        if isinstance(width, ast.Constant) and width.value == 64:
            continue
        yield Row(
            made,
            part,
            "is a stride with 32 bits, so that every index is multiplied by it in 32 bits",
            "Use sym_int64 for strides.",
        )
        return


def _ragged_slices(function: Function, call: ast.Call) -> Iterator[Row]:
    """Rows of a packed tensor from an offset that was loaded."""
    assert isinstance(call.func, (ast.Attribute, ast.Name))
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
        return
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    axis, start = given.get("axis"), given.get("start")
    param = next((param for param in function.params if param.name == call.func.value.id), None)
    if param is None or "IndexedWithInt64" in param.annotation or start is None:
        return
    if not isinstance(axis, ast.Constant) or axis.value != 0:
        return
    if origins(function, start).calls_any("load", "gather"):
        yield Row(
            call,
            start,
            f"is the first row of a slice of {param.name}, which is indexed in 32 bits",
            f"Annotate the parameter: {param.name}: ct.IndexedWithInt64.",
        )
