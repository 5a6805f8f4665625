"""Tails that a kernel masks by half: one coordinate of two, one mode of two, a bound tested after the read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.bounds import bounds
from deltaproof.audit.flow.polynomials import indices, ranges, text
from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_VARLEN = re.compile(r"var_?len|cu_seq|packed|ragged", re.I)


@dataclass(frozen=True)
class Tail:
    """A tail that is not masked, or masked by half.

    Attributes:
        node: where.
        other: the line that shows it; None where the node alone does.
        message: what is wrong.
        why: what the other line shows.
        fix: what to do.
    """

    node: ast.AST
    other: ast.AST | None
    message: str
    why: str
    fix: str


def tails(kernel: Function) -> Iterator[Tail]:
    """Yield the half-masked tails of a kernel of any language."""
    for either in kernel.of_type(ast.BoolOp):
        if isinstance(either.op, ast.Or):
            yield from _either(either, either.values)
        elif kernel.kind == "cute":
            yield from _read_first(kernel, either)
    for union in kernel.of_type(ast.BinOp):
        if isinstance(union.op, ast.BitOr):
            yield from _either(union, [union.left, union.right])
    for branch in kernel.of_type(ast.If):
        if _is_varlen(branch.test):
            yield from _one_mode(kernel, branch)
    if kernel.kind in ("triton", "gluon"):
        yield from _scores(kernel)


def _below(node: ast.expr) -> tuple[str, str] | None:
    """Return index and limit of ``index < limit``."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
    if isinstance(node.ops[0], ast.Lt):
        return left, right
    return (right, left) if isinstance(node.ops[0], ast.Gt) else None


def _above(node: ast.expr) -> str:
    """Return the index of ``index >= limit``, or ""."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return ""
    if isinstance(node.ops[0], ast.GtE):
        return ast.unparse(node.left)
    return ast.unparse(node.comparators[0]) if isinstance(node.ops[0], ast.LtE) else ""


def _is_literal(text: str) -> bool:
    """Return whether a limit is a number, in a type's brackets or not: a test of values, not of coordinates."""
    expr = ast.parse(text, mode="eval").body
    while isinstance(expr, ast.Call) and len(expr.args) == 1:
        expr = expr.args[0]
    return isinstance(expr.operand if isinstance(expr, ast.UnaryOp) else expr, ast.Constant)


def _either(node: ast.expr, values: list[ast.expr]) -> Iterator[Tail]:
    known = [below for value in values if (below := _below(value)) is not None]
    outside = {_above(value) for value in values}
    known = [each for each in known if each[0] not in outside]  # below one limit or beyond another: what is left out
    for place, (first, limit) in enumerate(known):
        for second, same in known[place + 1 :]:
            if same == limit and first != second and not _is_literal(limit):
                yield Tail(
                    node,
                    None,
                    f"elements are kept where `{first}` or `{second}` is below `{limit}`: rows or columns of the "
                    "padded tail stay in wherever the other coordinate is in range",
                    "",
                    f"keep an element only if both are below `{limit}`",
                )
                return


def _read_first(kernel: Function, node: ast.BoolOp) -> Iterator[Tail]:
    for bound in node.values:
        below = _below(bound)
        if below is None:
            continue
        for other in node.values:
            for read in ast.walk(other) if other is not bound else ():
                own = isinstance(read, ast.Subscript) and isinstance(resolved(kernel, read.value), ast.Call)
                if isinstance(read, ast.Subscript) and ast.unparse(read.slice) == below[0] and not own:
                    yield Tail(
                        node,
                        None,
                        f"`{ast.unparse(read)}` is read although `{below[0]} < {below[1]}` may be false: a dynamic "
                        "`and` evaluates both sides",
                        "",
                        f"read it inside an `if {below[0]} < {below[1]}`",
                    )
                    return


def _is_varlen(test: ast.expr) -> bool:
    if isinstance(test, ast.Call) and test.args and not test.keywords:
        return _is_varlen(test.args[0])
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return _VARLEN.search(name) is not None


