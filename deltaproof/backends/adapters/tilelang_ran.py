"""What ran inside a call to a peer whose kernels are TileLang's: their names, ``module.function``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.contracts.errors import ContractError


@dataclass(eq=False)
class TileLangRecording(Recording):
    """Notes TileLang's kernels beside Triton's.

    A function under ``tilelang.jit`` returns a compiled kernel, which says no longer where it comes from. So what such
    functions return is kept together with their names, and what is then launched is noted by it.
    """

    _made: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def _watch_more(self) -> None:
        factory, kernel = launchers()
        self._patch(factory, "__call__", self._compiled)
        self._patch(kernel, "__call__", self._ran)

    def _compiled(self, result: Any, function: Any, *args: Any) -> None:
        original = getattr(function.func, "orig_func", function.func)
        # the kernel is kept too, or another one could be given its id
        self._made[id(result)] = (result, f"{original.__module__}.{original.__name__}")

    def _ran(self, result: Any, kernel: Any, *args: Any) -> None:
        _, name = self._made.get(id(kernel), (None, f"tilelang.{getattr(kernel, 'prim_func', kernel)!r:.60}"))
        self.kernels[name] = None


def launchers() -> tuple[type[Any], type[Any]]:
    """Return TileLang's classes of functions that return kernels, and of kernels.

    Raises:
        ContractError: this TileLang has no such classes.
    """
    module = importlib.import_module("tilelang.jit")
    factory, kernel = getattr(module, "JITImpl", None), getattr(module, "JITKernel", None)
    if not isinstance(factory, type) or not isinstance(kernel, type):
        version = getattr(importlib.import_module("tilelang"), "__version__", "of unknown version")
        raise ContractError("backend", "a tilelang whose kernels can be watched, as 0.1.15", f"tilelang {version}")
    return factory, kernel
