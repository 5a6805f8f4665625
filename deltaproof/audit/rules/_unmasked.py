"""What unmasked loads and unmasked stores have in common."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.access import Access
from deltaproof.audit.flow.bounds import Gap, gaps
from deltaproof.audit.flow.other_index import Mismatch, mismatches
from deltaproof.audit.flow.polynomials import text
from deltaproof.audit.flow.rounding import Overhang, exact, overhangs
from deltaproof.audit.flow.single_rows import Row, past_rows
from deltaproof.audit.flow.trace import resolved
from deltaproof.audit.flow.whole_tiles import before_own_tile, divided, peeled, whole_powers
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Drop, Hit, Quote, Seen

_DONE = {"load": "loaded", "store": "stored", "atomic": "updated"}


def unmasked(module: Module, project: Project, kernel: Function, kinds: tuple[str, ...]) -> Iterator[Seen]:
    """Yield the accesses of these kinds whose lanes nothing bounds, one finding for each access."""
    seen: set[ast.AST] = set()
    for gap in gaps(kernel, kinds):
        call = gap.access.call
        if gap.guard is not None:
            yield Drop(module, call, kernel, f"guarded at line {getattr(gap.guard, 'lineno', 0)}")
        elif exact(project, kernel, gap.range.text):
            yield Drop(module, call, kernel, f"`{gap.range.text}` is exact in every launch")
        elif call not in seen:
            seen.add(call)
            yield _dismissed(module, project, kernel, gap) or _gap(module, kernel, gap)
    for over in overhangs(project, kernel, kinds):
        if over.access.call not in seen:
            seen.add(over.access.call)
            yield _overhang(module, kernel, over)
    for row in past_rows(kernel, kinds):
        if row.access.call not in seen:
            seen.add(row.access.call)
            yield _row(module, kernel, row)
    for other in mismatches(kernel, kinds):
        if other.access.call not in seen:
            seen.add(other.access.call)
            yield _mismatch(module, kernel, other)


def _dismissed(module: Module, project: Project, kernel: Function, gap: Gap) -> Drop | None:
    """Return why no tile is partial, where a loop, a launch or its callers say so."""
    extent, limit = gap.range.text, gap.sibling.limit
    if before_own_tile(kernel, gap.sibling.index, extent):
        return Drop(module, gap.access.call, kernel, f"the loop ends with the whole tiles of `{extent}` before its own")
    if peeled(gap.access, gap.sibling, extent):
        return Drop(module, gap.access.call, kernel, f"the loop ends with the whole tiles of `{extent}`")
    if divided(project, kernel, extent, limit):
        return Drop(module, gap.access.call, kernel, f"every launch chooses a `{extent}` that divides `{limit}`")
    launches = project.launches_of(kernel)
    tiles = [resolved(each.host, given) for each in launches if (given := each.bound(kernel).get(extent)) is not None]
    rounded = all(isinstance(each, ast.Call) and ast.unparse(each.func).endswith("next_power_of_2") for each in tiles)
    if len(tiles) == len(launches) and rounded and whole_powers(project, launches):
        return Drop(module, gap.access.call, kernel, f"callers accept powers of two for `{limit}` only")
    return None


def _how(access: Access) -> str:
    if access.block is not None:
        return "no boundary check for them"
    return "no mask" if access.mask is None else "a mask that leaves them out"


def _fill(access: Access) -> str:
    return ", with a fill value," if access.kind == "load" else ""


def _gap(module: Module, kernel: Function, gap: Gap) -> Hit:
    access, bound = gap.access, gap.sibling
    index = text(bound.index)
    return Hit(
        module,
        access.call,
        kernel,
        f"`{ast.unparse(access.pointer)[:60]}` is {_DONE[access.kind]} over `{gap.range.text}` lanes with "
        f"{_how(access)}; a sibling keeps `{index}` below `{bound.limit}`",
        "likely",
        f"add the sibling's bound `{index} < {bound.limit}`{_fill(access)} to this {access.kind}",
        [Quote(module, bound.node, f"a sibling bounds the same index by `{bound.limit}`")],
    )


def _overhang(module: Module, kernel: Function, over: Overhang) -> Hit:
    access = over.access
    return Hit(
        module,
        access.call,
        kernel,
        f"`{ast.unparse(access.pointer)[:60]}` is {_DONE[access.kind]} over `{over.range.text}` lanes with "
        f"{_how(access)}, and a launch rounds them up: `{ast.unparse(over.node)[:60]}`",
        "likely",
        f"pass the number of elements and mask this {access.kind} with it, or check that it is a multiple of "
        f"`{over.range.text}`",
        [Quote(over.launch.host.module, over.node, "rounded up here")],
    )


def _row(module: Module, kernel: Function, row: Row) -> Hit:
    access, limit = row.access, row.bound.limit
    return Hit(
        module,
        access.call,
        kernel,
        f"a row of `{ast.unparse(access.pointer)[:60]}` is {_DONE[access.kind]} that nothing keeps below `{limit}`: "
        f"{row.why}; a sibling keeps the tile's rows below `{limit}`",
        "likely",
        f"stop at `{limit}`: end the loop there, add the row's bound to the mask, or take the last row that exists",
        [Quote(module, row.bound.node, f"a sibling bounds the tile's rows by `{limit}`")],
    )


def _mismatch(module: Module, kernel: Function, other: Mismatch) -> Hit:
    access, own, sibling = other.access, other.own, other.sibling
    name, ours, limit = sibling.name[:60], own.name[:60], text(sibling.high)
    if own.index == sibling.index:
        what = (
            f"with `{ours}` below `{text(own.high)}` only, a loop's counter; a sibling keeps this index below `{limit}`"
        )
        name = ours
    else:
        what = (
            f"by `{name}`, but its mask bounds `{ours}` by `{text(own.high)}` only; a sibling keeps `{name}` below "
            f"`{limit}`"
        )
    return Hit(
        module,
        access.call,
        kernel,
        f"`{ast.unparse(access.pointer)[:60]}` is {_DONE[access.kind]} {what}",
        "likely",
        f"add `{name} < {limit}` to the mask of this {access.kind}",
        [Quote(module, sibling.node, f"a sibling bounds the index by `{limit}`")],
    )
