"""TileLang kernels: what they store under conditions, and buffers that only some thread fills."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.trace import origins

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

BUFFERS = ("alloc_shared", "alloc_fragment", "alloc_local", "alloc_var")
FILLS = ("fill", "clear", "copy", "reduce_sum", "reduce_max", "reduce_absmax", "reduce_min", "cumsum", "gemm")


@dataclass(frozen=True)
class TileStore:
    """An assignment ``buffer[...] = value`` of a TileLang kernel.

    Attributes:
        function: the kernel.
        statement: the assignment.
        target: the subscript.
        buffer: the buffer's name.
        guards: the conditions around it.
    """

    function: Function
    statement: ast.Assign | ast.AugAssign
    target: ast.Subscript
    buffer: str
    guards: list[Guard]

    @property
    def index(self) -> list[ast.expr]:
        """Return the parts of the index."""
        part = self.target.slice
        return part.elts if isinstance(part, ast.Tuple) else [part]


def is_tile_kernel(function: Function) -> bool:
    """Return whether a function holds TileLang code, also below a kernel's decorator."""
    around: Function | None = function
    while around is not None:
        if around.kind == "tilelang":
            return True
        around = around.outer
    return bool(function.calls_of("T.Kernel", "T.Parallel", "language.Kernel", "language.Parallel"))


def tile_stores(function: Function) -> list[TileStore]:
    """Return the subscript assignments of a function."""
    found = []
    for node in function.nodes:
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
                    found.append(TileStore(function, node, target, target.value.id, guards(function, node)))
    return found


def compares(test: ast.expr) -> list[ast.Compare]:
    """Return the comparisons that ``and`` joins in a condition."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [each for part in test.values for each in compares(part)]
    return [test] if isinstance(test, ast.Compare) and len(test.ops) == 1 else []


def reads_data(function: Function, expr: ast.AST) -> bool:
    """Return whether a value depends on the content of a buffer."""
    if any(isinstance(node, ast.Subscript) for node in ast.walk(expr)):
        return True
    for name in origins(function, expr).names:
        for each in function.flow.definitions(name):
            if each.value is not None and any(isinstance(node, ast.Subscript) for node in ast.walk(each.value)):
                return True
    return False


def padded_stores(function: Function) -> Iterator[tuple[TileStore, ast.Compare]]:
    """Yield stores into a tensor argument that stop at a length read from memory, though the tensor goes on.

    The tensor is addressed by the row itself (padded), not from the sequence's start (packed), so its rows behind the
    length exist and stay as the allocator left them.
    """
    every = tile_stores(function)
    for store in every:
        if store.buffer not in function.param_names:
            continue
        rows = {ast.unparse(part) for part in store.index}
        for guard in store.guards:
            if guard.kind != "if" or not guard.holds or not isinstance(guard.node, ast.If) or guard.node.orelse:
                continue
            for test in compares(guard.test):
                if not isinstance(test.ops[0], ast.Lt) or ast.unparse(test.left) not in rows:
                    continue
                bound = test.comparators[0]
                if not reads_data(function, bound) or reads_data(function, test.left):
                    continue
                others = [each for each in every if each.buffer == store.buffer and each is not store]
                if all(any(other.node is guard.node for other in each.guards) for each in others):
                    yield store, test


def partial_clears(function: Function) -> Iterator[tuple[TileStore, ast.Compare]]:
    """Yield stores of zero behind a sequence's end that reach no further than the tile in which it ends.

    ``if row >= end and row < size: buffer[row] = 0`` with ``row`` counted from the tile's start clears nothing where
    the length is a multiple of the tile.
    """
    for store in tile_stores(function):
        if not isinstance(store.statement, ast.Assign) or not isinstance(store.statement.value, ast.Constant):
            continue
        if store.statement.value.value not in (0, 0.0) or store.buffer not in function.param_names:
            continue
        rows = {ast.unparse(part) for part in store.index}
        for guard in store.guards:
            tests = compares(guard.test) if guard.kind == "if" and guard.holds else []
            same = [test for test in tests if ast.unparse(test.left) in rows]
            starts = [test for test in same if isinstance(test.ops[0], ast.GtE)]
            ends = [test for test in same if isinstance(test.ops[0], ast.Lt)]
            if starts and ends and isinstance(starts[0].left, ast.BinOp):
                yield store, starts[0]


def unfilled_buffers(function: Function) -> Iterator[tuple[TileStore, ast.Call]]:
    """Yield buffers of one element whose every store is behind a condition on data, and that are read all the same."""
    made: dict[str, ast.Call] = {}
    for node in function.nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            name = function.called(node.value).rpartition(".")[2]
            shape = node.value.args[0] if node.value.args else None
            if (
                name in BUFFERS[:1]
                and isinstance(shape, (ast.List, ast.Tuple))
                and len(shape.elts) == 1
                and isinstance(shape.elts[0], ast.Constant)
                and shape.elts[0].value == 1
            ):
                made[node.targets[0].id] = node.value
    if not made:
        return
    every = tile_stores(function)
    for name, call in made.items():
        writes = [store for store in every if store.buffer == name]
        if not writes or not all(any(_on_data(guard) for guard in store.guards) for store in writes):
            continue
        targets = {id(store.target) for store in writes}
        read = False
        for node in function.nodes:
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == name:
                read = read or id(node) not in targets
        if read and not _filled(function, name):
            yield writes[0], call


def _on_data(guard: Guard) -> bool:
    return guard.kind == "if" and any(isinstance(node, ast.Subscript) for node in ast.walk(guard.test))


def _filled(function: Function, name: str) -> bool:
    for call in function.calls:
        last = function.called(call).rpartition(".")[2]
        if last in FILLS or last.startswith("atomic"):
            for each in call.args:
                if any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(each)):
                    return True
    return False


def read_elsewhere(function: Function, buffer: str) -> Function | None:
    """Return another function of the module that reads a tensor argument of this name, upper and lower case alike."""
    for other in function.module.functions:
        named = {name for name in other.param_names if name.lower() == buffer.lower()}
        if other is function or not named or not is_tile_kernel(other):
            continue
        written = {id(store.target) for store in tile_stores(other)}
        for node in other.nodes:
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Name)
                and node.value.id in named
                and id(node) not in written
            ):
                return other
    return None
