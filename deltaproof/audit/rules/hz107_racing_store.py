"""Programs along a split axis, or threads of one block, store to one address.

## What it does
Looks at the stores of a kernel. In Triton, at a part of a program id that loads depend on and the store's address, mask
and guards do not: all programs along it store to one place. In TileLang, at an element that every thread of a block
reads, changes and stores outside a parallel loop, and at memory that other blocks of the launch still read. At
launches, at a grid that counts the same sequences twice.

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
An axis with one program whose size is only known where the kernel is launched may be reported. A store that is guarded
by a value computed from the program id in another function is not followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.grids import grid_elements
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.program_parts import Part, missing, parts
from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved
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
    if not stores or not kernel.calls_of("program_id"):
        return
    work: dict[Part, Access] = {}
    for each in known:
        for part in parts(kernel, each.pointer):
            work.setdefault(part, each)
    singles = _single_axes(kernel, project)
    ones = _asserted_ones(kernel, project)
    for store in stores:
        own = parts(kernel, store.pointer) | parts(kernel, store.mask)
        if store.block is not None:
            own |= parts(kernel, store.block.call)
        left_out = [part for part in missing(own, work) if part.axis not in singles and part.divisor not in ones]
        if not left_out:
            continue
        guard = next(
            (each for each in guards(kernel, store.call) if _selects(kernel, each.test, each.kind, left_out)), None
        )
        if guard is not None:
            yield Drop(module, store.call, kernel, f"guarded at line {getattr(guard.node, 'lineno', 0)}")
            continue
        part = left_out[0]
        differs = part in parts(kernel, store.value)
        yield Hit(
            module,
            store.call,
            kernel,
            f"every program along {part} stores to the same address of `{store.base}`, which does not depend on it"
            + (": the value does, so the last one wins" if differs else ""),
            "likely" if differs else "possible",
            f"store from one program along {part}, give each its own row and reduce afterwards, or use an atomic",
            [Quote(module, work[part].call, f"work here depends on {part}")],
        )


def _selects(kernel: Function, test: ast.expr, kind: str, left_out: list[Part]) -> bool:
    own = parts(kernel, test)
    if kind == "if" and any(_ONE.search(name) for name in names_in(test) & kernel.constexprs):
        return True
    if not any(part in own or Part(part.axis, "whole") in own for part in left_out):
        return False
    if kind == "if":
        return True
    return any(
        isinstance(node, ast.Compare) and any(isinstance(each, (ast.Eq, ast.NotEq)) for each in node.ops)
        for node in ast.walk(test)
    )


def _single_axes(kernel: Function, project: Project) -> set[int]:
    found: list[set[int]] = []
    for launch in project.launches_of(kernel):
        elements = grid_elements(launch)
        found.append(
            {
                axis
                for axis, each in enumerate(elements)
                if isinstance(resolved(launch.host, each), ast.Constant) and resolved(launch.host, each).value == 1  # type: ignore[attr-defined]
            }
        )
    return set.intersection(*found) if found else set()


def _asserted_ones(kernel: Function, project: Project) -> set[str]:
    """Return the names that a launching function asserts to be 1."""
    found = set()
    for launch in project.launches_of(kernel):
        for node in launch.host.nodes:
            if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 1:
                right = node.test.comparators[0]
                if isinstance(node.test.ops[0], ast.Eq) and isinstance(right, ast.Constant) and right.value == 1:
                    found.add(ast.unparse(node.test.left))
    return found


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


def _tensors(kernel: Function) -> set[str]:
    return {param.name for param in kernel.params if "Tensor" in param.annotation or "Buffer" in param.annotation}


def _blocks(kernel: Function) -> Iterator[tuple[ast.With, set[str]]]:
    for node in kernel.nodes:
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and called_name(kernel, call).rpartition(".")[2] == "Kernel":
                    variables = set() if item.optional_vars is None else names_in(item.optional_vars)
                    yield node, variables


def _tiles(module: Module, kernel: Function) -> Iterator[Seen]:
    """TileLang: updates by every thread, and rows that neighbouring blocks read."""
    tensors = _tensors(kernel)
    for block, variables in _blocks(kernel):
        inside = [node for node in ast.walk(block) if node in kernel.parents]
        for node in inside:
            if isinstance(node, ast.AugAssign):
                target: ast.expr = node.target
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
            else:
                continue
            if not (isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)):
                continue
            name = target.value.id
            if name not in tensors:
                continue
            read = ast.unparse(target)
            again = isinstance(node, ast.AugAssign) or any(
                isinstance(each, ast.Subscript) and ast.unparse(each) == read for each in ast.walk(node.value)
            )
            if again and not _one_thread(kernel, node, target):
                yield Hit(
                    module,
                    node,
                    kernel,
                    f"every thread of the block reads, changes and stores `{read}`: a late thread changes it twice",
                    "likely",
                    "do it in one thread, or in a parallel loop that gives every element to one thread",
                )
                continue
            other = _neighbour(kernel, inside, target, variables)
            if other is not None:
                yield Hit(
                    module,
                    node,
                    kernel,
                    f"`{read}` is stored here while other blocks of the same launch still read it as "
                    f"`{ast.unparse(other)}`",
                    "likely",
                    "store to a second buffer, or split the launch in two",
                    [Quote(module, other, "other blocks read this row")],
                )


def _one_thread(kernel: Function, node: ast.AST, target: ast.Subscript) -> bool:
    for around in kernel.ancestors(node):
        if isinstance(around, ast.For) and isinstance(around.iter, ast.Call):
            last = called_name(kernel, around.iter).rpartition(".")[2]
        else:
            last = ""
        if last in ("Parallel", "vectorized", "thread_binding"):
            return True
        if isinstance(around, ast.If) and origins(kernel, around.test).calls_any(
            "get_thread_binding", "get_thread_bindings"
        ):
            return True
        if isinstance(around, ast.If) and any("thread" in name or name == "tx" for name in names_in(around.test)):
            return True
    own = names_in(target.slice)
    return "tx" in own or origins(kernel, target.slice).calls_any("get_thread_binding", "get_thread_bindings")


def _neighbour(
    kernel: Function, inside: list[ast.AST], target: ast.Subscript, variables: set[str]
) -> ast.Subscript | None:
    """Return a read of the same tensor at another block's index."""
    assert isinstance(target.value, ast.Name)
    own = _indices(target)
    for node in inside:
        if not (
            isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name)
        ):
            continue
        if node.value.id != target.value.id:
            continue
        theirs = _indices(node)
        if len(theirs) != len(own):
            continue
        for mine, other in zip(own, theirs, strict=True):
            plain = resolved(kernel, mine)
            if isinstance(plain, ast.Name) and plain.id in variables:
                moved = resolved(kernel, other)
                if isinstance(moved, ast.BinOp) and origins(kernel, moved).names & variables & {plain.id}:
                    return node
    return None


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


class RacingStore(Rule):
    """Programs along a split axis store to one address."""

    code = "HZ107"
    name = "racing-store"
    triggers = ("program_id", "T.Kernel", "](")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield the stores that several programs or threads make to one address."""
        for kernel in module.kernels:
            if kernel.kind in ("triton", "gluon"):
                yield from _stores(module, kernel, project)
            elif kernel.kind == "tilelang":
                yield from _tiles(module, kernel)
        yield from _grids(module)


RULE = RacingStore()
