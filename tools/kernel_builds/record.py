"""What the host code would launch: kernels with their specialised arguments, without a GPU and without running them.

The host code runs as it is, on CPU tensors. Triton's own binder works out the types, the divisibility and the constants
of each launch for a driver that knows a target and nothing else; where Triton would compile, the launch is noted and
skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels are never compiled; read when triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)


@dataclass
class Launch:
    """One distinct compilation, and the facts of every case that asks for it."""

    fn: Any
    signature: Mapping[str, str]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Any
    facts: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def kernel(self) -> str:
        """Return the kernel's name."""
        return str(self.fn.__name__)

    @property
    def constexprs(self) -> dict[str, Any]:
        """Return the constants by parameter name, as far as they are single values."""
        return {self.fn.arg_names[path[0]]: value for path, value in self.constants.items() if len(path) == 1}

    def source(self) -> ASTSource:
        """Return what Triton compiles."""
        kind = GluonASTSource if self.fn.is_gluon() else ASTSource
        return kind(self.fn, self.signature, self.constants, self.attributes)

    def compile(self) -> Any:
        """Compile as the launch would."""
        return triton.compile(self.source(), target=TARGET, options=self.options.__dict__)


class Recorder:
    """Collects distinct launches; ``facts`` describe what runs at the moment."""

    def __init__(self) -> None:
        self.launches: dict[tuple[str, str, str], Launch] = {}
        self.facts: Mapping[str, Any] = {}

    def note(self, launch: Launch) -> None:
        """Keep a launch, or add the present facts to the one that is like it."""
        key = (launch.kernel, launch.source().hash(), str(launch.options))
        kept = self.launches.setdefault(key, launch)
        if self.facts not in kept.facts:
            kept.facts.append(self.facts)


class _TargetOnly:
    """Stands in for a driver: code that asks it for anything but the target is not portable to this tool."""

    def get_current_device(self) -> str:
        return "recorded"  # Triton keeps its binders by device

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET


@contextmanager
def recording() -> Iterator[Recorder]:
    """Note every launch while the context is open, and run none."""
    recorder = Recorder()

    def note(
        fn: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attributes: Any, warmup: Any
    ) -> None:
        recorder.note(Launch(fn, signature, constants, attributes, options))

    compile_really, active = JITFunction._do_compile, driver._active
    JITFunction._do_compile = note
    driver.set_active(_TargetOnly())
    try:
        yield recorder
    finally:
        JITFunction._do_compile = compile_really
        driver._active = active
