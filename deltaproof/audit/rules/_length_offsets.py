"""Addresses and lengths: strides of the whole batch from one sequence's length, tokens for blocks, lost quotients."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.indices import is_batch_count, made, products
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.rule import Hit, Quote, Seen


def length_findings(module: Module, kernel: Function) -> Iterator[Seen]:
    """Yield what the lengths in a kernel's addresses show."""
    yield from _local_length(module, kernel)
    yield from _tokens_for_blocks(module, kernel)
    yield from _every_iteration(module, kernel)


def _local_length(module: Module, kernel: Function) -> Iterator[Seen]:
    """Strides over the whole batch that count with one sequence's length."""
    if not any(is_batch_count(name) for name in kernel.param_names):
        return
    for name in sorted(kernel.param_names):
        shrunk = [
            found
            for found in made(kernel).get(name, ())
            if found.kind == "assign" and isinstance(found.value, ast.BinOp) and isinstance(found.value.op, ast.Sub)
        ]
        if not shrunk:
            continue
        for node in kernel.nodes:
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
                continue
            if isinstance(kernel.parents.get(node), ast.BinOp) and isinstance(kernel.parents[node].op, ast.Mult):  # type: ignore[attr-defined]
                continue
            parts = [inner for _, found in products(kernel, node)[:1] for inner in found]
            local = next((use for part in parts for use in _uses(kernel, part, name, shrunk[0].node)), None)
            if local is None:
                continue
            over = [
                part
                for part in parts
                if isinstance(part, ast.Name) and is_batch_count(part.id) and part.id in kernel.param_names
            ]
            over = [part for part in over if part.id in names_in(node)]  # else where the product has its name from
            if not over:
                continue
            yield Hit(
                module,
                node,
                kernel,
                f"`{ast.unparse(node)}` is the whole batch's size, but `{name}` is one sequence's length here.",
                "likely",
                f"Compute it before `{name}` is replaced, or pass the total.",
                [Quote(module, shrunk[0].node, f"`{name}` is replaced")],
            )


def _uses(kernel: Function, expr: ast.expr, name: str, shrunk: ast.AST, depth: int = 3) -> Iterator[ast.Name]:
    """Yield uses of a length in an expression which the replacement reaches, through plain names and cdiv."""
    for node in ast.walk(expr):
        if not isinstance(node, ast.Name) or node not in kernel.parents:
            continue
        reached = kernel.flow.reaching(node.id, node)
        if node.id == name:
            if any(each.node is shrunk for each in reached):
                yield node
        elif depth:
            for each in reached:
                value = each.value if each.kind == "assign" and len(reached) == 1 else None
                if isinstance(value, ast.Call) and "cdiv" in ast.unparse(value.func):
                    yield from _uses(kernel, value, name, shrunk, depth - 1)


def _tokens_for_blocks(module: Module, kernel: Function) -> Iterator[Seen]:
    """Base offsets in tokens of a buffer whose rows are blocks of tokens."""
    for access in accesses(kernel):
        block = access.block
        if block is None or block.base is None or not isinstance(block.shape, ast.Tuple) or not block.shape.elts:
            continue
        rows = resolved(kernel, block.shape.elts[0])
        if not isinstance(rows, ast.Call) or not ast.unparse(rows.func).endswith("cdiv") or not rows.args:
            continue
        length = rows.args[0].id if isinstance(rows.args[0], ast.Name) else ""
        for product, parts in products(kernel, block.base):
            names = {part.id for part in parts if isinstance(part, ast.Name)}
            if length in names and any(is_batch_count(name) for name in names):
                yield Hit(
                    module,
                    block.call,
                    kernel,
                    f"`{access.base}` has `{ast.unparse(rows)}` rows, but `{ast.unparse(product)}` counts `{length}`.",
                    "likely",
                    f"Count `{ast.unparse(rows)}` rows in the offset too.",
                    [Quote(module, product, "the offset"), Quote(module, rows, "the rows")],
                )


def _every_iteration(module: Module, kernel: Function) -> Iterator[Seen]:
    """Stores that happen once in several iterations at an address that counts every iteration."""
    for node in kernel.nodes:
        if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
            continue
        left = node.test.left
        if not (isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod) and isinstance(left.left, ast.Name)):
            continue
        ratio, index = left.right, left.left.id
        if isinstance(ratio, ast.Constant) or not any(found.kind == "loop" for found in made(kernel).get(index, ())):
            continue
        inside = {id(inner) for statement in node.body for inner in ast.walk(statement)}
        for access in accesses(kernel):
            product = _counting(kernel, access.pointer, index) if id(access.call) in inside else None
            if access.kind != "store" or product is None:
                continue
            yield Hit(
                module,
                product,
                kernel,
                f"`{access.base}` is stored once in `{ast.unparse(ratio)}` iterations of `{index}`, "
                f"but its address counts each one.",
                "possible",
                f"Count with `{index} // ({ast.unparse(ratio)})` if the buffer holds one entry a store.",
                [Quote(module, node.test, "when it is stored"), Quote(module, access.call, "the store")],
            )


def _counting(kernel: Function, pointer: ast.expr, index: str) -> ast.expr | None:
    """Return a product with a bracket that adds a loop's index as it is, in what an address is made of."""
    waiting: list[ast.AST] = [pointer]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sums = [part for part in ast.walk(node) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add)]
            sides = [side for part in sums for side in (part.left, part.right)]
            if any(isinstance(side, ast.Name) and side.id == index for side in sides):
                return node
        if isinstance(node, ast.Name) and node in kernel.parents:
            waiting += [each.value for each in kernel.flow.reaching(node.id, node) if each.value is not None]
        elif isinstance(node, ast.expr):
            waiting.extend(ast.iter_child_nodes(node))
    return None
