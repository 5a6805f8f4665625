"""Memory from ``torch.empty``: where a host function makes it, and which kernel parameter it becomes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.model.names import dotted

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

MAKERS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Allocation:
    """An assignment whose value may be uninitialised memory.

    Attributes:
        function: the host function.
        statement: the assignment.
        call: the call that makes it.
        name: the variable.
    """

    function: Function
    statement: ast.Assign
    call: ast.Call
    name: str


@dataclass(frozen=True)
class Handed:
    """A value that a host function hands to a kernel.

    Attributes:
        host: the function that hands it over.
        kernel: the kernel.
        param: the kernel's parameter.
        value: the host's expression.
        call: the launch, or the call that launches.
    """

    host: Function
    kernel: Function
    param: str
    value: ast.expr
    call: ast.Call


def empty_call(expr: ast.expr) -> ast.Call | None:
    """Return the call that makes uninitialised memory, also in a branch of ``a if c else b``; views are followed."""
    if isinstance(expr, ast.IfExp):
        return empty_call(expr.body) or empty_call(expr.orelse)
    if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Attribute):
        return None
    if expr.func.attr in MAKERS and dotted(expr.func.value).partition(".")[0] not in ("np", "numpy"):
        return None if any(word.arg in ("pin_memory",) for word in expr.keywords) else expr
    if expr.func.attr in ("view", "reshape", "transpose", "permute", "unsqueeze", "squeeze"):
        return empty_call(expr.func.value)
    return None


def allocations(function: Function) -> list[Allocation]:
    """Return the assignments of a function that bind one name to uninitialised memory, in source order."""
    known: list[Allocation] | None = function.__dict__.get("_allocations")
    if known is not None:
        return known
    found = []
    for node in function.nodes:
        if not isinstance(node, ast.Assign):
            continue
        pairs = [(target, node.value) for target in node.targets]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                pairs += zip(target.elts, value.elts, strict=True)
            call = empty_call(value)
            if call is not None and isinstance(target, ast.Name):
                found.append(Allocation(function, node, call, target.id))
    function.__dict__["_allocations"] = found
    return found


def empties_behind(function: Function, expr: ast.expr) -> list[Allocation]:
    """Return the allocations of uninitialised memory that an expression may be, through aliases and views."""
    while isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr in ("view", "flatten"):
        expr = expr.func.value
    if not isinstance(expr, ast.Name) or expr not in function.parents:
        return []
    mine = {(each.statement, each.name): each for each in allocations(function)}
    found = []
    for reached in function.flow.reaching(expr.id, expr):
        each = mine.get((reached.node, expr.id))  # type: ignore[arg-type]
        if each is not None and not filled(each):
            found.append(each)
    return found


def filled(allocation: Allocation) -> bool:
    """Return whether the host itself gives the memory a content: ``fill_``, ``zero_``, ``copy_`` or ``x[...] =``."""
    for node in allocation.function.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("fill_", "zero_", "copy_") and dotted(node.func.value) == allocation.name:
                return True
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and dotted(target.value) == allocation.name:
                    return True
    return False


def handed(function: Function, project: Project) -> list[Handed]:
    """Return what a host function hands to kernels: in launches, and in calls that name a kernel and a dict."""
    known: list[Handed] | None = function.__dict__.get("_handed")
    if known is None:
        known = function.__dict__["_handed"] = list(_handed(function, project))
    return known


def _handed(function: Function, project: Project) -> Iterator[Handed]:
    for launch in function.launches:
        kernel = project.kernel_of(launch)
        if kernel is not None:
            for param, value in launch.bound(kernel).items():
                yield Handed(function, kernel, param, value, launch.call)
    for call in function.calls:
        if isinstance(call.func, ast.Subscript):
            continue
        given = [*call.args, *(word.value for word in call.keywords)]
        tables = [each for each in given if isinstance(each, ast.Dict) and len(each.keys) > 2]
        for each in given if tables else []:
            kernel = project.function(function.module.resolve(each), function.module) if dotted(each) else None
            if kernel is None or not kernel.is_kernel:
                continue
            for table in tables:
                for key, value in zip(table.keys, table.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value in kernel.param_names:
                        yield Handed(function, kernel, str(key.value), value, call)


def _handed_here(kernel: Function, project: Project) -> list[Handed]:
    """Return what the host functions of a kernel's own file hand to it; all kernels of the file at once."""
    module = kernel.module
    known: dict[int, list[Handed]] | None = module.__dict__.get("_handed_here")
    if known is None:
        known = module.__dict__["_handed_here"] = {}
        for function in module.functions:
            for each in () if function.is_kernel else handed(function, project):
                known.setdefault(id(each.kernel), []).append(each)
    return known.get(id(kernel), [])


def handers(kernel: Function, project: Project) -> list[Handed]:
    """Return what any host function hands to a kernel."""
    known: list[Handed] | None = kernel.__dict__.get("_handers")
    if known is None:
        hosts = {id(launch.host): launch.host for launch in project.launches_of(kernel)}
        known = [each for host in hosts.values() for each in handed(host, project) if each.kernel is kernel]
        known += [each for each in _handed_here(kernel, project) if id(each.host) not in hosts]
        kernel.__dict__["_handers"] = known
    return known


def returned(function: Function, name: str) -> bool:
    """Return whether a function returns a variable, or a view of it; what it gives to a call does not count."""
    for node in function.nodes:
        if isinstance(node, ast.Return) and node.value is not None:
            for each in node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]:
                while isinstance(each, (ast.Attribute, ast.Subscript)) or (
                    isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute)
                ):
                    each = each.func if isinstance(each, ast.Call) else each.value
                if isinstance(each, ast.Name) and each.id == name:
                    return True
    return False


def touched_before(handed: Handed, made: Allocation) -> int | None:
    """Return the line between allocation and launch that uses the memory, if there is one."""
    for node in made.function.nodes:
        if (
            isinstance(node, ast.Name)
            and node.id == made.name
            and isinstance(node.ctx, ast.Load)
            and made.statement.lineno < node.lineno < handed.call.lineno
        ):
            return node.lineno
    return None


def reset_by_tuner(kernel: Function, param: str) -> bool:
    """Return whether the tuner is told to give a parameter a content: it names it, in a hook of a config too."""
    tuned = kernel.decorator("autotune")
    return tuned is not None and any(
        isinstance(node, ast.Constant) and node.value == param
        for given in (*tuned.args, *(word.value for word in tuned.keywords if word.arg != "key"))
        for node in ast.walk(given)
    )
