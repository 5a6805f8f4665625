"""A pointer lacks an offset that it needs: batch, head, sequence, or the right stride of a split.

## What it does
Looks at every load and store of a Triton kernel for an address that
- strides over heads (a factor ``H``) and has no head index, while other pointers have it,
- counts tokens and lacks the batch or sequence offset that all other tensors with heads have,
- starts a tile at column 0 though the same kernel's programs split that axis (``i_v * BV``),
- is laid out with one number of heads here and another one there (``H`` and ``HQ``),
- counts tokens with a ``T`` that was replaced by one sequence's length, where the whole batch is meant, or goes by a
  program's index times that ``T`` (or its chunks) while siblings start at the sequence's first row,
- steps the rows of a sequence by another stride than the sequence's start, or the rows inside a tile by another one
  than the tile's start (``bos * H * K`` and ``i_t * BT * K``),
- has a head index of one count in rows of another one (``(bos * H + i_hv) * V``),
- goes by the smaller of two head indices (``i_hv // (HV // H)``) in a vector without tokens, whose values are combined
  with loads that go by the larger one,
- counts iterations where a store happens once in several of them,
- splits a program id by one number of heads while the launch's grid counts another,
and at flat indices of sibling kernels that differ in one stride.

## Why it matters
The kernel reads the first head's or the first sequence's rows for all of them, or two programs write the same place.
With one head, one sequence and one tile, as in most tests, the result is right.

## Example
Bad:

```python
@triton.jit
def kernel(k, g, o, cu, T, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    i_nh = tl.program_id(0)
    i_n, i_h = i_nh // H, i_nh % H
    bos = tl.load(cu + i_n).to(tl.int64)
    o_k = tl.arange(0, BK)
    b_k = tl.load(k + (bos * H + i_h) * K + o_k, mask=o_k < K)
    b_g = tl.load(g + (T - 1) * H * K + o_k, mask=o_k < K)
    tl.store(o + (bos * H + i_h) * K + o_k, b_k * b_g, mask=o_k < K)
```

Good:

```python
@triton.jit
def kernel(k, g, o, cu, T, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    i_nh = tl.program_id(0)
    i_n, i_h = i_nh // H, i_nh % H
    bos = tl.load(cu + i_n).to(tl.int64)
    o_k = tl.arange(0, BK)
    b_k = tl.load(k + (bos * H + i_h) * K + o_k, mask=o_k < K)
    b_g = tl.load(g + ((bos + T - 1) * H + i_h) * K + o_k, mask=o_k < K)
    tl.store(o + (bos * H + i_h) * K + o_k, b_k * b_g, mask=o_k < K)
```

## Do this instead
Advance every base pointer once, at the top of the kernel, by the same batch, head and sequence offsets as its
siblings; keep the whole batch's length under a name of its own before ``T`` becomes one sequence's length.

## Seen in
fla pull requests 781 (the per-key gate of the context-parallel backward), 1031 (the V split of decoding), 707 and
690 (the split's stride), 848 (a gate's rate by the wrong head), 1085 (rows of a gate), 633 (values stepped by the keys'
width), and a sibling kernel left behind in flashinfer 4572.

## Known limits
Roles come from arithmetic: a head index is what is left of a program id modulo a head count. Offsets that the host
adds, and strides passed as arguments, are not judged.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.indices import made, products, program_axis, reached_names
from deltaproof.audit.flow.trace import resolved
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen
from deltaproof.audit.rules._head_offsets import head_findings
from deltaproof.audit.rules._length_offsets import length_findings
from deltaproof.audit.rules._local_rows import local_row_findings
from deltaproof.audit.rules._row_steps import step_findings


def _first_tile(module: Module, kernel: Function) -> Iterator[Seen]:
    """Block pointers that start at column 0 of an axis that the programs split."""
    tiles: dict[tuple[str, str], tuple[str, ast.AST]] = {}
    blocks = []
    for access in accesses(kernel):
        block = access.block
        if block is None or not all(
            isinstance(part, ast.Tuple) for part in (block.shape, block.offsets, block.block_shape)
        ):
            continue
        parts = zip(block.shape.elts, block.offsets.elts, block.block_shape.elts, strict=False)  # type: ignore[union-attr]
        for extent, offset, size in parts:
            key = ast.unparse(extent), ast.unparse(size)
            blocks.append((access, key, offset))
            for product, names in products(kernel, offset):
                programs = [part for part in names if isinstance(part, ast.Name) and _from_program(kernel, part)]
                if programs and key[1] in {ast.unparse(part) for part in names}:
                    tiles.setdefault(key, (programs[0].id, product))
    for access, key, offset in blocks:
        if access.kind != "store" or key not in tiles or not (isinstance(offset, ast.Constant) and offset.value == 0):
            continue
        index, sibling = tiles[key]
        if index in reached_names(kernel, access.pointer) or _advanced(kernel, access.pointer):
            continue
        yield Hit(
            module,
            access.block.call,  # type: ignore[union-attr]
            kernel,
            f"Every program of `{index}` starts at 0 of `{key[0]}` in `{access.base}`, "
            f"while the axis is split into tiles of `{key[1]}`.",
            "likely",
            f"Start at `{index} * {key[1]}`.",
            [Quote(module, sibling, "the sibling's tile")],
        )


def _from_program(function: Function, name: ast.Name) -> bool:
    reached = function.flow.reaching(name.id, name) if name in function.parents else []
    if any(each.kind == "loop" for each in reached):
        return False
    value = resolved(function, name)
    while isinstance(value, ast.BinOp) and isinstance(value.op, (ast.FloorDiv, ast.Mod)):
        value = resolved(function, value.left)
    return program_axis(function, value) is not None


def _advanced(function: Function, pointer: ast.expr) -> bool:
    name = pointer.id if isinstance(pointer, ast.Name) else ""
    return any(
        isinstance(found.value, ast.Call)
        and isinstance(found.value.func, ast.Attribute)
        and found.value.func.attr == "advance"
        for found in made(function).get(name, ())
    )


def _index_sums(function: Function) -> Iterator[tuple[ast.Assign, list[str]]]:
    """Yield assignments of flat indices, ``i * A * B + j * B + k``, with the names on their right side in order."""
    for node in function.nodes:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        value = node.value
        if not isinstance(value, ast.BinOp) or not isinstance(value.op, ast.Add):
            continue
        inner = list(ast.walk(value))
        plain = (ast.BinOp, ast.Name, ast.Constant, ast.Load, ast.Add, ast.Mult)
        if all(isinstance(each, plain) for each in inner):
            yield node, [each.id for each in inner if isinstance(each, ast.Name)]


def _factors(expr: ast.expr) -> set[str]:
    """Return the names that are factors of a product in an expression."""
    return {
        side.id
        for node in ast.walk(expr)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        for side in (node.left, node.right)
        if isinstance(side, ast.Name)
    }


def _behind_twin(module: Module) -> Iterator[Seen]:
    """Flat indices into one buffer with a stride that sibling kernels have replaced."""
    known: list[tuple[Function, ast.Assign, list[str]]] = []
    for kernel in module.kernels:
        for node, names in _index_sums(kernel):
            if len(names) >= 4:
                known.append((kernel, node, names))
    for kernel, node, names in known:
        for other, twin, theirs in known:
            if other is kernel or ast.unparse(twin.targets[0]) != ast.unparse(node.targets[0]):
                continue
            apart = [(one, two) for one, two in zip(names, theirs, strict=False) if one != two]
            if len(names) != len(theirs) or len(apart) != 1:
                continue
            here, there = apart[0]
            if "stride" in there:
                continue  # a layout that the caller passes: whether the plain one holds is another rule's question
            if not {here, there} <= _factors(node.value) | _factors(twin.value):
                continue
            told = here in other.param_names and there in other.param_names and there not in kernel.param_names
            if not told or here not in kernel.param_names or len(kernel.param_names & other.param_names) < 5:
                continue
            yield Hit(
                module,
                node,
                kernel,
                f"`{ast.unparse(node.targets[0])}` strides by `{here}`, in `{other.name}` by `{there}`, "
                f"which `{kernel.name}` is not given.",
                "likely",
                f"Pass `{there}` to `{kernel.name}` and stride by it.",
                [Quote(module, twin, f"the same index in `{other.name}`")],
            )
            break


class MissingBaseOffset(Rule):
    """HZ105."""

    code = "HZ105"
    name = "missing-base-offset"
    triggers = ("program_id", "cute.kernel")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield addresses that lack an offset."""
        for kernel in module.kernels:
            if kernel.kind in ("triton", "gluon"):
                yield from head_findings(module, kernel, project)
                yield from length_findings(module, kernel)
                yield from local_row_findings(module, kernel)
                yield from step_findings(module, kernel, project)
                yield from _first_tile(module, kernel)
        yield from _behind_twin(module)


RULE = MissingBaseOffset()
