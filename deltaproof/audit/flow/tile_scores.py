"""Softmax over tiles of keys in TileLang: what sets the scores of keys behind the last one to minus infinity."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import Guard, guards
from deltaproof.audit.flow.tiles import tile_stores
from deltaproof.audit.flow.trace import called_name, names_in, origins, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function

_ROUNDED = ("ceildiv", "cdiv")
_SELECTS = ("if_then_else", "Select", "where")
_EXPS = ("exp", "exp2", "fast_exp", "fast_expf")


@dataclass(frozen=True)
class Score:
    """Scores whose tail takes part in a softmax.

    Attributes:
        node: the product that makes the scores, or the select that masks them by half.
        other: where the number of tiles is rounded up, or the mask of the other mode; None where the node shows it.
        message: what is wrong.
        why: what the other line shows.
        fix: what to do.
    """

    node: ast.AST
    other: ast.AST | None
    message: str
    why: str
    fix: str


def scores(function: Function) -> Iterator[Score]:
    """Yield the score tiles of a TileLang function whose keys behind the end are not masked, or masked by half.

    One for a tile: further products add to the same scores.
    """
    if not function.module.holds("reduce_max"):
        return
    told: set[str] = set()
    for product in function.calls_of("T.gemm", "language.gemm", "T.wgmma_gemm"):
        if len(product.args) < 3 or not all(isinstance(each, ast.Name) for each in product.args[1:3]):
            continue
        tile, keys = product.args[2].id, product.args[1].id  # type: ignore[attr-defined]
        if tile in told:
            continue
        around = _together(function, tile)
        if not any(_exponentiated(each, tile) for each in around):
            continue
        masks = [mask for each in around for mask in _masks(each, tile)]
        half = [found for mask in masks if (found := _half(mask)) is not None]
        if half:
            told.add(tile)
            yield half[0]
            continue
        counter = _counter(function, keys, product)
        rounded = _rounded(function, around, counter[0], counter[1]) if counter is not None else None
        if counter is None or rounded is None or _divides(function, counter[1], rounded):
            continue
        masks = [mask for mask in masks if not _reads_on(mask, rounded)]
        mode = _mode(masks)
        if masks and mode is None:
            continue
        told.add(tile)
        length = ast.unparse(rounded.args[0])
        unless = "" if mode is None else f" unless `{ast.unparse(mode)}`"
        yield Score(
            product,
            mode or rounded,
            f"the keys of the last tile beyond `{length}` are not set to -inf in `{tile}`{unless}: they take part in "
            "the softmax's maximum and sum",
            "the number of tiles is rounded up" if mode is None else "masks in this mode only",
            f"set `{tile}` to -inf where the key is at or beyond `{length}` before the maximum",
        )


def _together(function: Function, tile: str) -> list[Function]:
    """Return a function and those that work on its tile: what it calls; of a macro its callers and what they call."""
    same = [each for each in function.module.functions if each.outer is function.outer and each is not function]
    first = [function]
    if not _maximum(function, tile):
        first += [each for each in same if _calls(each, function)]
    found = list(first)
    for each in first:
        found += [other for other in same if other not in found and _calls(each, other)]
    return found


def _calls(caller: Function, other: Function) -> bool:
    return any(isinstance(call.func, ast.Name) and call.func.id == other.name for call in caller.calls)


def _maximum(function: Function, tile: str) -> bool:
    return any(
        call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == tile
        for call in function.calls_of("T.reduce_max", "language.reduce_max")
    )


def _exponentiated(function: Function, tile: str) -> bool:
    """Return whether a function takes a tile's maximum and its exponential."""
    if not _maximum(function, tile):
        return False
    for call in function.calls:
        if called_name(function, call).rpartition(".")[2] in _EXPS and call.args and tile in names_in(call.args[0]):
            return True
    return False


@dataclass(frozen=True)
class _Mask:
    """A statement that selects the elements of a tile, its condition, and whether the condition keeps or removes."""

    function: Function
    statement: ast.stmt
    condition: ast.expr
    removes: bool
    modes: list[Guard]


