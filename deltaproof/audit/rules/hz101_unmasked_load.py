"""A block is loaded without a mask, or with a mask that misses a dimension its siblings bound.

## What it does
Looks at the loads of a Triton kernel. A finding is
- a load whose index has lanes (``tl.arange``) that its mask, or its block pointer's boundary check, does not bound,
  while another access of the kernel keeps the same index below a limit,
- a load over lanes that no access of the kernel bounds, where a launch rounds the extent or the number of programs up,
- a load of one row of a tile, without lanes for it, that nothing keeps below the length below which a sibling keeps
  the tile's rows: the row counts through a whole tile, is a whole tile's last one, starts a part of a tile that may
  lie behind the end, or is clamped to the length instead of the last row; a flat block pointer (``(T * K,)``) that
  is bounded by the number of all elements counts as unbounded there,
- a load whose mask bounds another index with the same lanes than the one that its pointer goes by, or bounds it by a
  loop's counter only, while a sibling keeps the pointer's own index below a length,
- a softmax over tiles of keys whose tail is loaded as zero and never set to -inf; in TileLang, where the number of
  tiles is rounded up, also one that masks in one mode only, removes an element only where it is outside of two bounds
  at once, or takes a mask from memory that goes on behind the end of its split.

In kernels of CuTe and TileLang, and in Triton's too, it looks for tails that are masked by half: an element kept where
either coordinate is in range, an element read in the same ``and`` that bounds its index, rows cleared only where
sequences are packed. A causal comparison bounds nothing by itself.

## Why it matters
The lanes that were added read the next head, the next sequence or memory past the tensor. What they find enters a sum,
or is multiplied by a masked zero: with an infinity that is NaN. Sizes that are powers of two hide it.

## Example
Bad:

```python
@triton.jit
def kernel(k, g, o, T, K: tl.constexpr, BK: tl.constexpr):
    o_k = tl.arange(0, BK)
    p_k = k + tl.program_id(0) * K + o_k
    p_g = g + tl.program_id(0) * K + o_k
    b_k = tl.load(p_k, mask=o_k < K, other=0)
    b_g = tl.load(p_g)
    tl.store(o + tl.program_id(0) * K + o_k, b_k * tl.exp(b_g), mask=o_k < K)
```

Good:

```python
@triton.jit
def kernel(k, g, o, T, K: tl.constexpr, BK: tl.constexpr):
    o_k = tl.arange(0, BK)
    p_k = k + tl.program_id(0) * K + o_k
    p_g = g + tl.program_id(0) * K + o_k
    b_k = tl.load(p_k, mask=o_k < K, other=0)
    b_g = tl.load(p_g, mask=o_k < K, other=0)
    tl.store(o + tl.program_id(0) * K + o_k, b_k * tl.exp(b_g), mask=o_k < K)
```

## Do this instead
Make one mask for each dimension next to its index and use it in every access over that index, with a fill value that
is neutral for what follows: 0 for a sum, -inf for a maximum or an exponential.

## Seen in
fla pull requests 1135 (a gate loaded over the next power of two), 1143 (scales masked by causality only) and 1103;
flashinfer pull requests 3479 and 3788 (``or`` where both coordinates must be in range) and 4046.

## Known limits
Indices are compared as sums of products; what goes through a remainder, a minimum or a loaded index counts as bounded.
Left alone are whole tiles that a loop takes, if it ends early and the same base is read with a mask outside of it, and
lanes that fill a row of the pointer's own layout, extents that every launch passes exactly or chooses as
divisors, sizes that callers restrict to powers of two, and tiles that a condition or a loop's end makes whole. A row
without lanes counts as bounded if any condition around it tells about the length and about the row. A pointer that
holds an index that its mask bounds is taken to be bounded by it. The products of TileLang are `T.gemm` on a tile that
`T.copy` took from its place among the keys; a causal comparison counts as a bound there, and so does a test of
divisibility by the tile's size. Workspaces padded by the host to whole tiles are not known to be padded.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.audit.flow.tails import tails
from deltaproof.audit.flow.tile_scores import scores
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Rule, Seen
from deltaproof.audit.rules._unmasked import unmasked


class UnmaskedLoad(Rule):
    """Loads beyond the data, and tails that are masked by half."""

    code = "HZ101"
    name = "unmasked-load"
    stable = True
    triggers = ("tl.load", "gl.load", "cute.jit", "cute.kernel", "prim_func")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield the loads whose lanes nothing bounds, and the tails masked by half."""
        for kernel in module.kernels:
            if kernel.kind in ("triton", "gluon"):
                yield from unmasked(module, project, kernel, ("load",))
            found = [*tails(kernel), *(scores(kernel) if kernel.kind == "tilelang" else ())]
            for tail in found:
                quotes = [] if tail.other is None else [Quote(module, tail.other, tail.why)]
                yield Hit(module, tail.node, kernel, tail.message, "likely", tail.fix, quotes)


RULE = UnmaskedLoad()
