"""Tensors of stride 0: what ``expand`` returns, handed to compiled code that walks by sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow import layouts
from deltaproof.audit.flow.access import accesses
from deltaproof.audit.flow.indices import reached_names
from deltaproof.audit.flow.trace import alternatives

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

_EXPANDS = ("expand", "expand_as", "broadcast_to")
_STRIDE = re.compile(r"(^|_)s(tride)?s?_|stride", re.IGNORECASE)
_SAME = ("unsqueeze", "squeeze", "detach", "transpose", "permute")
_LOADS = re.compile(r"build_and_load|load_inline|cpp_extension\.load|^(get|load)_\w*module$|\.(get|load)_\w*module$")


@dataclass(frozen=True)
class Expanded:
    """One such argument.

    Attributes:
        call: who gets it.
        argument: as it stands in the call.
        made: the call that expands.
        why: what the callee does with it.
    """

    call: ast.Call
    argument: ast.expr
    made: ast.Call
    why: str


def expanded(host: Function, project: Project) -> Iterator[Expanded]:
    """Yield the arguments of launches and extension calls that have axes of stride 0."""
    if not any(isinstance(call.func, ast.Attribute) and call.func.attr in _EXPANDS for call in host.calls):
        return
    launches = {launch.call: launch for launch in host.launches}
    for call in host.calls:
        if call in launches:
            yield from _launched(launches[call], project)
        elif isinstance(call.func, ast.Attribute) and _is_extension(host, call.func.value):
            for argument in (*call.args, *(word.value for word in call.keywords)):
                made = _made(host, argument)
                if made is not None and not _strides_passed(call, argument):
                    yield Expanded(call, argument, made, f"`{ast.unparse(call.func)}` is compiled code")


def _made(host: Function, argument: ast.expr) -> ast.Call | None:
    """Return the call that gave an argument axes of stride 0, if no copy or check comes after it."""
    if isinstance(argument, ast.Name) and layouts.checked(host, argument.id, strides=False):
        return None
    for value in alternatives(host, argument):
        parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
        for part in parts:
            while isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
                if part.func.attr in _EXPANDS:
                    return part
                if part.func.attr not in _SAME:
                    break
                part = part.func.value
    return None


def _strides_passed(call: ast.Call, argument: ast.expr) -> bool:
    text = ast.unparse(argument)
    return any(
        isinstance(node, ast.Attribute) and node.attr.startswith("stride") and ast.unparse(node.value) == text
        for node in ast.walk(call)
    )


def _launched(launch: Launch, project: Project) -> Iterator[Expanded]:
    """Yield the expanded arguments that a kernel walks with a product of sizes."""
    given = (*launch.call.args, *(word.value for word in launch.call.keywords))
    kernel = project.kernel_of(launch) if any(_made(launch.host, each) is not None for each in given) else None
    if kernel is None:
        return
    bound = launch.bound(kernel)
    strides = {name for name in kernel.param_names if _STRIDE.search(name)}
    told: set[str] = set()
    for access in accesses(kernel):
        argument = bound.get(access.base)
        made = None if argument is None or access.base in told else _made(launch.host, argument)
        if argument is None or made is None or _strides_passed(launch.call, argument):
            continue
        if access.kind == "load" and access.ranges and not reached_names(kernel, access.pointer) & strides:
            told.add(access.base)
            yield Expanded(launch.call, argument, made, f"`{kernel.name}` walks it by sizes")


def _is_extension(host: Function, receiver: ast.expr) -> bool:
    """Return whether an expression is an extension that the project compiles and loads itself."""
    if isinstance(receiver, ast.Call):
        return _LOADS.search(ast.unparse(receiver.func)) is not None
    if not isinstance(receiver, ast.Name):
        return False
    around: Function | None = host
    while around is not None:
        for each in around.flow.definitions(receiver.id):
            if each.value is not None and isinstance(each.value, ast.Call):
                return _LOADS.search(ast.unparse(each.value.func)) is not None
            return False
        around = around.outer
    return False
