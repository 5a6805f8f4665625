"""Host code around uninitialised memory: buffers copied back, made-up inputs, early returns, grids from hints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow.allocations import Allocation, allocations, filled, returned
from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_INDEXED = re.compile(r"indices|slot|cu_seqlens|block_table|_mask|padding", re.IGNORECASE)
_TWINS = ("_device", "_gpu", "_dev", "_tensor", "_ptr")


def copied_back(function: Function) -> Iterator[tuple[Allocation, ast.Call, str]]:
    """Yield buffers made like the caller's output and copied over it whole, in functions that take slots or masks."""
    marks = [param.name for param in function.params if _INDEXED.search(param.name)]
    if not marks:
        return
    for allocation in allocations(function):
        like = allocation.call.args[0] if allocation.call.args else None
        last = dotted(allocation.call.func).rpartition(".")[2]
        if last != "empty_like" or not isinstance(like, ast.Name) or filled(allocation):
            continue
        aliases = {like.id}
        for node in function.nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for call in function.calls:
            if (
                isinstance(call.func, ast.Attribute)
                and call.func.attr == "copy_"
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id in aliases
                and call.args
                and isinstance(call.args[0], ast.Name)
                and call.args[0].id == allocation.name
                and like.id in function.param_names
            ):
                yield allocation, call, marks[0]


def made_up_inputs(function: Function) -> Iterator[tuple[Allocation, ast.If]]:
    """Yield optional inputs for which uninitialised memory stands in where the caller gives none.

    That it is an input shows in the other branch, which converts what the caller gave.
    """
    for allocation in allocations(function):
        if allocation.name not in function.param_names or returned(function, allocation.name) or _is_dummy(allocation):
            continue
        around = function.parents.get(allocation.statement)
        if not isinstance(around, ast.If) or allocation.statement not in around.body or not around.orelse:
            continue
        test = around.test
        missing = (
            isinstance(test, ast.Compare)
            and isinstance(test.ops[0], ast.Is)
            and isinstance(test.left, ast.Name)
            and test.left.id == allocation.name
        )
        converts = any(
            isinstance(each, ast.Assign)
            and isinstance(each.value, ast.Call)
            and isinstance(each.value.func, ast.Attribute)
            and each.value.func.attr in ("contiguous", "to", "int", "long", "float")
            and dotted(each.value.func.value) == allocation.name
            for each in around.orelse
        )
        if missing and converts and not filled(allocation) and not _told(function, allocation.name, around):
            yield allocation, around


def _told(function: Function, name: str, before: ast.If) -> bool:
    """Return whether a call is told earlier that an input is missing: what it builds then need not read it."""
    for call in function.calls:
        if call.lineno < before.lineno:
            for each in (*call.args, *(word.value for word in call.keywords)):
                if isinstance(each, ast.Compare) and ast.unparse(each) == f"{name} is not None":
                    return True
    return False


def _is_dummy(allocation: Allocation) -> bool:
    """Return whether the memory holds no or one element, a stand-in that nobody reads."""
    sizes = allocation.call.args
    if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
        sizes = list(sizes[0].elts)
    return bool(sizes) and all(isinstance(size, ast.Constant) and size.value in (0, 1) for size in sizes)


def left_early(function: Function) -> Iterator[tuple[Allocation, ast.Return, Guard]]:
    """Yield returns of uninitialised memory that leave before anybody wrote it, with the condition.

    Only the size that a product sums over counts: a product of nothing is zero, not what the memory holds.
    """
    for allocation in allocations(function):
        if filled(allocation) or _is_dummy(allocation):
            continue
        for node in function.nodes:
            if not isinstance(node, ast.Return) or node.value is None or node.lineno <= allocation.statement.lineno:
                continue
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            if not any(isinstance(each, ast.Name) and each.id == allocation.name for each in values):
                continue
            reached = [each.node for each in function.flow.reaching(allocation.name, node)]
            if allocation.statement not in reached or _used(function, allocation, node):
                continue
            tested = [guard for guard in guards(function, node) if guard.kind == "if" and guard.holds]
            if tested and _summed_size(function, allocation, tested[0].test):
                yield allocation, node, tested[0]


def _used(function: Function, allocation: Allocation, until: ast.Return) -> bool:
    for node in function.nodes:
        if isinstance(node, ast.Name) and node.id == allocation.name and node.lineno > allocation.statement.lineno:
            if node.lineno < until.lineno and not isinstance(function.parents.get(node), ast.Attribute):
                return True
            parent = function.parents.get(node)
            if (
                node.lineno < until.lineno
                and isinstance(parent, ast.Attribute)
                and isinstance(function.parents.get(parent), ast.Call)
            ):
                return True
    return False


def _summed_size(function: Function, allocation: Allocation, test: ast.expr) -> bool:
    """Return whether a condition says that the size which a product sums over is zero, while the memory has rows.

    Such a size is unpacked from a shape behind the first place, and is none of the memory's.
    """
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], (ast.Eq, ast.LtE)):
        return False
    zero = test.comparators[0]
    if not isinstance(test.left, ast.Name) or not isinstance(zero, ast.Constant) or zero.value != 0:
        return False
    unpacked = [
        each
        for each in function.flow.reaching(test.left.id, test.left)
        if each.kind == "unpacked"
        and each.index
        and isinstance(each.value, ast.Attribute)
        and each.value.attr == "shape"
    ]
    like = dotted(allocation.call.func).endswith("_like")
    sizes = {name for each in allocation.call.args for name in names_in(each)}
    return bool(unpacked) and not like and test.left.id not in sizes


def hinted_grids(function: Function) -> Iterator[tuple[Allocation, ast.Call, str, str]]:
    """Yield grids sized from the caller's hint where the kernel is given the true bound in device memory."""
    names = function.param_names
    for call in function.calls_of("cdiv", "ceildiv"):
        hint = call.args[0] if call.args else None
        if not isinstance(hint, ast.Name) or hint.id not in names:
            continue
        twin = next((hint.id + end for end in _TWINS if hint.id + end in names), None)
        if twin is None:
            continue
        for allocation in allocations(function):
            if returned(function, allocation.name) and hint.id not in names_in(allocation.call):
                yield allocation, call, hint.id, twin
                break
