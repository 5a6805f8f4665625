"""Addresses and head counts: no head index, two counts for one tensor, a program id split by the wrong one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.grids import grid_elements, grid_factors
from deltaproof.audit.flow.indices import HeadSplit, head_splits, is_head_count, made, products, reached_names
from deltaproof.audit.flow.narrow_vectors import narrow_vectors
from deltaproof.audit.flow.program_parts import digit
from deltaproof.audit.flow.trace import names_in
from deltaproof.audit.model.function import Function
from deltaproof.audit.model.module import Module
from deltaproof.audit.model.project import Project
from deltaproof.audit.rule import Hit, Quote, Seen

Counted = list[tuple[Access, dict[str, ast.expr]]]
"""Accesses to tensors with heads, with the head counts in their strides."""


def head_findings(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Yield what the heads of a kernel's addresses show."""
    if not any(is_head_count(name) for name in kernel.param_names):
        return
    counted = [
        (access, counts)
        for access in accesses(kernel)
        if access.base in kernel.param_names and (counts := _counts(access))
    ]
    yield from _headless(module, kernel, counted)
    yield from _baseless(module, kernel, counted)
    yield from _mixed_heads(module, kernel, counted)
    yield from _wrong_split(module, kernel, project)
    for found in narrow_vectors(kernel):
        yield Hit(
            module,
            found.access.call,
            kernel,
            f"`{found.access.base}` goes by `{found.index}` and is combined with `{found.sibling.base}`, which goes by "
            f"`{found.wide}`: with more heads there, several of them share its values.",
            "possible",
            f"Index `{found.access.base}` by `{found.wide}`, unless it has one value for each group of heads.",
            [Quote(module, found.sibling.call, "the sibling"), Quote(module, found.joined, "where both meet")],
        )


def _terms(access: Access) -> list[ast.expr]:
    block = access.block
    strides = [] if block is None or block.strides is None else [block.strides]
    return [*access.offsets, *strides]


def _counts(access: Access) -> dict[str, ast.expr]:
    """Return the head counts that an address strides by, with the product."""
    found: dict[str, ast.expr] = {}
    for term in _terms(access):
        for product, parts in products(access.function, term):
            for part in parts:
                if isinstance(part, ast.Name) and is_head_count(part.id):
                    found.setdefault(part.id, product)
    return found


def _headless(module: Module, kernel: Function, counted: Counted) -> Iterator[Seen]:
    """Addresses that stride over heads and have no head index."""
    splits = head_splits(kernel)
    if not splits:
        return
    heads = {name for split in splits for name in (split.head, split.whole) if name}
    batch = frozenset(name for split in splits for name in split.batch)
    rows = [(access, counts, reached_names(kernel, access.pointer, batch)) for access, counts in counted]
    said: set[str] = set()
    good = [access for access, _, names in rows if names & heads]
    for access, counts, names in rows:
        other = next((each for each in good if each.base != access.base), None)
        if names & heads or other is None or access.base in said:
            continue
        if _over_heads(access, batch, set(counts)):
            continue
        said.add(access.base)
        count, product = next(iter(counts.items()))
        yield Hit(
            module,
            access.call,
            kernel,
            f"`{access.base}` is strided by `{count}` heads without a head index, "
            f"while `{other.base}` is advanced by `{splits[0].head}`.",
            "likely",
            f"Advance `{access.base}` by `{splits[0].head}` as its siblings are.",
            [
                Quote(module, product, "the stride over heads"),
                Quote(module, other.call, "the sibling's address"),
                Quote(module, splits[0].node, "the head index"),
            ],
        )