def _masks(function: Function, tile: str) -> list[_Mask]:
    found = []
    for store in tile_stores(function):
        if store.buffer != tile:
            continue
        around = guards(function, store.statement)
        modes = [each for each in around if each.kind == "if" and _is_mode(function, each.test)]
        value = store.statement.value
        for call in ast.walk(value):
            if isinstance(call, ast.Call) and called_name(function, call).rpartition(".")[2] in _SELECTS:
                if len(call.args) == 3:
                    infinite = ["inf" in ast.unparse(each) or "1e" in ast.unparse(each) for each in call.args[1:]]
                    found.append(_Mask(function, store.statement, call.args[0], infinite[0], modes))
            elif isinstance(call, ast.IfExp):
                found.append(_Mask(function, store.statement, call.test, "inf" in ast.unparse(call.body), modes))
        if "inf" in ast.unparse(value) or isinstance(value, ast.Subscript):
            # set under a condition on the element, or copied from a mask that was made elsewhere
            elements = [each for each in around if each.kind == "if" and each not in modes]
            if elements:
                found.append(_Mask(function, store.statement, elements[0].test, elements[0].holds, modes))
    return found


def _is_mode(function: Function, test: ast.expr) -> bool:
    """Return whether a condition is decided when the kernel is built: it names only what lies outside of it."""
    names = names_in(test)
    if not names or any(isinstance(each, (ast.Subscript, ast.Call)) for each in ast.walk(test)):
        return False
    return all(not function.flow.definitions(name) and name not in _typed(function) for name in names)


def _typed(function: Function) -> set[str]:
    """Return the parameters that are values of the device."""
    return {param.name for param in function.params if "." in param.annotation or "Tensor" in param.annotation}


def _mode(masks: list[_Mask]) -> ast.expr | None:
    """Return the condition in whose other branch nothing masks; None where no condition of that kind is around one."""
    if any(not mask.modes for mask in masks):
        return None
    branches = {(id(guard.node), guard.holds) for mask in masks for guard in mask.modes}
    for mask in masks:
        outermost = mask.modes[-1]
        if (id(outermost.node), not outermost.holds) in branches:
            return None
    return masks[0].modes[-1].test if masks and masks[0].modes[-1].holds else None


def _reads_on(mask: _Mask, rounded: ast.Call) -> bool:
    """Return whether a mask is read from memory that goes on behind the end of a split, as the next split's."""
    share = rounded.args[0]
    tests = [node for node in ast.walk(mask.condition) if isinstance(node, ast.Compare)]
    if not isinstance(share, ast.BinOp) or not isinstance(share.op, ast.FloorDiv) or len(tests) != 1:
        return False
    read = tests[0].left
    if not isinstance(read, ast.Subscript) or not isinstance(tests[0].comparators[0], ast.Constant):
        return False
    for call in mask.function.calls_of("T.copy", "language.copy"):
        if len(call.args) == 2 and ast.unparse(call.args[1]) == ast.unparse(read.value):
            return ast.unparse(share) in ast.unparse(call.args[0])
    return False


def _half(mask: _Mask) -> Score | None:
    """A select that removes keys behind the end only where another comparison of the same element holds too."""
    whole = resolved(mask.function, mask.condition)
    if isinstance(whole, ast.BoolOp):
        joined, parts = isinstance(whole.op, ast.And), whole.values
    elif isinstance(whole, ast.BinOp) and isinstance(whole.op, (ast.BitAnd, ast.BitOr)):
        joined, parts = isinstance(whole.op, ast.BitAnd), [whole.left, whole.right]
    else:
        return None
    if joined != mask.removes or len(parts) != 2:
        return None
    ends = [part for part in parts if _ends(part, mask.removes)]
    orders = [part for part in parts if part not in ends and _orders(part)]
    if len(ends) != 1 or len(orders) != 1:
        return None
    first, second = ast.unparse(orders[0]), ast.unparse(ends[0])
    return Score(
        mask.condition,
        None,
        f"elements beyond the end (`{second}`) are "
        + (f"removed only where `{first}` too" if mask.removes else f"kept where `{first}`"),
        "",
        "remove an element if either condition asks for it",
    )


