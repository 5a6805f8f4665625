"""Memory from ``torch.empty`` has rows that nobody writes and somebody reads.

## What it does
Follows an allocation without content (``torch.empty``, ``empty_like``, ``new_empty``) through the launch to the
kernel's parameter and looks at how that parameter is stored: not at all when a length or slot that the kernel loads is
empty or negative; only where another, shifted index is in range; only in the tiles on one side of the diagonal. It
also looks for atomic sums into such memory, reads of rows which this very launch has yet to write, returns that leave
before the launch, buffers copied back whole over the caller's, optional inputs made up from it, grids sized from a
hint, launches in parts whose mask forgets the part, and in TileLang for stores that stop at a length read from memory.

## Why it matters
The rows hold what the allocator left there: NaN, or plausible numbers of an earlier call. A fresh process often gets
zeros, so tests pass.

## Example
Bad:

```python
@triton.jit
def kernel(x, state, cu_seqlens, D: tl.constexpr):
    n = tl.program_id(0)
    start = tl.load(cu_seqlens + n)
    length = tl.load(cu_seqlens + n + 1) - start
    if length == 0:
        return
    o = tl.arange(0, D)
    total = tl.zeros([D], dtype=tl.float32)
    for t in range(0, length):
        total += tl.load(x + (start + t) * D + o)
    tl.store(state + n * D + o, total)


def run(x, cu_seqlens, N, D):
    state = torch.empty(N, D, device=x.device)
    kernel[(N,)](x, state, cu_seqlens, D)
    return state
```

Good:

```python
@triton.jit
def kernel(x, state, cu_seqlens, D: tl.constexpr):
    n = tl.program_id(0)
    start = tl.load(cu_seqlens + n)
    length = tl.load(cu_seqlens + n + 1) - start
    o = tl.arange(0, D)
    total = tl.zeros([D], dtype=tl.float32)
    for t in range(0, length):
        total += tl.load(x + (start + t) * D + o)
    tl.store(state + n * D + o, total)


def run(x, cu_seqlens, N, D):
    state = torch.empty(N, D, device=x.device)
    kernel[(N,)](x, state, cu_seqlens, D)
    return state
```

## Do this instead
Define every element: store zeros where the kernel skips, or allocate zeros where rows may stay unwritten. Let an empty
sequence copy its initial state before it returns.

## Seen in
flash-linear-attention #967, #1070, #1105; flashinfer #4020, #4219; FlashQLA #36; tilelang #2513; TileOPs #1935.

## Known limits
Whether a later reader masks the rows again is not followed, so such findings are "possible". Outputs that a kernel
gives on to another device function are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import advanced, skipped, staging, tiles
from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.allocations import (
    Allocation,
    Handed,
    empties_behind,
    handers,
    reset_by_tuner,
    touched_before,
)
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen
from deltaproof.audit.rules._launch_parts import parts

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project
    from deltaproof.reports.audit import Verdict

ZEROS = "Store zeros in the rows that are skipped, or allocate zeros."


class UnwrittenOutput(Rule):
    """HZ201."""

    code = "HZ201"
    name = "unwritten-output"
    triggers = ("triton", "empty(", "empty_like(", "alloc_shared(", "T.Tensor(")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield allocations and stores that leave rows undefined."""
        makes = ".empty" in module.text or "new_empty" in module.text
        for function in module.functions:
            if function.kind in ("triton", "gluon"):
                yield from _kernel(function, project)
            elif tiles_in(module) and tiles.is_tile_kernel(function):
                yield from _tile_kernel(function)
            elif makes and not function.is_kernel:
                yield from _host(function)


def tiles_in(module: Module) -> bool:
    """Return whether a module speaks TileLang."""
    return module.holds("tilelang")


def _kernel(kernel: Function, project: Project) -> Iterator[Seen]:
    for access, guard, condition in skipped.by_own_reads(kernel):
        yield Hit(
            kernel.module,
            access.call,
            kernel,
            f"`{access.base}` is also what this kernel stores, and of a tile that straddles "
            f"`{ast.unparse(guard.test)}` the load reads rows up to `{ast.unparse(condition)}`, not yet written.",
            "likely",
            "Mask the load with the bound of the rows that are written already.",
            (Quote(kernel.module, guard.node, "only the first row of the tile is tested"),),
        )
    yield from parts(kernel, project)
    wanted = {param: found for param, found in _empties(kernel, project).items() if found}
    if not wanted:
        return
    told: set[tuple[int, str]] = set()
    for skip in skipped.by_condition(kernel):
        if skip.param in wanted and (id(skip.node), "") not in told:
            told.add((id(skip.node), ""))
            handed, made = wanted[skip.param]
            yield Hit(
                kernel.module,
                skip.node,
                kernel,
                f"where `{ast.unparse(skip.test)}` decides, nothing is stored in `{skip.param}`, which "
                f"`{made.function.name}` allocates as `{made.name}` without a content.",
                "likely" if skip.node.lineno < skip.store.call.lineno else "possible",  # type: ignore[attr-defined]
                "Store what an empty or padded row shall hold before the kernel skips it, or allocate zeros.",
                (*_path(handed, made), Quote(kernel.module, skip.store.call, "the store that is skipped")),
            )
    own = advanced.by_own_row(kernel, {param: made for param, (_, made) in wanted.items()})
    for skip in [*skipped.by_mask(kernel), *skipped.by_triangle(kernel), *own]:
        if skip.param in wanted:
            handed, made = wanted[skip.param]
            yield Hit(
                made.function.module,
                made.statement,
                made.function,
                f"`{made.name}` is allocated without a content and becomes `{skip.param}` of `{kernel.name}`, which "
                f"stores only part of it (`{ast.unparse(skip.test)}`).",
                "possible",
                ZEROS,
                (
                    Quote(handed.host.module, handed.call, f"launched as `{skip.param}`"),
                    Quote(kernel.module, skip.store.call, "the only stores"),
                ),
            )
    yield from _summed(kernel, wanted)


