"""Backends that try to pass without computing anything: by the harness's own memory, or by its habits.

They look for tensors the way anybody in the same process can, through the garbage collector. What protects the harness
is that nothing expected exists while a backend runs, that values which are not finite are never compared with, and
that every case is drawn twice: in the same memory, with the same shapes, with other values.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.verify.mutants.model import ModelBackend


def doubles() -> Iterator[torch.Tensor]:
    """Yield every float64 tensor that the garbage collector knows."""
    for found in gc.get_objects():
        # isinstance would look at __class__, which proxies answer with side effects
        if issubclass(type(found), torch.Tensor) and found.dtype == torch.float64:
            yield found


class _Idle:
    """A backend that computes nothing; ``answer`` is asked for every result."""

    name = "cheat"
    version = "1"
    operator = "gated_delta_rule"
    conventions = Conventions()
    unsupported: Mapping[str, str] = {"backward": "a cheat has none"}

    def answer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a result of a shape and dtype."""
        return torch.zeros(shape, dtype=dtype)

    def _sequence(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        _, _, _, HV, K, V = call.dims
        o = self.answer(tuple(call.v.shape), call.v.dtype)
        if not call.output_final_state:
            return o, None
        dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
        return o, self.answer((call.sequences, HV, *call.options.layout.inner_shape(K, V)), dtype)

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._sequence(call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._sequence(call)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return self.answer(tuple(call.v.shape), call.v.dtype)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return self.answer(tuple(call.v.shape), call.v.dtype)


class Thief(_Idle):
    """Returns the oracle's memory: the newest float64 tensor of the result's shape."""

    def answer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        found = [x for x in doubles() if tuple(x.shape) == shape]
        return found[-1].detach().to(dtype) if found else super().answer(shape, dtype)


class Spoiler(_Idle):
    """Writes NaN into whatever float64 tensor it finds, at every call, and lets the comparison do the rest."""

    value = float("nan")

    def answer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with torch.no_grad():
            for found in list(doubles()):
                if found.numel() and not found.is_inference():
                    found.detach().fill_(self.value)
        return super().answer(shape, dtype)


class Inflater(Spoiler):
    """Writes a large number instead, so that bounds made from noise grow past every error."""

    value = 1e12


class CachedByShape(ModelBackend):
    """Computes the first call of every shape and answers later ones from memory."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def key(self, call: Any) -> Any:
        """Return what a call is found again by."""
        return (call.q.shape, call.v.shape, call.v.dtype, call.options)

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._cached("chunk", call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._cached("recurrent", call)

    def _cached(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        key = (form, self.key(call))
        if key not in self.kept:
            self.kept[key] = getattr(super(), form)(call)
        o, final = self.kept[key]
        return o.clone(), None if final is None else final.clone()

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return self._cached_pool("decode", call)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return self._cached_pool("prefill", call)

    def _cached_pool(self, form: str, call: DecodeCall | PrefillCall) -> torch.Tensor:
        key = (form, self.key(call))
        if key not in self.kept:
            o = getattr(super(), form)(call)
            self.kept[key] = o, call.pool.clone()
        o, pool = self.kept[key]
        call.pool.copy_(pool)
        result: torch.Tensor = o.clone()
        return result


class CachedByAddress(CachedByShape):
    """The same, found by the addresses of the inputs: a warm-up that fills the buffers it is later timed on."""

    def key(self, call: Any) -> Any:
        return (*super().key(call), call.q.data_ptr(), call.k.data_ptr(), call.v.data_ptr())


@dataclass(frozen=True)
class Cheat:
    """One cheat; ``what`` says what it tries, ``probe`` is the one that it is tried on."""

    name: str
    what: str
    make: Callable[[], Backend]
    probe: str = "values"


CHEATS = (
    Cheat("oracle-thief", "returns a float64 tensor of the right shape found in the process", Thief),
    Cheat("expectation-spoiler", "writes NaN into every float64 tensor found in the process", Spoiler),
    Cheat("bound-inflater", "writes 1e12 into every float64 tensor found in the process", Inflater),
    Cheat("cached-by-shape", "answers from the first call of the same shapes", CachedByShape),
    Cheat("cached-by-address", "answers from the first call at the same addresses", CachedByAddress),
)
