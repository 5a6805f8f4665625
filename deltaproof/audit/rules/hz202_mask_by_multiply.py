"""Garbage, infinity or NaN is multiplied by zero where it should be deselected; or exp comes before the mask.

## What it does
Looks at products with an exponential in kernels: of a gate that is loaded with zeros behind the sequence's end, minus
a reference from another row, where the product is summed over these rows; and of the difference of all pairs of rows,
where no `where` with an ordered mask follows. It reports masks that are multiplied onto an exponential, a quotient or
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
Whether gates are ever strong enough to overflow is not known here. Exponentials behind helper functions of another
name than exp and exp2 are not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaproof.audit.flow import selects, tiles
from deltaproof.audit.flow.access import LOADS, Access, accesses, arguments
from deltaproof.audit.flow.trace import alternatives, origins, resolved
from deltaproof.audit.rule import Drop, Hit, Quote, Rule, Seen

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

_TIME = re.compile(r"T|L|S|N_CTX|[Tt]_\w+|\w*seq_?len\w*|\w*seqlen\w*")


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
            elif "tilelang" in module.text and tiles.is_tile_kernel(function):
                yield from _unstored(function)


def _past_the_end(kernel: Function) -> Iterator[Seen]:
    loads = {id(access.call): access for access in accesses(kernel) if access.kind == "load"}
    told: set[int] = set()
    for dot in kernel.calls_of("tl.dot", "language.dot"):
        for place, operand in enumerate(dot.args[:2]):
            turned = _turned(kernel, operand)
            summed = "rows" if (place == 1) is not turned else "columns"
            for factor in selects.product_parts(kernel, operand):
                if not selects.is_exp(kernel, factor) or id(factor) in told:
                    continue
                assert isinstance(factor, ast.Call)
                inner = resolved(kernel, factor.args[0], 2)
                if not isinstance(inner, ast.BinOp) or not isinstance(inner.op, ast.Sub):
                    continue
                gate = _zero_filled(kernel, inner.left, loads, summed)
                if gate is None or _same_load(kernel, inner.right, gate, loads) or _whole(kernel, gate):
                    continue
                told.add(id(factor))
                yield Hit(
                    kernel.module,
                    factor,
                    kernel,
                    f"rows past the end have 0 for `{ast.unparse(inner.left)}`, so "
                    f"`{ast.unparse(factor)}` can be infinite there, and the product with zeros that `dot` sums is "
                    "NaN.",
                    "likely",
                    "Select with `where` on the row mask, or load minus infinity for the gate of such rows.",
                    (
                        Quote(kernel.module, gate.call, "zeros past the end"),
                        Quote(kernel.module, dot, "sums over these rows"),
                    ),
                )


def _whole(kernel: Function, gate: Access) -> bool:
    """Return whether a tile lies before the program's own one, in a loop up to it: then all its rows exist."""
    where = origins(kernel, gate.pointer).names
    for around in kernel.ancestors(gate.call):
        if (
            isinstance(around, ast.For)
            and isinstance(around.target, ast.Name)
            and around.target.id in where
            and isinstance(around.iter, ast.Call)
            and around.iter.args
        ):
            stop = around.iter.args[0 if len(around.iter.args) == 1 else 1]
            until = origins(kernel, stop)
            ends = until.calls_any("min", "minimum") or any(_TIME.fullmatch(name) for name in until.names)
            if until.calls_any("program_id") and not ends:
                return True
    return False


def _turned(kernel: Function, operand: ast.expr) -> bool:
    expr = resolved(kernel, operand, 2)
    while isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
        expr = expr.func.value
    return isinstance(expr, ast.Call) and selects.last_name(kernel, expr) == "trans"


def _zero_filled(kernel: Function, expr: ast.expr, loads: dict[int, Access], summed: str) -> Access | None:
    """Return the load of a tile whose rows behind the end are zeros, if these are the rows that are summed over."""
    shape = selects.broadcast(expr)
    if shape and shape != summed:
        return None
    if shape:
        expr = expr.value  # type: ignore[attr-defined]
    value = _bare(kernel, expr)
    access = loads.get(id(value))
    if access is None:
        return None
    if access.boundary_check is not None:
        axis = _time_axis(access, bool(shape))
        return access if axis == ("rows" if shape else summed) else None
    if access.mask is None or (access.other is not None and not _is_zero(access.other)):
        return None
    axis = "flat" if shape else summed
    return access if _masked_along(kernel, access.mask, axis) else None


def _masked_along(kernel: Function, mask: ast.expr, axis: str) -> bool:
    """Return whether a mask holds a row index against the length, along "rows", "columns" or in a "flat" mask."""
    mask = resolved(kernel, mask)
    if isinstance(mask, ast.BinOp) and isinstance(mask.op, ast.BitAnd):
        return _masked_along(kernel, mask.left, axis) or _masked_along(kernel, mask.right, axis)
    if isinstance(mask, ast.Subscript):
        return selects.broadcast(mask) == axis and _masked_along(kernel, mask.value, "flat")
    if not isinstance(mask, ast.Compare) or len(mask.ops) != 1 or not isinstance(mask.ops[0], ast.Lt):
        return False
    left = mask.left
    if axis != "flat":
        if selects.broadcast(left) != axis:
            return False
        left = left.value  # type: ignore[attr-defined]
    bound = ast.unparse(mask.comparators[0])
    return _TIME.fullmatch(bound) is not None and origins(kernel, left).calls_any("arange")


def _time_axis(access: Access, flat: bool) -> str:
    """Return whether time runs along "rows" or "columns" of a checked block, also where branches make it differently.

    Args:
        access: the load.
        flat: whether the block is to have one dimension; its broadcast says then which way it runs: "rows" of it are
            what is asked for.
    """
    for each in alternatives(access.function, access.pointer):
        if not isinstance(each, ast.Call) or selects.last_name(access.function, each) != "make_block_ptr":
            continue
        shape = arguments(each, ("base", "shape", "strides", "offsets", "block_shape", "order")).get("shape")
        sizes = [ast.unparse(size) for size in shape.elts] if isinstance(shape, (ast.Tuple, ast.List)) else []
        times = [place for place, size in enumerate(sizes) if _TIME.fullmatch(size)]
        checked = ast.unparse(access.boundary_check) if access.boundary_check is not None else ""
        if len(times) == 1 and len(sizes) == (1 if flat else 2) and str(times[0]) in checked:
            return "rows" if times[0] == 0 else "columns"
    return ""


def _bare(kernel: Function, expr: ast.expr) -> ast.expr:
    for _ in range(4):
        expr = resolved(kernel, expr)
        if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "to":
            expr = expr.func.value
        else:
            break
    return expr


def _is_zero(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Constant) and expr.value in (0, 0.0)


def _same_load(kernel: Function, expr: ast.expr, gate: Access, loads: dict[int, Access]) -> bool:
    """Return whether the reference is no load of its own: then it says nothing about a sign."""
    if isinstance(expr, ast.Subscript):
        expr = expr.value
    other = loads.get(id(_bare(kernel, expr)))
    return other is None or other is gate


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
    value = _bare(kernel, expr)
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
    expr = _bare(kernel, expr)
    while isinstance(expr, ast.Subscript):
        expr = _bare(kernel, expr.value)
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
