"""Tiles that are never partial: a divisor is chosen, callers restrict the sizes, or a loop ends before the last one."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.polynomials import Poly, indices, text
from deltaproof.audit.flow.trace import called_name, resolved
from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deltaproof.audit.flow.bounds import Bound
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project


def leading_to(project: Project, function: Function, depth: int = 4) -> Iterator[Function]:
    """Yield a function and those that lead to it by calls, ``Class.apply`` of an autograd function among them."""
    waiting, seen = [(function, depth)], {function}
    while waiting:
        here, left = waiting.pop()
        yield here
        wanted = here.name if here.owner is None else f"{here.owner.name}.apply"
        for path in project.paths if left else ():
            try:
                module = project.module(path) if project.source(path).calls(wanted) else None
            except Unreadable:
                continue
            last = wanted.rpartition(".")[2]
            for each, call in () if module is None else module.calls_by_name.get(last, ()):
                if each not in seen and f".{called_name(each, call)}".endswith(f".{wanted}"):
                    seen.add(each)
                    waiting.append((each, left - 1))


def whole_powers(project: Project, launches: list[Launch]) -> bool:
    """Return whether every launch is led to by a test that the last dimension is one of some powers of two."""
    return bool(launches) and all(
        any(_lists_powers(each) for each in leading_to(project, launch.host)) for launch in launches
    )


def _lists_powers(function: Function) -> bool:
    for node in function.nodes:
        raises = isinstance(node, ast.If) and node.body and isinstance(node.body[-1], ast.Raise)
        if not isinstance(node, ast.Assert) and not raises:
            continue
        for test in ast.walk(node.test):  # type: ignore[attr-defined]
            if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], (ast.In, ast.NotIn)):
                continue
            sizes = test.comparators[0]
            listed = sizes.elts if isinstance(sizes, (ast.List, ast.Tuple, ast.Set)) else []
            values = [each.value for each in listed if isinstance(each, ast.Constant)]
            powers = [value for value in values if isinstance(value, int) and value > 0 and value & (value - 1) == 0]
            if listed and len(powers) == len(listed) and ast.unparse(test.left).endswith(".shape[-1]"):
                return True
    return False


def divided(project: Project, kernel: Function, extent: str, limit: str) -> bool:
    """Return whether every launch makes sure that a limit is a multiple of an extent, or has a divisor chosen."""
    launches = project.launches_of(kernel)
    for launch in launches:
        given = launch.bound(kernel)
        tile, whole = given.get(extent), given.get(limit)
        if tile is None or whole is None:
            return False
        host = launch.host
        if any(_remainder(node, {ast.unparse(whole)}, {ast.unparse(tile), extent}) for node in host.nodes):
            continue
        made = resolved(host, tile)
        chooser = project.function(host.called(made), host.module) if isinstance(made, ast.Call) else None
        names = set() if chooser is None else set(chooser.param_names)
        if chooser is None or not any(_remainder(node, names, None) for node in chooser.nodes):
            return False
    return bool(launches)


def _remainder(node: ast.AST, whole: set[str], tile: set[str] | None) -> bool:
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Mod)
        and ast.unparse(node.left) in whole
        and (tile is None or ast.unparse(node.right) in tile)
    )


def before_own_tile(kernel: Function, index: Poly, extent: str) -> bool:
    """Return whether an index runs in whole tiles of an extent up to where the program's own tile starts."""
    known = indices(kernel)
    for name, line in {(one.text, one.axis) for product, _ in index for one in product if one.kind == "loop"}:
        for node in kernel.nodes:
            if not (isinstance(node, ast.For) and node.lineno == line and ast.unparse(node.target) == name):
                continue
            given = node.iter.args if isinstance(node.iter, ast.Call) else []
            if len(given) != 3 or text(known.of(given[2])) != extent or text(known.of(given[0])) != "0":
                continue
            stop = known.of(given[1])
            if all({"pid", "name"} == {one.kind for one in product} and len(product) == 2 for product, _ in stop):
                return any(one.text == extent for product, _ in stop for one in product)
    return False


def peeled(access: Access, sibling: Bound, extent: str) -> bool:
    """Return whether a loop takes the whole tiles only: it ends early, and the same base is read masked outside it."""
    function = access.function
    loop = next((each for each in function.ancestors(access.call) if isinstance(each, ast.For)), None)
    if loop is None or not isinstance(loop.iter, ast.Call) or not loop.iter.args:
        return False
    around = list(function.ancestors(sibling.access.call))
    if loop in around or any(each in around for each in loop.body):
        return False
    plain = [each for each in loop.iter.args if not isinstance(each, ast.Starred)]
    end = resolved(function, plain[0] if len(plain) == 1 else plain[1]) if plain else loop.iter
    if not _ends_early(end, extent):
        return False
    return any(
        each.mask is not None and each.base == access.base and loop not in function.ancestors(each.call)
        for each in accesses(function)
        if each.kind == access.kind
    )


def _ends_early(end: ast.expr, extent: str) -> bool:
    """Return whether a loop's end is a length less something, or a number of tiles rounded down or less one."""
    if isinstance(end, ast.BinOp) and isinstance(end.op, ast.FloorDiv):
        return ast.unparse(end.right) == extent and not isinstance(end.left, ast.BinOp)
    if isinstance(end, ast.BinOp) and isinstance(end.op, ast.Sub):
        return True
    if isinstance(end, ast.Call) and ast.unparse(end.func).rpartition(".")[2] in ("min", "minimum"):
        return bool(end.args) and all(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Sub) for each in end.args)
    return False
