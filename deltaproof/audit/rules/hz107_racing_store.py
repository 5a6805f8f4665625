"""Programs along a split axis, or threads of one block, store to one address.

## What it does
Looks at the stores of a kernel, and of the device functions that it calls in its file. In Triton, at a part of a
program id that loads depend on and the store's address, mask and guards do not: all programs along it store to one
place. In TileLang, at an element that every thread of a block reads, changes and stores outside a parallel loop, at
memory that other blocks of the launch still read, and at a flat index of a parallel loop (`i * n + j`) whose row stride
is the extent of another axis. At launches, at a grid that counts the same sequences twice.

## Why it matters
The last store wins, and which one is last changes from run to run: wrong numbers without a sign, or results that differ
between runs. Where the values agree the race is harmless today and breaks with the next change.

## Example
```python
@triton.jit
def kernel(k, v, o, z, V: tl.constexpr, BV: tl.constexpr):
    i_v, i_h = tl.program_id(0), tl.program_id(1)
    o_v = i_v * BV + tl.arange(0, BV)
    b_v = tl.load(v + i_h * V + o_v, mask=o_v < V)
    b_k = tl.load(k + i_h)
    tl.store(o + i_h * V + o_v, b_v * b_k, mask=o_v < V)
    tl.store(z + i_h, tl.sum(b_v * b_k, 0))
```

## Do this instead
Store from one program along the axis, or give each program its own row and add them up afterwards.

```python
@triton.jit
def kernel(k, v, o, z, V: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr):
    i_v, i_h = tl.program_id(0), tl.program_id(1)
    o_v = i_v * BV + tl.arange(0, BV)
    b_v = tl.load(v + i_h * V + o_v, mask=o_v < V)
    b_k = tl.load(k + i_h)
    tl.store(o + i_h * V + o_v, b_v * b_k, mask=o_v < V)
    tl.store(z + i_h * NV + i_v, tl.sum(b_v * b_k, 0))
```

## Seen in
fla-org/flash-linear-attention #1018 and #1033.

## Known limits
An axis counts as one program where a launch says so: by a literal, an assertion, or a tile that its own arithmetic
makes as large as the extent. Literals that all programs store alike are left alone. In TileLang, rows that are
addressed through a table are not compared. Device functions that callers give different parts of their program ids, or
that lie in another file than their callers, are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.grids import grid_elements
from deltaproof.audit.flow.guards import exclusive, guards, loops
from deltaproof.audit.flow.inlined import bind_callers
from deltaproof.audit.flow.linear_index import colliding
from deltaproof.audit.flow.program_parts import Part, missing, parts
from deltaproof.audit.flow.single import has_one_program
from deltaproof.audit.flow.tile_races import every_thread, read_by_neighbours
from deltaproof.audit.flow.trace import names_in, resolved
from deltaproof.audit.model.function import Function, Launch
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

_ONE = re.compile(r"split|single|decod|once", re.I)
"""Switches that tell that an axis has one program."""


def _stores(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Triton: a store whose address is the same for several programs."""
    known = accesses(kernel)
    stores = [each for each in known if each.kind == "store"]
    entries = bind_callers(module, kernel, project) if stores else []
    if not entries:
        return
    work = [(part, each) for each in known for part in parts(kernel, each.pointer, project)]
    for store in stores:
        own = parts(kernel, store.pointer, project) | parts(kernel, store.mask, project)
        if store.block is not None:
            own |= parts(kernel, store.block.call, project)
        left_out = missing(own, {part for part, _ in work})
        if not left_out:
            continue
        beside = {part: each for part, each in reversed(work) if not exclusive(kernel, each.call, store.call)}
        left_out = [part for part in left_out if part in beside]
        left_out = [part for part in left_out if not all(has_one_program(project, each, part) for each in entries)]
        if not left_out:
            continue
        around = [*guards(kernel, store.call), *loops(kernel, store.call)]
        guard = next((each for each in around if _selects(kernel, each.test, each.kind, left_out, project)), None)
        if guard is not None:
            yield Drop(module, store.call, kernel, f"guarded at line {getattr(guard.node, 'lineno', 0)}")
            continue
        value = None if store.value is None else resolved(kernel, store.value)
        if isinstance(value, ast.Constant) and all(each.base != store.base for each in known if each.kind == "atomic"):
            yield Drop(module, store.call, kernel, f"every program stores `{ast.unparse(value)}`")
            continue
        part = left_out[0]
        differs = any(not part.apart(each) for each in parts(kernel, store.value, project) if each.axis == part.axis)
        yield Hit(
            module,
            store.call,
            kernel,
            f"every program along {part} stores to the same address of `{store.base}`, which does not depend on it"
            + (": the value does, so the last one wins" if differs else ""),
            "likely" if differs else "possible",
            f"store from one program along {part}, give each its own row and reduce afterwards, or use an atomic",
            [Quote(module, beside[part].call, f"work here depends on {part}")],
        )


