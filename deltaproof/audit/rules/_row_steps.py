"""Addresses whose own parts disagree: two row strides, or a head index with another head count."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.coordinates import Address, Stride, Term, addresses, without, written
from deltaproof.audit.flow.host_sizes import stride_of
from deltaproof.audit.flow.indices import head_splits, is_head_count
from deltaproof.audit.flow.polynomials import Atom, Indices, indices
from deltaproof.audit.flow.trace import resolved
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen


def step_findings(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Yield addresses that step rows by two strides, or heads by the wrong count."""
    known = addresses(kernel)
    said: set[str] = set()
    for hit in _all(module, kernel, known, project):
        if hit.message.split("`")[1] not in said:  # once a tensor
            said.add(hit.message.split("`")[1])
            yield hit


def _all(module: Module, kernel: Function, known: list[Address], project: Project) -> list[Hit]:
    tiles = _split_tiles(module, kernel, known, project)
    return [*tiles, *_starts(module, kernel, known), *_heads(module, kernel, known)]


def _key(term: Term) -> tuple[Stride, int]:
    return term.stride, abs(term.count)


def _split_tiles(module: Module, kernel: Function, known: list[Address], project: Project) -> list[Hit]:
    """Tiles that begin at one stride and go on at another: ``i_t * BT * K + arange(BT) * H * K``."""
    found = []
    for address in known:
        for tile in sorted({term.tile for term in address.tiles()}):
            firsts = [term for term in address.tiles() if term.tile == tile]
            rows = address.ranges(tile)
            if not rows or {_key(term) for term in firsts} & {_key(term) for term in rows}:
                continue
            if not rows[0].stride and all(_is_one(kernel, term, project) for term in firsts):
                continue
            found.append(
                Hit(
                    module,
                    address.access.call,
                    kernel,
                    f"`{address.access.base}` has tiles of `{tile}` rows that begin at multiples of "
                    f"`{written(firsts[0].stride, firsts[0].count)}`, but their rows are "
                    f"`{written(rows[0].stride, rows[0].count)}` apart.",
                    "likely",
                    "Use one stride for the tile's first row and for the rows inside it.",
                )
            )
    return found


def _is_one(kernel: Function, term: Term, project: Project) -> bool:
    """Return whether a stride is that of a vector in every launch, made by the launching function: 1."""
    launches = project.launches_of(kernel)
    if len(term.stride) != 1 or not launches:
        return False
    for launch in launches:
        place = stride_of(launch.host, launch.bound(kernel).get(term.stride[0].text))
        made = None if place is None else resolved(launch.host, place[0])
        if not isinstance(made, ast.Call) or ast.unparse(made.func).rpartition(".")[2] not in (
            "empty",
            "zeros",
            "ones",
        ):
            return False
        shape = made.args[0] if len(made.args) == 1 else None
        if shape is None or isinstance(shape, (ast.Tuple, ast.List, ast.Starred, ast.Attribute)):
            return False
    return True


def _starts(module: Module, kernel: Function, known: list[Address]) -> list[Hit]:
    """Rows stepped by another stride than the sequence's first row, where sibling tensors use one stride for both."""
    agreed: dict[tuple[Atom, str], set[str]] = {}
    apart: list[tuple[Address, Term, Term]] = []
    for address in known:
        starts = address.starts(kernel)
        if len(starts) != 1:
            continue
        for tile in address.tiles():
            same = [each for each in address.tiles() if (each.index, each.tile) == (tile.index, tile.tile)]
            if any(_key(each) == _key(starts[0]) for each in same):
                agreed.setdefault((tile.index, tile.tile), set()).add(address.access.base)
            elif tile.stride:  # else it may be laid out in columns
                apart.append((address, starts[0], tile))
    found = []
    for address, start, tile in apart:
        others = agreed.get((tile.index, tile.tile), set()) - {address.access.base}
        if len(others) < 2 and not (others and address.access.base in agreed[tile.index, tile.tile]):
            continue
        sibling = next(each for each in known if each.access.base in others and each.starts(kernel))
        found.append(
            Hit(
                module,
                address.access.call,
                kernel,
                f"`{address.access.base}` starts a sequence at `{start.index.text} * {written(start.stride)}` "
                f"and a tile of it at `{tile.tile} * {written(tile.stride, tile.count)}`; "
                f"`{sibling.access.base}` uses one stride.",
                "likely",
                f"Step the rows of `{address.access.base}` by `{written(start.stride)}`.",
                [Quote(module, sibling.access.call, "a sibling with one stride for both")],
            )
        )
    return found + _block_rows(module, kernel, known)


def _block_rows(module: Module, kernel: Function, known: list[Address]) -> list[Hit]:
    """Block pointers over a sequence's rows with another stride than the base's."""
    found = []
    index = indices(kernel)
    for address in known:
        block = address.access.block
        starts = address.starts(kernel)
        if block is None or len(starts) != 1 or not isinstance(block.strides, ast.Tuple):
            continue
        if not isinstance(block.shape, ast.Tuple) or len(block.shape.elts) != len(block.strides.elts):
            continue
        rows = [
            stride
            for extent, stride in zip(block.shape.elts, block.strides.elts, strict=True)
            if isinstance(extent, ast.Name) and extent.id in ("T", "seqlen", "seq_len")
        ]
        steps = [step for each in rows if (step := _plain(index, each)) is not None]
        if len(rows) != 1 or len(steps) != 1 or steps[0] == _key(starts[0]):
            continue
        found.append(
            Hit(
                module,
                block.call,
                kernel,
                f"`{address.access.base}` starts a sequence at `{starts[0].index.text} * {written(starts[0].stride)}`, "
                f"but its rows are `{written(*steps[0])}` apart.",
                "likely",
                "Use one stride for the sequence's first row and for its rows.",
                [Quote(module, rows[0], "the stride of the rows")],
            )
        )
    return found


def _plain(index: Indices, expr: ast.expr) -> tuple[Stride, int] | None:
    poly = index.of(expr)
    return next(iter(poly)) if len(poly) == 1 else None


def _heads(module: Module, kernel: Function, known: list[Address]) -> list[Hit]:
    """Head indices of one count in rows of another count: ``(bos * H + i_hv) * V``."""
    index = indices(kernel)
    counts: dict[Atom, tuple[str, ast.AST]] = {}
    for split in head_splits(kernel):
        if split.whole:
            poly = index.of(split.node)
            if len(poly) == 1:
                ((product, _),) = poly
                if len(product) == 1:
                    counts[product[0]] = (split.count, split.node)
    if not counts or sum(is_head_count(name) for name in kernel.param_names) < 2:
        return []
    found = []
    for address in known:
        rows = address.starts(kernel)
        heads = [term for term in address.terms if term.index in counts and not term.tile]
        if len(rows) != 1 or len(heads) != 1 or rows[0].count != heads[0].count:
            continue
        more = without(rows[0].stride, heads[0].stride)
        count, node = counts[heads[0].index]
        if more is None or len(more) != 1 or more[0].text == count or not is_head_count(more[0].text):
            continue
        found.append(
            Hit(
                module,
                address.access.call,
                kernel,
                f"`{address.access.base}` has rows of `{more[0].text}` heads, but the head index counts `{count}`.",
                "likely",
                f"Use `{count}` in the stride, or the index of the `{more[0].text}` heads.",
                [Quote(module, node, "the head index")],
            )
        )
    return found
