"""What a kernel's program ids are split into: batch, head, tile; and which of them an address depends on."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.definitions import Definition, defined_by
from deltaproof.audit.flow.trace import called_name, factors, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

MOST = 600
_HEADS = re.compile(r"^(N?H(Q|V|K|KV)?|h_?(q|v|k|kv)|(num|n)_?(\w+_)?heads?(_\w+)?)$")
_INDEX = re.compile(r"_(id|idx|index|dim|size|offset|start|end|stride)$")
_BATCH = re.compile(r"^(B|BATCH|bsz|bs|batch|batch_size|BATCH_SIZE|num_batches)$")


def is_head_count(name: str) -> bool:
    """Return whether a name is, by the customs of the field, a number of heads."""
    return _HEADS.match(name) is not None and _INDEX.search(name) is None


def is_batch_count(name: str) -> bool:
    """Return whether a name is, by the customs of the field, a number of rows of the batch."""
    return _BATCH.match(name) is not None


@dataclass(frozen=True)
class HeadSplit:
    """A program id taken apart by a number of heads (``i_b, i_h = i_bh // H, i_bh % H``), or a head's own one.

    Attributes:
        whole: name of what is taken apart; empty where the head has a program id of its own.
        count: name of the number of heads.
        head: name of the head index.
        batch: names of quotients by the same count.
        node: where the head index is made.
        axis: the program id's axis; None where it is not plain.
    """

    whole: str
    count: str
    head: str
    batch: frozenset[str]
    node: ast.BinOp
    axis: int | None


def program_axis(function: Function, expr: ast.expr) -> int | None:
    """Return the axis, if an expression is a program id, widened or not; else None."""
    expr = resolved(function, _unwidened(expr))
    expr = resolved(function, _unwidened(expr))
    if isinstance(expr, ast.Call) and called_name(function, expr).endswith("program_id"):
        given = [*expr.args, *(keyword.value for keyword in expr.keywords if keyword.arg == "axis")]
        if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, int):
            return given[0].value
    return None


def _unwidened(expr: ast.expr) -> ast.expr:
    while isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
        expr = expr.func.value
    return expr


def made(function: Function) -> dict[str, list[Definition]]:
    """Return every definition in a function's body by name; kept with the function."""
    known: dict[str, list[Definition]] | None = function.__dict__.get("_made")
    if known is None:
        known = {}
        for node in function.nodes:
            if isinstance(node, ast.stmt):
                for found in defined_by(node):
                    known.setdefault(found.name, []).append(found)
        function.__dict__["_made"] = known
    return known


def _assigned(function: Function) -> Iterator[tuple[str, ast.expr]]:
    for every in made(function).values():
        for found in every:
            if found.kind == "assign" and found.value is not None:
                yield found.name, _unwidened(found.value)


def head_splits(function: Function) -> list[HeadSplit]:
    """Return the head indices that a kernel makes from its program ids, in source order; kept with the function."""
    known: list[HeadSplit] | None = function.__dict__.get("_head_splits")
    if known is not None:
        return known
    parts: list[tuple[str, str, str, ast.BinOp, ast.expr]] = []
    quotients: dict[tuple[str, str], set[str]] = {}
    for name, value in _assigned(function):
        if not isinstance(value, ast.BinOp) or not isinstance(value.right, ast.Name):
            continue
        whole = _unwidened(value.left)
        if not isinstance(whole, ast.Name) or value.right.id not in function.param_names:
            continue
        if isinstance(value.op, ast.Mod):
            parts.append((whole.id, value.right.id, name, value, whole))
        elif isinstance(value.op, ast.FloorDiv):
            quotients.setdefault((whole.id, value.right.id), set()).add(name)
    found = []
    for whole_name, count, head, node, whole in parts:
        if (whole_name, count) in quotients and is_head_count(count):
            batch = frozenset(quotients[whole_name, count])
            found.append(HeadSplit(whole_name, count, head, batch, node, program_axis(function, whole)))
    found += _own_axes(function, {split.head for split in found})
    function.__dict__["_head_splits"] = found
    return found


def _own_axes(function: Function, known: set[str]) -> list[HeadSplit]:
    """Return heads that have a program id of their own: ``i_h`` of ``(bos * H + i_h) * K``."""
    found: dict[str, HeadSplit] = {}
    for node in function.nodes:
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add) or not isinstance(node.right, ast.Name):
            continue
        left, name = node.left, node.right.id
        if not isinstance(left, ast.BinOp) or not isinstance(left.op, ast.Mult) or not isinstance(left.right, ast.Name):
            continue
        count = left.right.id
        if not is_head_count(count) or name in known or name in found:
            continue
        axis = program_axis(function, node.right)
        if axis is not None:
            found[name] = HeadSplit("", count, name, frozenset(), node, axis)
    return list(found.values())


def reached_names(function: Function, expr: ast.AST, stop: frozenset[str] = frozenset()) -> set[str]:
    """Return every name that an address depends on, through all definitions, loaded values left out.

    Args:
        function: the kernel.
        expr: the address.
        stop: names that are noted and not followed.
    """
    names: set[str] = set()
    seen: set[int] = set()
    waiting: deque[ast.AST] = deque([expr])
    while waiting and len(seen) < MOST:
        node = waiting.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.Call) and called_name(function, node).endswith(".load"):
            continue
        if isinstance(node, ast.Name):
            names.add(node.id)
            if node.id not in stop and node in function.parents:
                for each in function.flow.reaching(node.id, node):
                    if each.value is not None:
                        waiting.append(each.value)
                    if isinstance(each.node, ast.AugAssign):
                        waiting.extend(_before(function, each.name, each.node, seen))
            continue
        waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.expr, ast.keyword)))
    return names


def _before(function: Function, name: str, statement: ast.AugAssign, seen: set[int]) -> list[ast.AST]:
    if id(statement) in seen:
        return []
    seen.add(id(statement))
    found: list[ast.AST] = []
    for each in function.flow.before(name, statement):
        if each.value is not None:
            found.append(each.value)
        if isinstance(each.node, ast.AugAssign):
            found += _before(function, name, each.node, seen)
    return found


def products(function: Function, expr: ast.AST) -> list[tuple[ast.BinOp, list[ast.expr]]]:
    """Return the outermost products spelled out in an expression with their factors, names followed for factors."""
    found: list[tuple[ast.BinOp, list[ast.expr]]] = []
    waiting: list[ast.AST] = [expr]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            found.append((node, factors(function, node)))
            waiting.extend(part for part in _leaves(node) if not isinstance(part, ast.Name))
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return found


def _leaves(node: ast.BinOp) -> list[ast.expr]:
    found: list[ast.expr] = []
    for side in (node.left, node.right):
        if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mult):
            found += _leaves(side)
        else:
            found.append(side)
    return found
