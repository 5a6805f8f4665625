"""How launches choose the extent of a kernel's range: rounded up, or exact."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.arm_ranges import in_every_arm
from deltaproof.audit.flow.bounds import covered, guarded_tile
from deltaproof.audit.flow.grids import grid_elements
from deltaproof.audit.flow.polynomials import Atom, Poly, dividends, indices, ranges
from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

ROUNDING = (
    "next_power_of_2",
    "next_power_of_two",
    "next_pow2",
    "ceil_pow2",
    "cdiv",
    "ceil_div",
    "ceildiv",
    "max",
    "min",
)


@dataclass(frozen=True)
class Overhang:
    """A range that reaches beyond the data, as a launch shows, and that nothing in the kernel bounds.

    Attributes:
        access: the access.
        range: the range.
        launch: the launch.
        node: where the extent, or the number of programs, is rounded up.
    """

    access: Access
    range: Atom
    launch: Launch
    node: ast.expr


def exact(project: Project, kernel: Function, extent: str) -> bool:
    """Return whether every launch gives an extent that is a dimension or a quotient of dimensions, not rounded up."""
    if extent not in kernel.param_names:
        return False
    found = False
    for launch in project.launches_of(kernel):
        given = launch.bound(kernel).get(extent)
        if given is None or not _is_dimension(launch.host, given):
            return False
        found = True
    return found


def _is_dimension(host: Function, given: ast.expr) -> bool:
    value = resolved(host, given)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.FloorDiv):
        return not origins(host, value).calls_any(*ROUNDING)
    if isinstance(value, ast.Subscript):
        return isinstance(value.value, ast.Attribute) and value.value.attr == "shape"
    if isinstance(value, ast.Name):
        reached = host.flow.reaching(value.id, value) if value in host.parents else []
        return bool(reached) and all(
            each.kind == "unpacked" and any(_is_shape(part) for part in _parts(each.value)) for each in reached
        )
    return False


def _parts(value: ast.expr | None) -> list[ast.expr]:
    return list(value.elts) if isinstance(value, ast.Tuple) else [value] if value is not None else []


def _is_shape(expr: ast.expr) -> bool:
    inner = expr.value if isinstance(expr, ast.Starred) else expr
    if isinstance(inner, ast.Call):
        return isinstance(inner.func, ast.Attribute) and inner.func.attr == "size"
    return isinstance(inner, ast.Attribute) and inner.attr == "shape"


def overhangs(project: Project, kernel: Function, kinds: tuple[str, ...]) -> Iterator[Overhang]:
    """Yield the ranges of a kernel's accesses that a launch rounds up and no mask of the kernel bounds."""
    known = accesses(kernel)
    if not known:
        return
    within = [covered(each) for each in known]
    if any(each is None for each in within) or any(each.block is not None for each in known):
        return
    bounded = {text for each in within if each is not None for text, _ in each}
    bounded |= in_every_arm(kernel)
    launches = project.launches_of(kernel)
    for access in known:
        if access.kind not in kinds:
            continue
        for part in (part for whole in indices(kernel).pointers(access.pointer) for part in dividends(whole)):
            lanes = {each for each in ranges(part, quotients=False) if each.text not in bounded}
            found = [each for one in lanes for each in _rounded(kernel, access, one, part, launches)]
            if found and guarded_tile(access, found[0].range) is None:
                yield found[0]
                break


def _rounded(
    kernel: Function, access: Access, lanes: Atom, pointer: Poly, launches: list[Launch]
) -> Iterator[Overhang]:
    axes = {
        one.text
        for product, _ in pointer
        for one in product
        if one.kind == "pid" and any(each.text == lanes.text for each in product)
    }
    for launch in launches:
        given = launch.bound(kernel).get(lanes.text)
        if _divides(launch.host, {lanes.text, *([ast.unparse(given)] if given is not None else [])}):
            continue
        if axes:
            elements = grid_elements(launch)
            for axis in axes:
                if axis.isdigit() and int(axis) < len(elements):
                    node = _rounded_up(launch, elements[int(axis)], lanes.text, given)
                    if node is not None:
                        yield Overhang(access, lanes, launch, node)
                        return
        elif given is not None:
            value = resolved(launch.host, given)
            if isinstance(value, ast.Call) and "pow" in called_name(launch.host, value).rpartition(".")[2]:
                yield Overhang(access, lanes, launch, value)
                return


def _divides(host: Function, extents: set[str]) -> bool:
    """Return whether a function tests that something is a multiple of an extent."""
    return any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and ast.unparse(node.right) in extents
        for node in host.nodes
    )


def _rounded_up(launch: Launch, element: ast.expr, extent: str, given: ast.expr | None) -> ast.expr | None:
    """Return where a grid element is a length divided by an extent, rounded up."""

    def is_extent(by: ast.expr) -> bool:
        if isinstance(by, ast.Subscript) and isinstance(by.slice, ast.Constant) and by.slice.value == extent:
            return True
        return (given is not None and ast.unparse(by) == ast.unparse(given)) or names_in(by) == {extent}

    whole = resolved(launch.host, element)
    calls = [call for _, call in origins(launch.host, whole).calls]
    for node in [*ast.walk(whole), *calls]:
        if isinstance(node, ast.Call) and len(node.args) == 2 and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("cdiv", "ceil_div", "ceildiv") and is_extent(node.args[1]):
                return node
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and is_extent(node.right):
            left = node.left
            if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Sub) and ast.unparse(left.right) == "1":
                return node
    return None
