"""Garbage, infinity or NaN is multiplied by zero where it should be deselected; or exp comes before the mask.

## What it does
Looks at products with an exponential in kernels: of a gate that is loaded with zeros behind the sequence's end, minus
a reference from another row, where the product is summed over these rows by a dot or a sum, also where a `where` that
does not bound these rows by the length comes in between; and of the difference of all pairs of rows, where no `where`
with an ordered mask follows. It reports masks that are multiplied onto an exponential, a quotient or
a logarithm. In TileLang it reports rows that stay unstored behind a length and are read by another kernel of the file.

## Why it matters
Zero times infinity is NaN, and so is zero times NaN. Rows past the end have gate 0, so the difference to a strongly
negative reference is large and positive, and its exp overflows before the mask is applied.

## Example
Bad:

```python
@triton.jit
def kernel(g, k, o, T, BT: tl.constexpr):
    i = tl.arange(0, BT)
    b_g = tl.load(g + i, mask=i < T, other=0)
    b_k = tl.load(k + i, mask=i < T, other=0)
    causal = i[:, None] >= i[None, :]
    b_A = tl.where(causal, b_k[:, None] * b_k[None, :], 0)
    b_A = b_A * tl.exp(b_g[:, None] - b_g[None, :])
    tl.store(o + i[:, None] * BT + i[None, :], b_A)
```

Good:

```python
@triton.jit
def kernel(g, k, o, T, BT: tl.constexpr):
    i = tl.arange(0, BT)
    b_g = tl.load(g + i, mask=i < T, other=0)
    b_k = tl.load(k + i, mask=i < T, other=0)
    causal = i[:, None] >= i[None, :]
    b_A = b_k[:, None] * b_k[None, :]
    b_A = tl.where(causal, b_A * tl.exp(b_g[:, None] - b_g[None, :]), 0)
    tl.store(o + i[:, None] * BT + i[None, :], b_A)
```

## Do this instead
Select with `where`, and mask the exponent before exp, not the result after it. Give masked lanes a value that every
later step can take: minus infinity for a log gate.

## Seen in
flash-linear-attention #99, #694 and commit 0dc10ac2; tilelang #2461.

## Known limits
Whether gates are ever strong enough to overflow is not known here. Only gates that are subtracted from are looked at:
a reference minus the zeros is taken to be a decay. In a `where`, an index counts as bounded if one with as many lanes
is. Exponentials behind helper functions of another
name than exp and exp2 are not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import gate_rows, selects, tiles
from deltaproof.audit.flow.access import LOADS, accesses
from deltaproof.audit.flow.selected_products import sums, tells_length, through_selects
from deltaproof.audit.flow.trace import resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project


class MaskByMultiply(Rule):
    """HZ202."""

    code = "HZ202"
    name = "mask-by-multiply"
    triggers = ("triton", "tilelang")

    def check(self, module: Module, project: Project) -> Iterator[Seen]:
        """Yield products that turn a masked lane into NaN."""
        if "exp" not in module.text and "log" not in module.text:
            return
        for function in module.functions:
            if function.kind in ("triton", "gluon"):
                told: set[int] = set()
                for seen in (*_past_the_end(function), *_all_pairs(function), *_mask_factors(function)):
                    if id(seen.node) not in told:
                        told.add(id(seen.node))
                        yield seen
            elif module.holds("tilelang") and tiles.is_tile_kernel(function):
                yield from _unstored(function)


def _past_the_end(kernel: Function) -> Iterator[Seen]:
    loads = {id(access.call): access for access in accesses(kernel) if access.kind == "load"}
    told: set[int] = set()
    for consumer, operand, summed in sums(kernel):
        for factor, conditions in through_selects(kernel, operand):
            if not selects.is_exp(kernel, factor) or id(factor) in told:
                continue
            assert isinstance(factor, ast.Call)
            inner = resolved(kernel, factor.args[0], 2)
            if not isinstance(inner, ast.BinOp) or not isinstance(inner.op, ast.Sub):
                continue
            gate = gate_rows.zero_filled(kernel, inner.left, loads, summed)
            if gate is None or gate_rows.whole(kernel, gate):
                continue
            pairs = bool(conditions) and selects.outer_difference(kernel, factor) is not None
            reference = gate_rows.reference(kernel, inner.right, gate, loads)
            if (reference is None and not pairs) or (reference is not None and gate_rows.centred(kernel, reference)):
                continue
            if any(tells_length(kernel, condition, gate.pointer) for condition in conditions):
                continue
            told.add(id(factor))
            name = selects.last_name(kernel, consumer)
            after = "; the select that follows keeps such rows" if conditions else ""
            yield Hit(
                kernel.module,
                factor,
                kernel,
                f"rows past the end have 0 for `{ast.unparse(inner.left)}`, so `{ast.unparse(factor)}` can be "
                f"infinite there, and the product with zeros that `{name}` sums is NaN{after}.",
                "likely",
                "Select with `where` on the row mask, or load minus infinity for the gate of such rows.",
                (
                    Quote(kernel.module, gate.call, "zeros past the end"),
                    Quote(kernel.module, consumer, "sums over these rows"),
                ),
            )


def _all_pairs(kernel: Function) -> Iterator[Seen]:
    for call in kernel.calls:
        if not selects.is_exp(kernel, call) or selects.outer_difference(kernel, call) is None:
            continue
        if not _multiplied(kernel, call):
            continue
        later = selects.selected_later(kernel, call)
        if later is not None:
            line = getattr(later, "lineno", 0)
            yield Drop(kernel.module, call, kernel, f"selected by a mask at line {line}")
            continue
        rows, columns = selects.outer_difference(kernel, call) or (call, call)
        if not _gate(kernel, rows) or not _gate(kernel, columns):
            continue
        yield Hit(
            kernel.module,
            call,
            kernel,
            f"`{ast.unparse(call)}` is formed for every pair of rows, also where it overflows, and multiplied; no "
            "`where` follows, and zero times infinity is NaN.",
            "likely",
            "Put `where` with the causal mask around the difference before exp, or around the product.",
        )


def _gate(kernel: Function, expr: ast.expr) -> bool:
    value = gate_rows.bare(kernel, expr)
    if isinstance(value, ast.Call):
        name = selects.last_name(kernel, value)
        return name in LOADS or name == "cumsum"
    return False


def _multiplied(kernel: Function, call: ast.Call) -> bool:
    parent = kernel.parents.get(call)
    while isinstance(parent, ast.UnaryOp):
        parent = kernel.parents.get(parent)
    if isinstance(parent, ast.AugAssign):
        return isinstance(parent.op, ast.Mult)
    return isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Mult)


def _mask_factors(kernel: Function) -> Iterator[Seen]:
    for node in kernel.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            pairs = [(node.left, node.right), (node.right, node.left)]
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult) and isinstance(node.target, ast.Name):
            before = kernel.flow.before(node.target.id, node)
            pairs = [(node.value, each.value) for each in before if each.value is not None and each.kind == "assign"]
        else:
            continue
        for mask, value in pairs:
            if not _is_mask(kernel, mask):
                continue
            bad = next((each for each in selects.product_parts(kernel, value) if _may_overflow(kernel, each)), None)
            if bad is not None:
                yield Hit(
                    kernel.module,
                    node,
                    kernel,
                    f"the mask `{ast.unparse(mask)}` is multiplied onto `{ast.unparse(bad)}`, which can be infinite or "
                    "NaN where the mask is zero.",
                    "likely",
                    "Select with `where(mask, value, 0)`.",
                )
                break


def _is_mask(kernel: Function, expr: ast.expr) -> bool:
    expr = gate_rows.bare(kernel, expr)
    while isinstance(expr, ast.Subscript):
        expr = gate_rows.bare(kernel, expr.value)
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, ast.BitAnd):
        return _is_mask(kernel, expr.left)
    return isinstance(expr, ast.Compare) and any(isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for op in expr.ops)


def _may_overflow(kernel: Function, expr: ast.expr) -> bool:
    if (
        isinstance(expr, ast.Call)
        and expr.args
        and selects.last_name(kernel, expr) in (*selects.EXPS, "log", "log2", "rsqrt")
    ):
        inner = resolved(kernel, expr.args[0], 2)
        return not (isinstance(inner, ast.Call) and selects.last_name(kernel, inner) in ("minimum", "where", "min"))
    return False


def _unstored(function: Function) -> Iterator[Seen]:
    for store, test in tiles.padded_stores(function):
        reader = tiles.read_elsewhere(function, store.buffer)
        if reader is not None:
            yield Hit(
                function.module,
                store.statement,
                function,
                f"`{store.buffer}` is stored only where `{ast.unparse(test)}`, but `{reader.name}` reads its padding "
                "rows too; a NaN left there survives the multiplication by zero.",
                "likely",
                "Store zeros in the padding rows.",
                (Quote(function.module, test, "no other branch stores"), Quote(reader.module, reader.node, "reads it")),
            )


RULE = MaskByMultiply()