def _one_mode(kernel: Function, node: ast.If) -> Iterator[Tail]:
    """A tail that is masked where sequences are packed, and taken for a whole tile where they are not."""
    if not node.orelse:
        for inner in node.body:
            cleared = _cleared(inner)
            if cleared is not None and not _packed_only(kernel, cleared[0]):
                yield Tail(
                    cleared[1],
                    cleared[0],
                    f"rows beyond `{cleared[2]}` are cleared only if `{ast.unparse(node.test)}`: a sequence of fixed "
                    f"length has a partial last tile too",
                    "the bound",
                    "clear the last tile's rows in both modes",
                )
        return
    lengths = _assigned(node.body)
    for name, value in _assigned(node.orelse).items():
        length = lengths.get(name)
        if not isinstance(length, ast.BinOp) or not isinstance(length.op, ast.Sub) or kernel.kind == "triton":
            continue
        if not isinstance(value, (ast.Name, ast.Attribute)) or not re.search(r"len|valid|rows|size", name):
            continue
        last = value.id if isinstance(value, ast.Name) else value.attr
        if "seq" in name.lower():
            continue  # the whole sequence's length, not what is left of it
        if last.isupper() or re.search(r"block|tile|chunk", last, re.I):
            yield Tail(
                value,
                length,
                f"`{name}` is the whole tile `{ast.unparse(value)}` unless `{ast.unparse(node.test)}`: the partial "
                "last tile of a sequence of fixed length is not masked",
                "where sequences are packed it is what is left",
                f"use the smaller of what is left and `{ast.unparse(value)}` in both modes",
            )


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    return {
        statement.targets[0].id: statement.value
        for statement in body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def _packed_only(kernel: Function, bound: ast.Compare) -> bool:
    """Return whether a limit is made only where sequences are packed: hardware bounds the others by their tensor."""
    for name in ast.walk(bound.comparators[0]):
        if not isinstance(name, ast.Name) or name not in kernel.parents:
            continue
        made = [each.node for each in kernel.flow.reaching(name.id, name) if each.kind in ("assign", "unpacked")]
        if made and all(_under_varlen(kernel, each) for each in made):
            return True
    return False


def _under_varlen(kernel: Function, node: ast.AST) -> bool:
    here = node
    for around in kernel.ancestors(node):
        if isinstance(around, ast.If) and here in around.body and _is_varlen(around.test):
            return True
        here = around
    return False


def _cleared(node: ast.stmt) -> tuple[ast.Compare, ast.stmt, str] | None:
    """Return the bound, the statement and the limit, where elements at or beyond a limit are set to zero."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.If) and isinstance(inner.test, ast.Compare) and isinstance(inner.test.ops[0], ast.GtE):
            for statement in inner.body:
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
                    values = [each.value for each in ast.walk(statement.value) if isinstance(each, ast.Constant)]
                    limit = ast.unparse(inner.test.comparators[0])
                    if len(values) == 1 and values[0] in (0, 0.0) and not limit.isdigit():
                        return inner.test, statement, limit
    return None


def _scores(kernel: Function) -> Iterator[Tail]:
    """A softmax over tiles of keys whose tail is loaded as zero and takes part in the maximum with score 0."""
    for loop in kernel.nodes:
        if not isinstance(loop, ast.For) or not isinstance(loop.iter, ast.Call) or len(loop.iter.args) != 3:
            continue
        if any(
            name.endswith("program_id") for name, _ in origins(kernel, loop.iter.args[1], through_calls=False).calls
        ):
            continue  # keys before a query tile: they all exist
        step = text(indices(kernel).of(loop.iter.args[2]))
        inside = {id(node) for node in ast.walk(loop)}
        filled = [
            each
            for each in accesses(kernel)
            if each.kind == "load"
            and id(each.call) in inside
            and not _is_infinite(each.other)
            and any(one.text == step for bound in bounds(each) for one in ranges(bound.index))
        ]
        if not filled:
            continue
        for call in kernel.calls:
            if id(call) not in inside or not call.args or not isinstance(call.args[0], ast.Name):
                continue
            if called_name(kernel, call).rpartition(".")[2] != "max":
                continue
            scores = call.args[0]
            reached = origins(kernel, scores)
            if reached.calls_any("where") or not reached.calls_any("dot", "sum"):
                continue
            keys = [each for each in filled if any(each.call is known for _, known in reached.calls)]
            if keys and _exponentiated(kernel, scores.id, inside):
                yield Tail(
                    call,
                    keys[0].call,
                    f"`{scores.id}` of keys beyond the last tile's end is 0, not -inf: they take part in the softmax's "
                    f"maximum and sum",
                    "keys beyond the end are loaded as zero",
                    f"set `{scores.id}` to -inf beyond the end before the maximum",
                )


def _is_infinite(other: ast.expr | None) -> bool:
    return other is not None and "inf" in ast.unparse(other)


def _exponentiated(kernel: Function, name: str, inside: set[int]) -> bool:
    for call in kernel.calls:
        last = called_name(kernel, call).rpartition(".")[2]
        exponential = last in ("exp", "exp2", "fast_expf", "safe_exp")
        if id(call) in inside and exponential and call.args and name in names_in(call.args[0]):
            return True
    return False
