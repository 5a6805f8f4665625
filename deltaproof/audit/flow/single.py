"""Axes of a launch, and digits of its program ids, that have one program only."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.grids import grid_elements
from deltaproof.audit.flow.program_parts import text_of
from deltaproof.audit.flow.trace import alternatives, called_name, resolved

if TYPE_CHECKING:
    from deltaproof.audit.flow.program_parts import Part
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project


def has_one_program(project: Project, kernel: Function, part: Part) -> bool:
    """Return whether every launch of a kernel gives a part of a program id one value only."""
    launches = project.launches_of(kernel)
    return bool(launches) and all(_one_in(launch, kernel, part) for launch in launches)


def _one_in(launch: Launch, kernel: Function, part: Part) -> bool:
    if part.size is not None:
        return all(_one_inside(launch, kernel, text) for text in part.size)
    elements = grid_elements(launch)
    if part.low or not elements:
        return False
    return part.axis >= len(elements) or _is_one(launch.host, elements[part.axis])


def _one_inside(launch: Launch, kernel: Function, text: str) -> bool:
    """Return whether what a kernel calls so is 1 in a launch."""
    expr = ast.parse(text, mode="eval").body
    given = launch.bound(kernel)
    if isinstance(expr, ast.Name):
        return expr.id in given and _is_one(launch.host, given[expr.id])
    if isinstance(expr, ast.Constant):
        return expr.value == 1
    if not (isinstance(expr, ast.Call) and text.startswith("cdiv(") and len(expr.args) == 2):
        return False
    extent, tile = (given.get(each.id) if isinstance(each, ast.Name) else each for each in expr.args)
    if extent is None or tile is None:
        return False
    called = f"cdiv({ast.unparse(extent)}, {ast.unparse(tile)})"
    return called in _asserted(launch.host) or _covers(launch.host, tile, extent)


def _is_one(host: Function, expr: ast.expr) -> bool:
    if ast.unparse(expr) in _asserted(host):
        return True
    plain = resolved(host, expr)
    if isinstance(plain, ast.Constant):
        return plain.value == 1
    if text_of(plain) in _asserted(host):
        return True
    if isinstance(plain, ast.Call) and called_name(host, plain).endswith("cdiv") and len(plain.args) == 2:
        return _covers(host, plain.args[1], plain.args[0])
    return False


def _asserted(host: Function) -> set[str]:
    """Return the texts of what a host function makes sure is 1, names followed too; kept with the function."""
    known: set[str] | None = host.__dict__.get("_asserted_ones")
    if known is not None:
        return known
    found: set[str] = set()
    for node in host.nodes:
        wanted: tuple[type[ast.cmpop], ...] = (ast.Eq, ast.LtE)
        if isinstance(node, ast.If) and node.body and isinstance(node.body[-1], ast.Raise):
            wanted = (ast.NotEq, ast.Gt)
        elif not isinstance(node, ast.Assert):
            continue
        test = node.test
        if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], wanted):
            continue
        right = test.comparators[0]
        if isinstance(right, ast.Constant) and right.value == 1:
            found |= {ast.unparse(test.left), text_of(resolved(host, test.left))}
    host.__dict__["_asserted_ones"] = found
    return found


def _covers(host: Function, tile: ast.expr, extent: ast.expr) -> bool:
    """Return whether a tile is at least as large as an extent, by the way it is made."""
    ways = alternatives(host, tile)
    if len(ways) > 1:
        return all(not isinstance(way, ast.Name) and _covers(host, way, extent) for way in ways)
    plain = ways[0]
    if ast.unparse(plain) == ast.unparse(extent) or ast.unparse(tile) == ast.unparse(extent):
        return True
    if not isinstance(plain, ast.Call):
        return False
    last = called_name(host, plain).rpartition(".")[2]
    if last == "next_power_of_2" and plain.args:
        inner = plain.args[0]
        return ast.unparse(resolved(host, inner)) == ast.unparse(resolved(host, extent))
    if last == "max":
        return any(_covers(host, each, extent) for each in plain.args)
    if last == "min":
        return all(_covers(host, each, extent) for each in plain.args)
    return False
