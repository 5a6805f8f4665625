"""Whether every kernel of a package was among the recorded launches."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from triton.runtime.jit import JITFunction

from .record import Launch


def jit_functions(package: ModuleType) -> list[Any]:
    """Return every ``@triton.jit`` function that the package's modules define."""
    modules = {found.name: _imported(found.name) for found in _modules(package)}
    # where one kernel for Hopper cannot be expressed, its folder's host code launches none of them
    without = {name.rpartition(".")[0] for name, module in modules.items() if module is None}
    return [
        value
        for name, module in modules.items()
        if module is not None and not (_for_hopper(name) and name.rpartition(".")[0] in without)
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__
    ]


def _modules(package: ModuleType) -> Iterable[pkgutil.ModuleInfo]:
    return pkgutil.walk_packages(package.__path__, package.__name__ + ".")


def _for_hopper(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("hopper_", "gluon_"))


def _imported(name: str) -> ModuleType | None:
    """Return a module, or None for kernels that an older Triton cannot express: there no host code launches them."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if _for_hopper(name):
            return None
        raise


def called_functions(function: Any) -> list[Any]:
    """Return the ``@triton.jit`` functions that one names in its body."""
    names = function.fn.__globals__
    called = []
    for node in ast.walk(function.parse()):
        found = None
        if isinstance(node, ast.Name):
            found = names.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = getattr(names.get(node.value.id), node.attr, None)
        if isinstance(found, JITFunction):
            called.append(found)
    return called


def uncovered(functions: Iterable[Any], launches: Iterable[Launch]) -> list[str]:
    """Return the functions that were neither launched nor are called, directly or not, by one that was."""
    reached: set[int] = set()
    pending = [launch.fn for launch in launches]
    while pending:
        function = pending.pop()
        if id(function) not in reached:
            reached.add(id(function))
            pending += called_functions(function)
    return sorted(
        f"{function.fn.__module__}.{function.__name__}" for function in functions if id(function) not in reached
    )
