"""Other text in the place of modules, and which kernels a check launches.

Triton takes a kernel's source from its file, so the text is put into a file of its own and imported from there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from deltaproof.verify.source_mutants.calls import Function


class Replacement:
    """A finder that loads some modules from other files.

    Raises:
        RuntimeError: on ``install``, one of them is already imported.
    """

    def __init__(self, texts: Mapping[str, str], folder: Path) -> None:
        self.files = {}
        for module, text in texts.items():
            path = folder / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            self.files[module] = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a module is loaded from, or None for all others."""
        if name not in self.files:
            return None
        return importlib.util.spec_from_file_location(name, self.files[name])

    def install(self) -> None:
        """Put this finder before all others."""
        early = sorted(self.files.keys() & sys.modules.keys())
        if early:
            raise RuntimeError(f"imported before their text could be replaced: {', '.join(early)}")
        sys.meta_path.insert(0, self)


class Launches:
    """Notes which kernels are launched, compiled or interpreted.

    Attributes:
        seen: what was launched since it was last emptied.
    """

    def __init__(self) -> None:
        self.seen: set[Function] = set()

    def install(self) -> None:
        """Note every launch of this process from now on."""
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction

        for kind in (JITFunction, InterpretedFunction):
            kind.run = self._noting(kind.run)

    def _noting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(kernel: Any, *args: Any, **options: Any) -> Any:
            self.seen.add((kernel.fn.__module__, kernel.fn.__name__))
            return run(kernel, *args, **options)

        return noted

    def take(self) -> frozenset[Function]:
        """Return what was seen, and start anew."""
        seen = frozenset(self.seen)
        self.seen.clear()
        return seen
