"""The one place where outputs and workspaces are allocated (clause M1).

A buffer declares what its memory must hold before a kernel runs: "empty" (nothing; the kernel writes every
element) or "zeros" (the kernel accumulates into it or leaves rows out). A caller may force another content on
the "empty" ones, which a right kernel cannot notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Init = Literal["empty", "zeros", "poison"]
INITS: tuple[Init, ...] = ("empty", "zeros", "poison")

Filler = Callable[["torch.Tensor"], Any]
"""Fills a new buffer in place."""

_forced: ContextVar[Init | Filler | None] = ContextVar("deltaproof_forced_init", default=None)


@contextmanager
def forced_init(init: Init | Filler | None) -> Iterator[None]:
    """Force the content of every buffer that is declared "empty" while the context is open."""
    token = _forced.set(init)
    try:
        yield
    finally:
        _forced.reset(token)


def current_forced() -> Init | Filler | None:
    """Return what is forced on new buffers here, for a thread that does not inherit the context."""
    return _forced.get()


def poison_(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN, or for integers with the largest value, and return the tensor."""
    import torch

    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(torch.iinfo(tensor.dtype).max)


@dataclass(frozen=True)
class Allocator:
    """Allocates every output and workspace of one call.

    Attributes:
        out_init: content for buffers declared "empty"; None leaves it to the surrounding ``forced_init``.
    """

    out_init: Init | None = None

    def __call__(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, init: Init = "empty"
    ) -> torch.Tensor:
        """Return a new contiguous tensor of ``shape`` whose content is ``init`` or what is forced on it."""
        import torch

        content: Init | Filler = init
        if init == "empty":
            # torch.compile cannot trace a context variable; compiled code is not forced
            forced = None if torch.compiler.is_dynamo_compiling() else _forced.get()
            content = self.out_init or forced or "empty"
        if content == "zeros":
            return torch.zeros(tuple(shape), dtype=dtype, device=device)
        buffer = torch.empty(tuple(shape), dtype=dtype, device=device)
        if callable(content):
            content(buffer)
        return poison_(buffer) if content == "poison" else buffer
