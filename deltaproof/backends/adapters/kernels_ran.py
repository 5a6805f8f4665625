"""What ran inside a call to a peer: its Triton kernels, what its dispatcher picked, packages it imported.

Kernels of PyTorch itself, and those that a picked backend launches without Triton, are not seen one by one: the
dispatcher's pick stands for the latter.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton

_lock = threading.Lock()
_open: list[Recording] = []


@dataclass(eq=False)
class Recording:
    """Notes what one thread launches between ``start`` and ``stop``; use it as a context manager where that fits.

    Attributes:
        dispatcher: the class of whose instances a peer's dispatcher asks ``get_implementation(function)`` when it has
            picked one, and runs what that returns unless it is None; None where the peer has no dispatcher.
        watched: top-level packages whose import is noted.
        kernels: Triton kernels, ``module.function``, in the order of their first launch.
        picks: backend picked by the dispatcher -> functions it was picked for.
        imported: watched packages that were first imported meanwhile.
    """

    dispatcher: type[Any] | None = None
    watched: Sequence[str] = ()
    kernels: dict[str, None] = field(default_factory=dict)
    picks: dict[str, dict[str, None]] = field(default_factory=dict)
    imported: tuple[str, ...] = ()
    _undo: list[tuple[Any, str, Any]] = field(default_factory=list)
    _before: frozenset[str] = frozenset()
    _thread: int = 0

    def start(self) -> None:
        """Begin; a recording that an exception left open is ended first."""
        with _lock:
            for stale in list(_open):
                stale._close()
            self._thread = threading.get_ident()
            self._before = frozenset(name for name in self.watched if name in sys.modules)
            for kind in _launchers():
                self._patch(kind, "run", self._launched)
            if self.dispatcher is not None:
                self._patch(self.dispatcher, "get_implementation", self._picked)
            self._watch_more()
            _open.append(self)

    def stop(self) -> None:
        """End; everything that was watched is again as it was."""
        with _lock:
            self._close()

    def __enter__(self) -> Recording:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _close(self) -> None:
        if self not in _open:
            return
        _open.remove(self)
        for kind, name, original in reversed(self._undo):
            setattr(kind, name, original)
        self._undo.clear()
        self.imported = tuple(name for name in self.watched if name in sys.modules and name not in self._before)

    def _watch_more(self) -> None:
        """Patch what launches kernels that are not Triton's; nothing here."""

    def _patch(self, kind: Any, name: str, note: Callable[..., None]) -> None:
        """Have a method of a class, or a function of a module, noted whenever it is called."""
        original = vars(kind)[name]

        def watching(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if threading.get_ident() == self._thread:
                note(result, *args)
            return result

        self._undo.append((kind, name, original))
        setattr(kind, name, watching)

    def _launched(self, result: Any, kernel: Any, *args: Any) -> None:
        self.kernels[f"{kernel.fn.__module__}.{kernel.fn.__name__}"] = None

    def _picked(self, result: Any, backend: Any, function: str) -> None:
        # a backend that has no such function is passed by
        if result is not None:
            self.picks.setdefault(str(backend.backend_type), {})[function] = None

    def foreign(self, own: str, allowed: frozenset[str] | None) -> list[str]:
        """Return what is neither a Triton kernel of package ``own`` nor stands for a backend in ``allowed``.

        ``allowed`` None lets every pick stand, and then whatever it launches and imports too.
        """
        if allowed is None:
            return []
        found = [name for name in self.kernels if name.split(".", 1)[0] != own]
        found += [f"{pick} for {', '.join(names)}" for pick, names in self.picks.items() if pick not in allowed]
        return found + [f"package {name}" for name in self.imported if name not in allowed]

    def names(self) -> tuple[str, ...]:
        """Return all that ran: Triton kernels, and picks as ``backend:function``."""
        return (*self.kernels, *(f"{pick}:{name}" for pick, names in self.picks.items() for name in names))


def _launchers() -> list[type[Any]]:
    """Return the classes through whose ``run`` every Triton kernel is launched."""
    found: list[type[Any]] = [triton.runtime.jit.JITFunction]
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is not None:
        found.append(interpreter.InterpretedFunction)
    return found
