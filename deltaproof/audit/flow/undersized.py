"""Stores that a buffer's size, or a sibling's selection, does not allow for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.bounds import is_tile_size
from deltaproof.audit.flow.polynomials import indices
from deltaproof.audit.flow.trace import called_name, names_in, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project

MAKERS = ("empty", "zeros", "new_empty", "new_zeros")


@dataclass(frozen=True)
class Undersized:
    """A buffer that lacks a dimension by which a kernel strides where it stores.

    Attributes:
        name: the buffer's name in the host function.
        allocation: where it is made.
        launch: the launch.
        store: the kernel's store.
        param: the kernel's parameter that it strides by.
        dimension: what the launch passes for it.
    """

    name: str
    allocation: ast.Call
    launch: Launch
    store: Access
    param: str
    dimension: str


@dataclass(frozen=True)
class Below:
    """A comparison ``index < limit``, as texts."""

    node: ast.Compare
    index: str
    limit: str


@dataclass(frozen=True)
class TileStore:
    """An element store of a TileLang kernel."""

    node: ast.Assign
    text: str


def undersized(module: Module, project: Project) -> Iterator[Undersized]:
    """Yield the buffers that a module's launches hand to kernels that stride by a dimension the buffer lacks."""
    for launch in module.launches:
        kernel = project.kernel_of(launch)
        if kernel is None or kernel.kind not in ("triton", "gluon"):
            continue
        given = launch.bound(kernel)
        seen: set[str] = set()
        for store in accesses(kernel):
            handed = given.get(store.base)
            if store.kind == "load" or store.base in seen or not isinstance(handed, ast.Name):
                continue
            made = _made(launch.host, handed)
            if made is None:
                continue
            seen.add(store.base)
            known = set().union(*(_names(launch.host, each) for each in _dimensions(made)))
            for param in _strides(kernel, store):
                dimension = given.get(param)
                if not isinstance(dimension, ast.Name) or not known or dimension.id in known:
                    continue
                if _factor_of(launch.host, dimension.id, known):
                    continue
                if not _is_other(launch.host, dimension) and not _names(launch.host, dimension) & known:
                    yield Undersized(handed.id, made, launch, store, param, dimension.id)
                    break


def _made(host: Function, name: ast.Name) -> ast.Call | None:
    value = resolved(host, name)
    if not isinstance(value, ast.Call) or called_name(host, value).rpartition(".")[2] not in MAKERS:
        return None
    dimensions = _dimensions(value)
    plain = all(
        isinstance(node, (ast.Name, ast.BinOp, ast.Constant, ast.operator, ast.Load))
        for each in dimensions
        for node in ast.walk(each)
    )
    return value if plain and len(dimensions) >= 3 else None


def _dimensions(made: ast.Call) -> list[ast.expr]:
    if len(made.args) == 1 and isinstance(made.args[0], (ast.Tuple, ast.List)):
        return list(made.args[0].elts)
    return list(made.args)


def _names(host: Function, expr: ast.expr) -> set[str]:
    found = names_in(expr)
    for node in ast.walk(expr):
        if isinstance(node, ast.Name):
            found |= names_in(resolved(host, node))
    return found


def _factor_of(host: Function, dimension: str, known: set[str]) -> bool:
    """Return whether a function asserts that one of the buffer's dimensions is a product that holds this one."""
    for node in host.nodes:
        if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
            continue
        sides = [node.test.left, node.test.comparators[0]]
        for whole, parts in (sides, sides[::-1]):
            product = isinstance(parts, ast.BinOp) and isinstance(parts.op, ast.Mult)
            if not product or not isinstance(node.test.ops[0], ast.Eq):
                continue
            if ast.unparse(whole) in known and dimension in names_in(parts):
                return True
    return False


def _is_other(host: Function, name: ast.Name) -> bool:
    """Return whether a name is a stride, a size read off another tensor, or a constant: it says nothing here."""
    return isinstance(resolved(host, name), (ast.Call, ast.Subscript, ast.Attribute, ast.Constant))


def _strides(kernel: Function, store: Access) -> list[str]:
    """Return the parameters that multiply a program id in a store's address, batch and heads among them."""
    pointer = store.pointer if store.block is None else store.block.base
    found: dict[str, None] = {}
    for poly in [] if pointer is None else indices(kernel).pointers(pointer):
        for product, count in poly:
            names = [one.text for one in product if one.kind == "name" and one.text in kernel.param_names]
            if count == 1 and len(names) >= 2 and any(one.kind == "pid" for one in product):
                found.update(dict.fromkeys(name for name in names if not is_tile_size(name)))
    return list(found)


def unselected(kernel: Function) -> Iterator[tuple[TileStore, Below]]:
    """Yield TileLang stores of rows that a sibling selects by a bound, whose own value no selection made."""
    tensors = {param.name for param in kernel.params if "Tensor" in param.annotation}
    bounds = []
    selected: set[str] = set()
    stores: list[tuple[ast.Assign, ast.Subscript]] = []
    for node in kernel.nodes:
        if isinstance(node, ast.Call) and called_name(kernel, node).endswith("if_then_else") and node.args:
            test = node.args[0]
            if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Lt):
                continue
            if not isinstance(test.comparators[0], ast.Constant):
                bounds.append(Below(test, ast.unparse(test.left), ast.unparse(test.comparators[0])))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            target = node.targets[0]
            if isinstance(target.value, ast.Name):
                if "if_then_else" in ast.unparse(node.value):
                    selected.add(target.value.id)
                elif target.value.id in tensors:
                    stores.append((node, target))
    for node, target in stores:
        places = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
        texts = {ast.unparse(each) for each in places}
        bound = next((each for each in bounds if each.index in texts and not each.index.isidentifier()), None)
        value = node.value
        local = value.value.id if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) else ""
        guarded = any(isinstance(each, (ast.If, ast.IfExp)) for each in kernel.ancestors(node))
        own_end = bound is not None and _ends_with(kernel, target, places, bound)
        if bound is not None and local and local not in {*selected, *tensors} and not guarded and not own_end:
            yield TileStore(node, ast.unparse(target)), bound


def _ends_with(kernel: Function, target: ast.Subscript, places: list[ast.expr], bound: Below) -> bool:
    """Return whether a limit is made of the tensor's own dimension: the compiler keeps stores inside of that."""
    note = next((each.annotation for each in kernel.params if each.name == ast.unparse(target.value)), "")
    tensor = ast.parse(note, mode="eval").body if note else None
    shape = tensor.args[0] if isinstance(tensor, ast.Call) and tensor.args else None
    place = [ast.unparse(each) for each in places].index(bound.index)
    if not isinstance(shape, (ast.List, ast.Tuple)) or place >= len(shape.elts):
        return False
    names = names_in(ast.parse(bound.limit, mode="eval"))
    return bool(names) and names <= names_in(shape.elts[place])