def _ends(expr: ast.expr, removes: bool) -> bool:
    """Return whether a condition compares an index with a length, also one of several joined by "or"."""
    if isinstance(expr, ast.BoolOp):
        return all(_ends(each, removes) for each in expr.values)
    if isinstance(expr, ast.BinOp) and isinstance(expr.op, (ast.BitOr, ast.BitAnd)):
        return _ends(expr.left, removes) and _ends(expr.right, removes)
    if not isinstance(expr, ast.Compare) or len(expr.ops) != 1:
        return False
    length = expr.comparators[0]
    kind = (ast.GtE,) if removes else (ast.Lt,)
    return (
        isinstance(expr.ops[0], kind)
        and isinstance(length, ast.Name)
        and any(word in length.id.lower() for word in ("len", "size", "ctx", "end", "seq"))
        and isinstance(expr.left, (ast.BinOp, ast.Name))
    )


def _orders(expr: ast.expr) -> bool:
    """Return whether a condition compares two indices of an element, as a causal mask does."""
    if not isinstance(expr, ast.Compare) or len(expr.ops) != 1 or not isinstance(expr.ops[0], (ast.GtE, ast.LtE)):
        return False
    left, right = expr.left, expr.comparators[0]
    return isinstance(left, ast.BinOp) and isinstance(right, ast.BinOp)


def _counter(function: Function, keys: str, product: ast.Call) -> tuple[str, str] | None:
    """Return the counter and the size of the tiles that a buffer is filled with: ``keys[k * size : ...]``."""
    for call in function.calls_of("T.copy", "language.copy"):
        if len(call.args) < 2 or not isinstance(call.args[0], ast.Subscript) or call.lineno > product.lineno:
            continue
        into = call.args[1].value if isinstance(call.args[1], ast.Subscript) else call.args[1]
        if not isinstance(into, ast.Name) or into.id != keys:
            continue
        part = call.args[0].slice
        for each in part.elts if isinstance(part, ast.Tuple) else [part]:
            place = each.lower if isinstance(each, ast.Slice) else each
            for node in ast.walk(place) if place is not None else ():
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                    for one, other in ((node.left, node.right), (node.right, node.left)):
                        if isinstance(one, ast.Name) and isinstance(other, ast.Name) and _counts(function, one):
                            return one.id, other.id
    return None


def _counts(function: Function, name: ast.Name) -> bool:
    reached = function.flow.reaching(name.id, name)
    return bool(reached) and all(
        each.kind == "loop" or (each.kind == "param" and name.id in _typed(function)) for each in reached
    )


def _rounded(function: Function, around: list[Function], counter: str, size: str) -> ast.Call | None:
    """Return where the number of tiles is a length over the tile's size, rounded up, in the loop that counts them."""
    for each in around:
        for node in each.nodes:
            if not isinstance(node, ast.For) or not isinstance(node.target, ast.Name) or node.target.id != counter:
                continue
            for name, call in origins(each, node.iter).calls:
                if name.rpartition(".")[2] not in _ROUNDED or len(call.args) != 2:
                    continue
                places = any(isinstance(part, ast.Mult) for part in ast.walk(call.args[0]))
                if ast.unparse(call.args[1]) == size and not places:
                    return call
    return None


def _divides(function: Function, size: str, rounded: ast.Call) -> bool:
    """Return whether the file tests that something is a multiple of the tile's size, or makes lengths so."""
    around: Function | None = function
    while around is not None:
        for node in around.nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and size in names_in(node.right):
                return True
        around = around.outer
    length = names_in(rounded.args[0])
    return any("pad" in name.lower() for name in length) or not length