def _selects(kernel: Function, test: ast.expr, kind: str, left_out: list[Part], project: Project) -> bool:
    if kind == "if" and any(_ONE.search(name) for name in names_in(test) & kernel.constexprs):
        return True
    own = parts(kernel, test, project)
    if not any(part.axis == each.axis and not part.apart(each) for part in left_out for each in own):
        return False
    if kind == "if":
        return True
    compared = [node for node in ast.walk(test) if isinstance(node, ast.Compare)]
    if kind == "loop":
        return bool(compared)
    return any(isinstance(each, (ast.Eq, ast.NotEq)) for node in compared for each in node.ops)


def _grids(module: Module) -> Iterator[Seen]:
    """Host: a grid that counts sequences on one axis and, on another, chunks that were counted over all sequences."""
    for launch in module.launches:
        elements = grid_elements(launch)
        chunks = [(each, _lengths(launch, each, False)) for each in elements]
        sequences = [(each, _lengths(launch, each, True)) for each in elements]
        for axis, (chunk, over) in enumerate(chunks):
            for other, (count, of) in enumerate(sequences):
                if axis == other or not over or not of or over[0][0] == of[0][0]:
                    continue
                yield Hit(
                    module,
                    launch.call,
                    launch.host,
                    f"`{ast.unparse(chunk)}` counts the chunks of all sequences and `{ast.unparse(count)}` the "
                    "sequences again: as many programs as there are sequences store to one address",
                    "likely",
                    "use the batch size on the second axis: it is 1 where sequences are packed",
                    [Quote(module, over[0][1], "chunks of all sequences"), Quote(module, of[0][1], "sequences")],
                )
                return


def _lengths(launch: Launch, element: ast.expr, less_one: bool) -> list[tuple[str, ast.expr]]:
    """Return what ``len(x)``, or ``len(x) - 1``, a grid element may be a multiple of."""
    host = launch.host
    given = " ".join(ast.unparse(each) for each in [*launch.call.args, *launch.call.keywords])
    found: list[tuple[str, ast.expr]] = []
    for name in [node for node in ast.walk(element) if isinstance(node, ast.Name) and node in host.parents]:
        for reached in host.flow.reaching(name.id, name):
            value = reached.value
            if less_one:
                if not (isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub)):
                    continue
                if not (isinstance(value.right, ast.Constant) and value.right.value == 1):
                    continue
                value = value.left
            if not isinstance(value, ast.Call) or ast.unparse(value.func) != "len":
                continue
            if isinstance(value.args[0], ast.Name) and value.args[0].id in given:
                found.append((value.args[0].id, value))
    return found


def _tiles(module: Module, kernel: Function) -> Iterator[Seen]:
    """TileLang: updates by every thread, and rows that neighbouring blocks read."""
    for update, text in every_thread(kernel):
        yield Hit(
            module,
            update,
            kernel,
            f"every thread of the block reads, changes and stores `{text}`: a late thread changes it twice",
            "likely",
            "do it in one thread, or in a parallel loop that gives every element to one thread",
        )
    for store, text, other in read_by_neighbours(kernel):
        yield Hit(
            module,
            store,
            kernel,
            f"`{text}` is stored here while other blocks of the same launch still read it as `{ast.unparse(other)}`",
            "likely",
            "store to a second buffer, or split the launch in two",
            [Quote(module, other, "other blocks read this row")],
        )


def _flat(module: Module, kernel: Function) -> Iterator[Seen]:
    """TileLang: flat indices of a parallel loop whose rows overlap."""
    for store, index, name, extent, stride in colliding(kernel):
        yield Hit(
            module,
            store,
            kernel,
            f"`{ast.unparse(index)}` has the row stride `{ast.unparse(stride)}` and `{name}` runs to "
            f"`{ast.unparse(extent)}`: where that is more, two elements of the parallel loop share one place",
            "likely",
            f"make the row stride `{ast.unparse(extent)}`",
        )


class RacingStore(Rule):
    """Programs along a split axis store to one address."""

    code = "HZ107"
    name = "racing-store"
    stable = True
    triggers = ("program_id", "T.Kernel", "](")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield the stores that several programs or threads make to one address."""
        for kernel in module.kernels:
            if kernel.kind in ("triton", "gluon"):
                yield from _stores(module, kernel, project)
            elif kernel.kind == "tilelang":
                yield from _tiles(module, kernel)
                yield from _flat(module, kernel)
        yield from _grids(module)


RULE = RacingStore()