def _summed(kernel: Function, wanted: dict[str, tuple[Handed, Allocation]]) -> Iterator[Seen]:
    """Yield atomic sums into memory without a content."""
    written = skipped.stores(kernel)
    for access in accesses(kernel):
        if access.kind != "atomic" or access.base not in wanted or access.base in written:
            continue
        handed, made = wanted[access.base]
        earlier = touched_before(handed, made)
        if earlier is not None:
            yield Drop(made.function.module, made.statement, made.function, f"used at line {earlier} before the sum")
        elif not reset_by_tuner(kernel, access.base):
            yield Hit(
                made.function.module,
                made.statement,
                made.function,
                f"`{kernel.name}` sums into `{access.base}` with atomics, but `{made.name}` starts without a content.",
                "likely",
                "Allocate zeros: a sum needs a start.",
                (Quote(kernel.module, access.call, "adds to what is there"),),
            )


def _empties(kernel: Function, project: Project) -> dict[str, tuple[Handed, Allocation]]:
    found: dict[str, tuple[Handed, Allocation]] = {}
    written = {skipped.base_of(kernel, access) for access in accesses(kernel) if access.kind != "load"} - {""}
    written |= advanced.stepped_stores(kernel).keys()
    if not written:
        return found
    for handed in handers(kernel, project):
        if handed.param in written and handed.param not in found:
            for made in empties_behind(handed.host, handed.value):
                found[handed.param] = (handed, made)
                break
    return found


def _path(handed: Handed, made: Allocation) -> tuple[Quote, ...]:
    return (
        Quote(made.function.module, made.statement, "the memory, without a content"),
        Quote(handed.host.module, handed.call, f"launched as `{handed.param}`"),
    )


def _host(function: Function) -> Iterator[Seen]:
    for made, copy, mark in staging.copied_back(function):
        yield _hit(
            made,
            f"`{made.name}` has no content and is copied back whole over the caller's output; rows that the kernel "
            f"skips for `{mark}` lose what the caller had there.",
            "likely",
            "Make the buffer by converting the caller's output, so that skipped rows keep their values.",
            Quote(function.module, copy, "copied back whole"),
        )
    for made, around in staging.made_up_inputs(function):
        yield _hit(
            made,
            f"the input `{made.name}` that the caller left out is made up from memory without a content.",
            "likely",
            "Make zeros where the kernel reads it, and pass nothing where it does not.",
            Quote(function.module, around.test, "the only condition"),
        )
    for made, leave, guard in staging.left_early(function):
        yield Hit(
            function.module,
            leave,
            function,
            f"returns `{made.name}` where `{ast.unparse(guard.test)}`, before anything is written into it.",
            "possible",
            "Return zeros there.",
            (Quote(function.module, made.statement, "the memory, without a content"),),
        )
    for made, call, hint, twin in staging.hinted_grids(function):
        yield Hit(
            function.module,
            call,
            function,
            f"the grid comes from the hint `{hint}` while the kernel is bound by `{twin}`; a hint that is too small "
            f"leaves rows of `{made.name}` unwritten.",
            "possible",
            "Size the grid from a shape that bounds the rows.",
            (Quote(function.module, made.statement, "the memory, without a content"),),
        )


def _hit(made: Allocation, message: str, verdict: Verdict, fix: str, quote: Quote) -> Hit:
    return Hit(made.function.module, made.statement, made.function, message, verdict, fix, (quote,))


def _tile_kernel(function: Function) -> Iterator[Seen]:
    for store, test in tiles.padded_stores(function):
        if not tiles.read_elsewhere(function, store.buffer):
            yield Hit(
                function.module,
                store.statement,
                function,
                f"`{store.buffer}` is stored only where `{ast.unparse(test)}`; its rows behind that length stay "
                "undefined.",
                "possible",
                "Store zeros in the rows behind the length.",
                (Quote(function.module, test, "no other branch stores"),),
            )
    for store, test in tiles.partial_clears(function):
        yield Hit(
            function.module,
            store.statement,
            function,
            f"`{store.buffer}` is cleared only from `{ast.unparse(test)}` to the end of that tile: nothing is cleared "
            "where the length fills its tile.",
            "possible",
            "Clear one tile from the end of the sequence on, whatever its length.",
            (Quote(function.module, test, "the row counts from the tile's start"),),
        )
    for store, call in tiles.unfilled_buffers(function):
        yield Hit(
            function.module,
            store.statement,
            function,
            f"`{store.buffer}` is set only under a condition on data and read all the same; where no thread meets it, "
            "it holds what was there.",
            "likely",
            "Fill it before, and let the condition cover the exact boundary.",
            (Quote(function.module, call, "allocated without a content"),),
        )


RULE = UnwrittenOutput()
