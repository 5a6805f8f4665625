"""Per-head vectors that go by the smaller of two head indices, and are combined with loads that go by the larger."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.indices import head_splits, is_head_count, made, reached_names
from deltaproof.audit.flow.trace import names_in

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_JOINS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


@dataclass(frozen=True)
class Narrow:
    """One such vector.

    Attributes:
        access: its load.
        index: the head index that it goes by.
        wide: the head index of what it is combined with.
        sibling: the load that goes by the wide one.
        joined: where both meet.
    """

    access: Access
    index: str
    wide: str
    sibling: Access
    joined: ast.BinOp


def narrow_vectors(kernel: Function) -> Iterator[Narrow]:
    """Yield the vectors without a token's offset whose head index is a quotient of the one that the values go by."""
    for narrow, wide in _pairs(kernel):
        vectors: dict[ast.Call, Access] = {}
        siblings: dict[ast.Call, Access] = {}
        for access in accesses(kernel):
            if access.kind != "load":
                continue
            near = reached_names(kernel, access.pointer, frozenset({narrow}))
            if narrow not in near and wide in near:
                siblings[access.call] = access
            elif narrow in near and access.base in kernel.param_names and _only(kernel, access, narrow):
                vectors[access.call] = access
        if not vectors or not siblings:
            continue
        told: set[str] = set()
        for node in kernel.of_type(ast.BinOp):
            if not isinstance(node.op, _JOINS):
                continue
            left, right = _loads(kernel, node.left), _loads(kernel, node.right)
            for one, other in ((left, right), (right, left)):
                vector = next((vectors[call] for call in one if call in vectors), None)
                if vector is None or vector.base in told or len(one) != 1 or not other:
                    continue
                if all(call in siblings or call in vectors for call in other) and any(c in siblings for c in other):
                    told.add(vector.base)
                    sibling = next(siblings[call] for call in other if call in siblings)
                    yield Narrow(vector, narrow, wide, sibling, node)


def _pairs(kernel: Function) -> Iterator[tuple[str, str]]:
    """Yield head indices that are a quotient of another head index: ``i_h = i_hv // (HV // H)``."""
    heads = {split.head for split in head_splits(kernel)}
    for name, every in made(kernel).items():
        for found in every:
            value = found.value
            if found.kind != "assign" or not isinstance(value, ast.BinOp) or not isinstance(value.op, ast.FloorDiv):
                continue
            if len(every) == 1 and isinstance(value.left, ast.Name) and value.left.id in heads and name not in heads:
                yield name, value.left.id


def _only(kernel: Function, access: Access, narrow: str) -> bool:
    """Return whether an address goes by the head index, sizes and lanes alone: no batch, token or count of heads."""
    batch = {name for split in head_splits(kernel) for name in split.batch}
    for name in reached_names(kernel, access.pointer, frozenset({narrow})) - {narrow, access.base}:
        if name in batch or is_head_count(name):
            return False
        for found in made(kernel).get(name, ()):
            if found.kind == "loop" or found.value is None:
                return False
            if any(
                isinstance(each, ast.Call) and kernel.called(each).endswith(".load") for each in ast.walk(found.value)
            ):
                return False
        if name in kernel.param_names and made(kernel).get(name):
            return False
    return not any(
        isinstance(each, ast.Call) and kernel.called(each).endswith(".load") for each in ast.walk(access.pointer)
    ) and bool(names_in(access.pointer))


def _loads(kernel: Function, expr: ast.AST, depth: int = 6) -> set[ast.Call]:
    """Return the loads that a value is made of, elementwise or not, through names."""
    found: set[ast.Call] = set()
    waiting: list[tuple[ast.AST, int]] = [(expr, depth)]
    seen: set[int] = set()
    while waiting and len(seen) < 200:
        node, left = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.Call) and kernel.called(node).endswith(".load"):
            found.add(node)
        elif isinstance(node, ast.Name):
            if left and node in kernel.parents:
                for each in kernel.flow.reaching(node.id, node):
                    if each.value is not None:
                        waiting.append((each.value, left - 1))
                    if isinstance(each.node, ast.AugAssign):
                        waiting.append((each.node.value, left - 1))
        else:
            waiting.extend((child, left) for child in ast.iter_child_nodes(node))
    return found
