"""Launches that cover a size in parts: the offset of the part against the part's size in the kernel's mask."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.trace import addends, resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

_STEPPED = re.compile(r"^[ \t]+for \w+ in range\([^,\n]+,[^,\n]+,", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A store whose mask holds an index that has the part's offset in it against the part's size.

    Attributes:
        launch: the launch in the host's loop.
        loop: the loop.
        offset: the kernel's parameter for where the part starts.
        size: the kernel's parameter for how many rows the part has.
        store: the store.
        test: the comparison.
    """

    launch: Launch
    loop: ast.For
    offset: str
    size: str
    store: Access
    test: ast.Compare


def masked_away(kernel: Function, project: Project) -> Iterator[Part]:
    """Yield stores that do nothing in every launch but the first: ``start + i < min(step, whole - start)``.

    Only in modules that hold such a loop themselves.
    """
    found = list(_shifted(kernel)) if kernel.module.holds(_STEPPED) else []
    for launch in project.launches_of(kernel) if found else ():
        host = launch.host
        for loop in host.ancestors(launch.call):
            if not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Name) or not _steps(host, loop):
                continue
            bound = launch.bound(kernel)
            for store, test, offsets, size in found:
                starts = [each for each in offsets if each in bound and _is(host, bound[each], loop.target.id)]
                if starts and size in bound and _rest(host, bound[size], loop.target.id):
                    yield Part(launch, loop, starts[0], size, store, test)


def _shifted(kernel: Function) -> Iterator[tuple[Access, ast.Compare, list[str], str]]:
    """Yield stores with a mask that holds a sum with parameters in it against a parameter."""
    params = kernel.param_names - kernel.constexprs
    for access in accesses(kernel):
        for test in access.conditions if access.kind == "store" else ():
            if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Lt):
                continue
            limit = test.comparators[0]
            if isinstance(limit, ast.Name) and limit.id in params:
                terms = sorted({term.id for term in addends(kernel, test.left) if isinstance(term, ast.Name)} & params)
                if terms:
                    yield access, test, terms, limit.id


def _steps(host: Function, loop: ast.For) -> bool:
    """Return whether a loop runs over a range in steps."""
    made = loop.iter
    return isinstance(made, ast.Call) and host.called(made) == "range" and len(made.args) == 3


def _is(host: Function, value: ast.expr, name: str) -> bool:
    value = resolved(host, value, 3)
    return isinstance(value, ast.Name) and value.id == name


def _rest(host: Function, value: ast.expr, name: str) -> bool:
    """Return whether a value is what is left from a start on: ``x - start``, or the smaller of it and a step."""
    value = resolved(host, value, 3)
    if isinstance(value, ast.Call) and host.called(value) == "min":
        return any(_rest(host, each, name) for each in value.args)
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub) and _is(host, value.right, name)
