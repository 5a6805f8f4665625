"""Memory that no call owns, made visible: what new buffers hold before they are written, and what lies around them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from deltaproof.ops.common.allocation import forced_init
from deltaproof.verify.inputs import RED_ZONE, Fill, red_zone_, whole_memory
from deltaproof.verify.observation import Observation, number

aten = torch.ops.aten
EMPTY = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
ZEROS = (aten.zeros, aten.zeros_like, aten.new_zeros)
EMPTY_FUNCTION = torch.empty
"""torch's own, also while the name is patched."""
FUNCTIONS = ("empty", "empty_like", "empty_strided")
Content = Fill | Literal["zeros"]
METHODS = ("new_empty", "new_empty_strided")


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # wrapping it would import all of torch._dynamo at the first operation, while torch's functions are patched
        return False


def _uncompiled() -> AbstractContextManager[Any]:
    """Have what a backend compiles run as it is written: a compiler would trace the mode, and trips over it."""
    # what compiles has imported this; it takes seconds
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Filled(_Mode):
    """Fills what torch's allocators return, however they are reached."""

    def __init__(self, fill: Content) -> None:
        super().__init__()
        self.fill = fill

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in EMPTY:
            _content_(result, self.fill)
        return result


def _content_(buffer: torch.Tensor, fill: Content) -> torch.Tensor:
    return buffer.zero_() if fill == "zeros" else red_zone_(buffer, fill)


def _filling(allocate: Callable[..., torch.Tensor], fill: Content) -> Callable[..., torch.Tensor]:
    def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        return _content_(allocate(*args, **kwargs), fill)

    return filled


@contextmanager
def filled_buffers(fill: Content) -> Iterator[None]:
    """Let every new buffer hold NaN (integers: far out of range), stale values or zeros.

    A dispatch mode does not reach inside a custom operator, and a patched name not behind ``from torch import empty``;
    so both are used, beside the project's own allocation function.
    """
    with ExitStack() as stack:
        stack.enter_context(forced_init(lambda buffer: _content_(buffer, fill)))
        for place, names in ((torch, FUNCTIONS), (torch.Tensor, METHODS)):
            for name in names:
                patched = _filling(getattr(place, name), fill)
                stack.enter_context(mock.patch.object(place, name, patched))
        stack.enter_context(_uncompiled())
        stack.enter_context(_Filled(fill))
        yield


class Canaries(_Mode):
    """Puts every new buffer in the middle of a larger one and remembers what lies around it.

    A buffer itself holds zeros: what new memory holds is the probe poison's business. A dispatch mode does not reach
    inside a custom operator, so torch's own names are patched too.

    Attributes:
        fill: what the memory around a buffer holds.
        buffers: shape and surrounding memory of every buffer made; it starts at ``RED_ZONE``.
    """

    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self.fill = fill
        self.buffers: list[tuple[torch.Size, torch.Tensor]] = []
        self.patches = ExitStack()

    def __enter__(self) -> Canaries:
        for place, names in ((torch, (*FUNCTIONS, "zeros", "zeros_like")), (torch.Tensor, ("new_empty", "new_zeros"))):
            for name in names:
                patched = self._patched(getattr(place, name))
                self.patches.enter_context(mock.patch.object(place, name, patched))
        self.patches.enter_context(_uncompiled())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # autograd takes the offset of what new_empty_strided gives for 0, and nobody else calls it
        if func.overloadpacket not in EMPTY + ZEROS or func.overloadpacket is aten.new_empty_strided:
            return result
        return self._surrounded(result)

    def _patched(self, allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def patched(*args: Any, **kwargs: Any) -> torch.Tensor:
            # without this mode, where it is reached: it would surround the buffer a second time
            with _disable_current_modes():
                return self._surrounded(allocate(*args, **kwargs))

        return patched

    def _surrounded(self, result: torch.Tensor) -> torch.Tensor:
        if result.layout != torch.strided:
            return result
        extent = _extent(result)
        memory = EMPTY_FUNCTION(extent + 2 * RED_ZONE, dtype=result.dtype, device=result.device)
        red_zone_(memory, self.fill)
        # set_ and no view: autograd must see a tensor of its own
        inner = EMPTY_FUNCTION(0, dtype=result.dtype, device=result.device)
        inner.set_(memory.untyped_storage(), RED_ZONE, result.shape, result.stride()).zero_()
        self.buffers.append((result.shape, memory))
        return inner

    def observe(self) -> Iterator[Observation]:
        """Yield whether the memory around every buffer is as it was."""
        for shape, memory in self.buffers:
            inner = slice(RED_ZONE, memory.numel() - RED_ZONE)
            yield _around(f"a buffer {list(shape)} that the backend allocated", memory, inner, self.fill)


def _extent(x: torch.Tensor) -> int:
    """Return how many elements lie from the first to the last of ``x``."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


def surroundings(name: str, x: torch.Tensor, fill: Fill) -> Observation:
    """Check that the memory in front of and behind a guarded tensor still holds what it was filled with."""
    first = x.storage_offset()
    return _around(name, whole_memory(x.detach()).view(x.dtype), slice(first, first + _extent(x)), fill)


def _around(name: str, memory: torch.Tensor, inner: slice, fill: Fill) -> Observation:
    for where, zone in (("in front of", memory[: inner.start]), ("behind", memory[inner.stop :])):
        clean = red_zone_(torch.empty_like(zone[:1]), fill)
        # one NaN is as good as another: which bits fill_ writes depends on its place
        written = ~zone.isnan() if zone.is_floating_point() and fill == "nan" else zone != clean
        if bool(written.any()):
            at = int(written.int().argmax())
            away = inner.start - at if where == "in front of" else at + 1
            text = f"{int(written.sum())} elements written {where} {name}, the first {away} elements away"
            value, was = number(zone[at].cpu()), number(clean[0].cpu())
            return Observation(False, "M1", text, "unmasked-store", value=value, expected=was)
    return Observation(True, "M1")
