"""Device functions that kernels call: what their parameters know of the caller's program ids."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deltaproof.audit.flow.access import arguments
from deltaproof.audit.flow.guards import guards
from deltaproof.audit.flow.program_parts import Part, bind, parts

if TYPE_CHECKING:
    from deltaproof.audit.model.function import Function
    from deltaproof.audit.model.module import Module
    from deltaproof.audit.model.project import Project


def callers(module: Module, callee: Function) -> list[tuple[Function, ast.Call]]:
    """Return the calls of a device function by the other kernels of its file."""
    if module.text.count(f"{callee.name}(") < 2:
        return []
    return [
        (kernel, call)
        for kernel, call in module.calls_by_name.get(callee.name, ())
        if kernel is not callee and kernel.is_kernel and isinstance(call.func, ast.Name) and call.func.id == callee.name
    ]


def bind_callers(module: Module, kernel: Function, project: Project) -> list[Function]:
    """Tell a device function's parameters the parts of program ids that every caller passes.

    Returns:
        The kernels whose program ids count: the kernel itself where it takes its own or is called by none; else its
        callers, none of them where they do not agree or where one calls it for some programs only.
    """
    calling = [] if kernel.calls_of("program_id") else callers(module, kernel)
    if not calling:
        return [kernel]
    names = tuple(param.name for param in kernel.params)
    told: dict[str, frozenset[Part]] | None = None
    for caller, call in calling:
        if any(isinstance(each, ast.Starred) for each in call.args) or not caller.calls_of("program_id"):
            return []
        if any(parts(caller, guard.test, project) for guard in guards(caller, call)):
            return []
        given = arguments(call, names)
        own = {name: known for name, value in given.items() if (known := frozenset(parts(caller, value, project)))}
        if told is not None and own != told:
            return []
        told = own
    bind(kernel, told or {})
    return list(dict.fromkeys(caller for caller, _ in calling))
