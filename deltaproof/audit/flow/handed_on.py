"""Options that one call of a function hands on and another call beside it does not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.options import arguments
from deltaproof.audit.flow.trace import names_in, origins
from deltaproof.audit.model.source import Unreadable

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.project import Project

_SEQUENCES = re.compile(r"^(cu_?seqlens?(_[qk])?|offsets|seq_idx|cp_context|chunk_indices|indices|ignore_index)$")
_OUTPUTS = re.compile(r"^(d[a-z]{1,2}|out\w*|return_\w+|recompute\w*|grad_\w+)$")
LEAST_SHARED = 2
"""So many variables are in both calls, or one of them gives what the other one takes."""


@dataclass(frozen=True)
class Lost:
    """A call that lacks an option.

    Attributes:
        call: the call.
        target: the function it calls; None where it stands outside the tree.
        option: the target's parameter.
        other: the call that hands the option on.
    """

    call: ast.Call
    target: Function | None
    option: str
    other: ast.Call


def called_function(function: Function, call: ast.Call, project: Project) -> Function | None:
    """Return the function of the tree that a call names."""
    name = function.module.resolve(call.func)
    return project.function(name, function.module) if name else None


def kept_from_sibling(function: Function, project: Project) -> Iterator[Lost]:
    """Yield calls without an option on sequences that the caller has, hands on elsewhere, and the called one takes."""
    place = function.node.args
    named = [each.arg for each in (*place.posonlyargs, *place.args, *place.kwonlyargs)]
    named = [each for each in named if _SEQUENCES.search(each)]
    if not named or function.is_kernel or len(function.calls) < 2:
        return
    for param in function.params:
        name = param.name
        if param.default is None or name not in named:
            continue
        givers = [call for call in function.calls if any(_gives(each, name) for each in call.keywords)]
        if not givers:
            continue
        told = {id(each) for call in function.calls if name in _mentioned(call) for each in ast.walk(call)}
        for call in function.calls:
            if id(call) in told or not (call.args or call.keywords):
                continue
            if any(name in names_in(guard.test) for guard in guards(function, call)):
                continue
            if not isinstance(call.func, ast.Name):
                continue
            target = called_function(function, call, project)
            if target is function or (target is not None and name not in target.param_names):
                continue
            other = next((each for each in givers if _related(function, call, each)), None)
            if other is not None and (
                _needs(call, target, name, project)
                if target is not None
                else _taken_elsewhere(function, call, name, project)
            ):
                yield Lost(call, target, name, other)


def _needs(call: ast.Call, target: Function, name: str, project: Project) -> bool:
    """Return whether a function takes an option, is not given it, and does not make it up."""
    param = next((each for each in target.params if each.name == name), None)
    bound = arguments(call, target)
    if param is None or param.default is None or bound is None or name in bound:
        return False
    return not _made_up(target, name, project)


def _taken_elsewhere(function: Function, call: ast.Call, name: str, project: Project) -> bool:
    """Return whether another call of a function from outside the tree gives it this option by name."""
    called = function.called(call).rpartition(".")[2]
    if not called.islower() or any(each.arg is None for each in call.keywords) or not isinstance(call.func, ast.Name):
        return False
    if called in function.module.by_qualname or called not in function.module.imports:
        return False
    found = re.compile(rf"\b{called}\((?:[^()]|\([^()]*\))*?\b{name}\s*=\s*(?!None\b)")
    for path in project.paths:
        try:
            text = project.source(path).text
        except Unreadable:
            continue
        if f"{name}=" in text and f"{called}(" in text and found.search(text):
            return True
    return False


def _made_up(target: Function, name: str, project: Project, depth: int = 2) -> bool:
    """Return whether a function, or every one that it hands an option to, makes it itself where it is not given."""
    if any(each.kind != "param" for each in target.flow.definitions(name)):
        return True
    if not depth or target.is_kernel:
        return False
    for call in target.calls:
        if name in _mentioned(call):
            inner = called_function(target, call, project)
            if inner is None or inner is target or name not in inner.param_names:
                continue
            if _made_up(inner, name, project, depth - 1):
                return True
    return False


def _related(function: Function, call: ast.Call, giver: ast.Call) -> bool:
    """Return whether two calls work on the same data, or one on what the other returns."""
    if len(_names(call) & _names(giver)) >= LEAST_SHARED:
        return True
    given = [*giver.args, *(each.value for each in giver.keywords)]
    return any(call is inner for each in given for _, inner in origins(function, each).calls)


def by_place(function: Function) -> Iterator[tuple[ast.Call, Function, list[str]]]:
    """Yield calls whose options land in ``*args`` of a function that takes them by name only."""
    for call in function.calls:
        if len(call.args) < 2 or not isinstance(call.args[-1], ast.Name):
            continue
        target = _method(function, call)
        if target is None and isinstance(call.func, ast.Name) and call.func.id in function.module.by_qualname:
            target = function.module.by_qualname[call.func.id], 0
        if target is None or target[0].node.args.vararg is None or target[0] is function:
            continue
        callee, skipped = target
        arguments_ = callee.node.args
        places = len(arguments_.posonlyargs) + len(arguments_.args) - skipped
        named = {each.arg for each in arguments_.kwonlyargs}
        by_name = {each.arg for each in call.keywords}
        lost = [each.id for each in call.args[places:] if isinstance(each, ast.Name) and each.id in named - by_name]
        if lost:
            yield call, callee, lost


def _method(function: Function, call: ast.Call) -> tuple[Function, int] | None:
    """Return the method of the same class that ``self.name(...)`` calls, also through ``partialmethod``."""
    func = call.func
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name) or func.value.id != "self":
        return None
    if function.owner is None:
        return None
    name = func.attr
    for node in function.owner.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            made = ast.unparse(node.value.func).endswith("partialmethod") and isinstance(node.value.args[0], ast.Name)
            if made and any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
                name = node.value.args[0].id  # type: ignore[attr-defined]
    for each in reversed(function.module.functions):
        stub = any(ending.endswith("overload") for ending, _ in each.decorators)
        if each.owner is function.owner and each.name == name and not stub:
            return each, 1
    return None


def lost_in_backward(forward: Function, backward: Function, project: Project) -> Iterator[Lost]:
    """Yield calls in a backward function without an option that its forward function gives to the call's twin.

    Twins are named alike, ``fwd`` in one, ``bwd`` in the other.
    """
    twins = {}
    for call in forward.calls:
        name = forward.called(call).rpartition(".")[2]
        if "fwd" in name or "forward" in name:
            twins[name.replace("fwd", "bwd").replace("forward", "backward")] = call
    for call in backward.calls if twins else ():
        other = twins.get(backward.called(call).rpartition(".")[2])
        target = called_function(backward, call, project) if other is not None else None
        if other is None or target is None:
            continue
        source = called_function(forward, other, project)
        bound, given = arguments(call, target), arguments(other, source) if source is not None else None
        if bound is None or given is None or source is None:
            continue
        for param in target.params:
            value = given.get(param.name)
            if (
                param.default is not None
                and param.name not in bound
                and value is not None
                and not isinstance(value, ast.Constant)
                and ast.unparse(value) != ast.unparse(param.default)
                and not _OUTPUTS.search(param.name)
                and not (_SEQUENCES.search(param.name) and _made_up(target, param.name, project))
            ):
                yield Lost(call, target, param.name, other)


def lost_in_launch(function: Function, project: Project) -> Iterator[tuple[ast.Call, Function, str]]:
    """Yield launches that lack an argument which has no default, though the host has a variable of its name."""
    for launch in function.launches:
        call = launch.call
        if any(each.arg is None for each in call.keywords) or any(isinstance(each, ast.Starred) for each in call.args):
            continue
        kernel = project.kernel_of(launch)
        if kernel is None or kernel.kind != "triton" or len(call.args) + len(call.keywords) < LEAST_SHARED:
            continue
        bound = launch.bound(kernel)
        lost = [each for each in kernel.params if each.default is None and each.name not in bound]
        tuned = {
            node.value
            for _, decorator in (kernel.decorators if lost else ())
            for node in ast.walk(decorator)
            if isinstance(node, ast.Constant)
        }
        for param in lost:
            if not param.constexpr and param.name not in tuned and function.flow.reaching(param.name, call):
                yield call, kernel, param.name


def _gives(keyword: ast.keyword, name: str) -> bool:
    return keyword.arg == name and isinstance(keyword.value, ast.Name) and keyword.value.id == name


def _names(call: ast.Call) -> set[str]:
    values = [*call.args, *(each.value for each in call.keywords)]
    return {each.id for each in values if isinstance(each, ast.Name)}


def _mentioned(call: ast.Call) -> set[str]:
    return {name for each in (*call.args, *call.keywords) for name in names_in(each)}
