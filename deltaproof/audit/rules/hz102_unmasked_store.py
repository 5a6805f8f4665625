"""A block is stored without a mask, or with a mask that misses a dimension its siblings bound.

## What it does
Looks at the stores and atomics of a Triton kernel. A finding is
- one whose index has lanes (``tl.arange``) that its mask, or its block pointer's boundary check, does not bound, while
  another access of the kernel keeps the same index below a limit,
- one over lanes that no access of the kernel bounds, where a launch rounds the extent or the number of programs up,
- one of a single row of a tile, without lanes for it, that nothing keeps below the length below which a sibling keeps
  the tile's rows,
- one whose mask bounds another index with the same lanes than the one that its pointer goes by, which a sibling keeps
  below a length,
- one into a buffer that the host allocates without a dimension by which the kernel strides,
- in TileLang, a store of rows that a sibling selects by a bound, with a value that no selection made.

## Why it matters
The lanes that were added overwrite the next head, the next sequence or another tensor's memory: other requests get
wrong numbers, at random times. Element counts that fill the last block hide it.

## Example
Bad:

```python
@triton.jit
def kernel(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets) * 2)


def double(x):
    y = torch.empty_like(x)
    kernel[(triton.cdiv(x.numel(), 1024),)](x, y, BLOCK=1024)
    return y
```

Good:

```python
@triton.jit
def kernel(x, y, N, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets, mask=offsets < N) * 2, mask=offsets < N)


def double(x):
    y = torch.empty_like(x)
    kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024)
    return y
```

## Do this instead
Pass the number of elements and use one mask for each dimension in every store and atomic over it; join it with any
other condition by ``&``.

## Seen in
fla pull request 1103 (element-wise kernels without a bound, a store masked by its first step only) and commit a9dac8b1
(an atomic add without its siblings' row mask).

## Known limits
As of unmasked-load: what goes through a remainder, a minimum or a loaded index counts as bounded, and workspaces that
the host pads to whole tiles are not known to be padded.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.audit.flow.undersized import undersized, unselected
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen
from deltaproof.audit.rules._unmasked import unmasked


class UnmaskedStore(Rule):
    """Stores and atomics beyond the data."""

    code = "HZ102"
    name = "unmasked-store"
    triggers = ("tl.store", "tl.atomic", "gl.store", "](", "if_then_else")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield the stores and atomics whose lanes nothing bounds, and the buffers that are too small for them."""
        for kernel in module.kernels:
            if kernel.kind in ("triton", "gluon"):
                yield from unmasked(module, project, kernel, ("store", "atomic"))
            elif kernel.kind == "tilelang":
                for store, bound in unselected(kernel):
                    yield Hit(
                        module,
                        store.node,
                        kernel,
                        f"`{store.text}` is stored for rows beyond `{bound.limit}` too; a sibling selects by "
                        f"`{bound.index} < {bound.limit}`",
                        "possible",
                        f"select the value by `{bound.index} < {bound.limit}` as the sibling does",
                        [Quote(module, bound.node, "a sibling's rows are selected")],
                    )
        for small in undersized(module, project):
            yield Hit(
                module,
                small.allocation,
                small.launch.host,
                f"`{small.name}` is allocated without `{small.dimension}`, by which "
                f"`{small.store.function.name}` strides where it stores: rows lie beyond the buffer",
                "likely",
                f"allocate `{small.name}` with a dimension `{small.dimension}`",
                [
                    Quote(module, small.launch.call, "launched with the buffer"),
                    Quote(small.store.function.module, small.store.call, f"strides by `{small.param}`"),
                ],
            )


RULE = UnmaskedStore()