def _baseless(module: Module, kernel: Function, counted: Counted) -> Iterator[Seen]:
    """Addresses of tokens that lack the batch or sequence offset which all siblings have."""
    splits = head_splits(kernel)
    heads = {name for split in splits for name in (split.head, split.whole) if name}
    batch = {name for split in splits for name in split.batch}
    if not batch or len({access.base for access, _ in counted}) < 4:
        return
    rows = [(access, counts, reached_names(kernel, access.pointer)) for access, counts in counted]
    for access, counts, names in rows:
        if (
            names & batch
            or not names & heads
            or not any(_per_token(kernel, product, heads) for product in counts.values())
        ):
            continue
        others = [row for row in rows if row[0].base != access.base and set(row[1]) & set(counts)]
        if len({row[0].base for row in others}) < 3:
            continue
        common = set.intersection(*(row[2] for row in others)) - names - heads
        base = sorted(
            (name for name in common if name in batch or _loaded(kernel, name)), key=lambda name: name in batch
        )
        if not base:
            continue
        yield Hit(
            module,
            access.call,
            kernel,
            f"`{access.base}` is not advanced by `{base[0]}`, "
            f"as all other tensors with `{next(iter(counts))}` heads are.",
            "likely",
            f"Advance `{access.base}` by `{base[0]}` too.",
            [Quote(module, others[0][0].call, "a sibling's address")],
        )
        return


def _per_token(kernel: Function, product: ast.expr, heads: set[str]) -> bool:
    """Return whether a product with a head count counts tokens: a loop's or a program's index is in it."""
    for name in reached_names(kernel, product) - heads:
        for found in made(kernel).get(name, ()):
            if found.kind == "loop":
                return True
            if isinstance(found.value, ast.Call) and kernel.called(found.value).endswith("program_id"):
                return True
    return False


def _loaded(kernel: Function, name: str) -> bool:
    return any(found.value is not None and ".load(" in ast.unparse(found.value) for found in made(kernel).get(name, ()))


def _over_heads(access: Access, batch: frozenset[str], counts: set[str]) -> bool:
    """Return whether the address covers heads by a range or a loop of its own."""
    function = access.function
    for each in access.ranges:
        if each.extent is not None and any(is_head_count(name) or "H" in name for name in names_in(each.extent)):
            return True
    for name in reached_names(function, access.pointer, batch):
        for found in made(function).get(name, ()):
            if found.kind == "loop" and found.value is not None and counts & names_in(found.value):
                return True
    return False


def _mixed_heads(module: Module, kernel: Function, counted: Counted) -> Iterator[Seen]:
    """One tensor laid out with two numbers of heads."""
    known: dict[str, dict[str, tuple[Access, ast.expr]]] = {}
    if sum(is_head_count(name) for name in kernel.param_names) < 2:
        return
    for access, counts in counted:
        for name, product in counts.items():
            known.setdefault(access.base, {}).setdefault(name, (access, product))
    for base, both in known.items():
        if len(both) != 2:
            continue
        (first, (_, one)), (second, (_, two)) = both.items()
        if {first, second} & names_in(one) & names_in(two):
            continue
        odd, usual = (one, two) if one.lineno < two.lineno else (two, one)
        yield Hit(
            module,
            odd,
            kernel,
            f"`{base}` is strided by `{first}` here and by `{second}` there: a tensor has one number of heads.",
            "likely",
            f"Use one head count for every stride of `{base}`.",
            [Quote(module, usual, "the other stride")],
        )


def _wrong_split(module: Module, kernel: Function, project: Project) -> Iterator[Seen]:
    """Program ids split by one number of heads, launched by another."""
    splits = [(split, _axis(kernel, split, project)) for split in head_splits(kernel)]
    if not splits or sum(is_head_count(name) for name in kernel.param_names) < 2:
        return
    for launch in project.launches_of(kernel):
        elements = grid_elements(launch)
        bound = {name: ast.unparse(value) for name, value in launch.bound(kernel).items()}
        for split, axis in splits:
            if axis is None or axis >= len(elements) or split.count not in bound:
                continue
            parts = grid_factors(launch, elements[axis])
            others = [
                name for name, text in bound.items() if name != split.count and is_head_count(name) and text in parts
            ]
            if len(parts) < 2 or not others or bound[split.count] in parts:
                continue
            yield Hit(
                module,
                split.node,
                kernel,
                f"`{split.whole}` counts `{others[0]}` heads in the launch's grid and is split by `{split.count}`.",
                "likely",
                f"Split it by `{others[0]}`.",
                [Quote(launch.host.module, elements[axis], "the grid")],
            )
            return


def _axis(kernel: Function, split: HeadSplit, project: Project) -> int | None:
    """Return the axis that a split's program id is, or is all that is left of."""
    if split.axis is not None:
        return split.axis
    part = digit(kernel, split.node.left, project)
    return part.axis if part is not None and part.size is None else None
