"""Tensors of a launch that a kernel walks with the stride of another one, and whether their rows may differ."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaproof.audit.flow import layouts
from deltaproof.audit.flow.access import Access, accesses
from deltaproof.audit.flow.calling import callers, is_autograd
from deltaproof.audit.flow.indices import reached_names
from deltaproof.audit.flow.skipped import base_of
from deltaproof.audit.flow.trace import resolved

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function, Launch
    from deltaproof.audit.model.project import Project

_VIEWS = ("reshape", "view", "flatten", "squeeze", "unsqueeze", "contiguous")
_FRESH = re.compile(r"^(new_)?(empty|zeros|ones|full)(_like)?$|alloc")


@dataclass(frozen=True)
class Borrowed:
    """One access that goes by another tensor's stride.

    Attributes:
        access: the access.
        base: the kernel's parameter that it starts from.
        stride: the kernel's stride parameter.
        argument: what the launch passes for the tensor.
        owner: the tensor whose stride it passes.
        entry: the function whose caller decides how one of them is laid out.
        asked: the parameter of that function.
        own: whether that is the tensor itself, not the owner of the stride.
    """

    access: Access
    base: str
    stride: str
    argument: ast.Name
    owner: ast.Name
    entry: Function
    asked: str
    own: bool


def borrowed(kernel: Function, launch: Launch, project: Project) -> list[Borrowed]:
    """Return the tensors that a launched kernel walks with another one's stride though nobody compares the two."""
    bound, host = launch.bound(kernel), launch.host
    owners: dict[str, ast.Name] = {}
    for name, value in bound.items():
        owner = _owner(host, value) if "stride" in name.lower() else None
        if owner is not None:
            owners[name] = owner
    found: list[Borrowed] = []
    said: set[str] = set()
    for access in accesses(kernel) if owners else ():
        base = base_of(kernel, access)
        argument = bound.get(base)
        if base in said or not isinstance(argument, ast.Name):
            continue
        used = sorted(name for name in reached_names(kernel, access.pointer) if name in owners)
        if not used or any(owners[name].id == argument.id for name in used):
            continue
        said.add(base)
        asked = _apart(host, argument, owners[used[0]], project)
        if asked is not None:
            found.append(Borrowed(access, base, used[0], argument, owners[used[0]], *asked))
    return found


def _owner(host: Function, value: ast.expr) -> ast.Name | None:
    """Return the tensor whose stride an argument is, the last axis left out."""
    call = resolved(host, value)
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "stride"):
        return None
    if len(call.args) != 1 or ast.unparse(call.args[0]) == "-1":
        return None
    return call.func.value if isinstance(call.func.value, ast.Name) else None


def _apart(host: Function, mine: ast.Name, owner: ast.Name, project: Project) -> tuple[Function, str, bool] | None:
    """Return who may hand over a tensor whose rows are not as far apart as the other one's."""
    if rows_compared(host, mine.id) or rows_compared(host, owner.id):
        return None
    theirs = opened(host, owner, project)
    own = opened(host, mine, project)
    if own is not None and own != theirs:
        return (*own, True)
    if theirs is None:
        return None
    name = _parameter(host, mine)
    other = name is not None and name != _parameter(host, owner)
    return (*theirs, False) if other or _fresh(host, mine) else None


def _fresh(host: Function, name: ast.Name) -> bool:
    made = host.flow.reaching(name.id, name) if name in host.parents else []
    return bool(made) and all(isinstance(each.value, ast.Call) and _FRESH.search(_last(each.value)) for each in made)


def _last(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def rows_compared(host: Function, name: str) -> bool:
    """Return whether a function compares the strides of a tensor's rows, or asks whether it is dense."""
    for node in host.nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
            if node.attr == "is_contiguous":
                return True
            if node.attr == "stride" and _compares_rows(host, node):
                return True
        elif isinstance(node, ast.Call) and layouts.is_guard(host.called(node)):
            if any(layouts.names(each, name) for each in (*node.args, *node.keywords)):
                return True
        elif isinstance(node, ast.For) and layouts.names(node.iter, name) and layouts.asks(node):
            return True
    return False


def _compares_rows(host: Function, node: ast.Attribute) -> bool:
    call = host.parents.get(node)
    if isinstance(call, ast.Call) and call.func is node and len(call.args) == 1 and ast.unparse(call.args[0]) == "-1":
        return False
    return any(isinstance(around, (ast.Compare, ast.Assert)) for around in host.ancestors(node))


def opened(host: Function, argument: ast.expr, project: Project, depth: int = 4) -> tuple[Function, str] | None:
    """Return the entry point, and its parameter, whose caller may hand over rows that are further apart than dense.

    What a function makes itself, or gets as an attribute or out of a call, counts as looked at. A view of a parameter
    is followed, and a parameter to whoever calls.
    """
    name = _parameter(host, argument)
    saved = None if name is not None or not depth else _saved(host, argument)
    if saved is not None:
        return opened(*saved, project, depth - 1)
    if name is None or layouts.guarded(host, name) or rows_compared(host, name):
        return None
    supplied = False
    for caller in callers(host, project) if depth else ():
        if caller.given is None:
            supplied = True
            continue
        value = caller.given.get(name)
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            continue
        supplied = True
        found = opened(caller.function, value, project, depth - 1)
        if found is not None:
            return found
    if supplied:
        return None
    unseen = host.owner is not None and not (is_autograd(host) and host.name in ("forward", "backward"))
    return None if unseen or host.name.startswith("_") or host.is_kernel else (host, name)


def _parameter(host: Function, argument: ast.expr, depth: int = 4) -> str | None:
    """Return the parameter that a tensor is, or is a view of on one way at least."""
    while isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute):
        if argument.func.attr not in _VIEWS[:-1]:
            return None
        argument = argument.func.value
    if not depth or not isinstance(argument, ast.Name) or argument not in host.parents:
        return None
    found: set[str | None] = set()
    for each in host.flow.reaching(argument.id, argument):
        if each.kind == "param":
            found.add(each.name)
        elif each.kind == "assign" and isinstance(each.value, ast.IfExp):
            arms = (each.value.body, each.value.orelse)
            found |= {_parameter(host, arm, depth - 1) for arm in arms if not isinstance(arm, ast.Constant)}
        elif each.kind == "assign" and isinstance(each.value, ast.Call):
            if _last(each.value) != "contiguous":  # on this way it is dense; another may not be
                found.add(_parameter(host, each.value, depth - 1))
        else:
            return None
    return found.pop() if len(found) == 1 else None


def _saved(host: Function, argument: ast.expr) -> tuple[Function, ast.expr] | None:
    """Return the forward function and what it saved under a name that a backward function takes from its context."""
    if not isinstance(argument, ast.Name) or argument not in host.parents or not is_autograd(host):
        return None
    reached = host.flow.reaching(argument.id, argument)
    value = reached[0].value if len(reached) == 1 else None
    if not isinstance(value, ast.Attribute) or value.attr != "saved_tensors" or reached[0].index is None:
        return None
    forward = host.module.by_qualname.get(f"{host.qualname.rpartition('.')[0]}.forward")
    for call in forward.calls if forward is not None else ():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "save_for_backward":
            known = len(call.args) > reached[0].index and not any(isinstance(each, ast.Starred) for each in call.args)
            return (forward, call.args[reached[0].index]) if known and forward is not None else None
    return None
