"""Watching the first call of each kind, and the first backward of each kind, for the kernels that run.

An adapter says what it may see; what else ran is an error, for the result is then not that of the peer it names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall

Result = tuple[torch.Tensor, torch.Tensor | None]


class ForeignKernels(RuntimeError):
    """Something ran that the mode does not allow: the result is not that of the backend it was asked of."""


class Watched:
    """What adapters share that watch their calls.

    Attributes:
        ran: form, or form and " backward" -> the kernels seen in watched calls.
    """

    name: str

    def __init__(self) -> None:
        self.ran: dict[str, tuple[str, ...]] = {}
        self._watched: set[Hashable] = set()

    def _recording(self) -> Recording:
        """Return what notes the kernels of one call."""
        raise NotImplementedError

    def _complaints(self, what: str, recording: Recording) -> list[str]:
        """Return what a recording of a form, or of its backward, may not hold or lacks."""
        raise NotImplementedError

    def _mode(self) -> str:
        """Return the mode in words, for an error."""
        raise NotImplementedError

    def _watch(self, form: str, kind: Hashable, run: Callable[[], Any]) -> Any:
        """Make a call; the first of its kind is watched."""
        if kind in self._watched:
            return run()
        with self._recording() as recording:
            result = run()
        self._keep(form, kind, recording)
        return result

    def _watch_backward(self, form: str, kind: Hashable, o: torch.Tensor) -> None:
        """Watch the first backward of a kind, of which ``o`` is an output."""
        if not o.requires_grad or ("backward", kind) in self._watched:
            return
        node = o.grad_fn
        assert node is not None, "a peer's functions return what an autograd function made"
        recording = self._recording()

        def before(gradients: Any) -> None:
            recording.start()

        def after(into: Any, out_of: Any) -> None:
            recording.stop()
            for handle in handles:
                handle.remove()
            self._keep(f"{form} backward", ("backward", kind), recording)

        handles = (node.register_prehook(before), node.register_hook(after))

    def _keep(self, what: str, kind: Hashable, recording: Recording) -> None:
        """Add what ran to ``ran``; raise ForeignKernels where it is not what the mode promises."""
        self.ran[what] = tuple(sorted({*self.ran.get(what, ()), *recording.names()}))
        complaints = self._complaints(what, recording)
        if complaints:
            raise ForeignKernels(f"{self.name} ({self._mode()}): in {what} there ran {'; '.join(complaints)}")
        self._watched.add(kind)


def kind(form: str, call: SequenceCall | DecodeCall | PrefillCall) -> Hashable:
    """Return what a peer's choice of kernels can depend on."""
    B, T, *sizes = call.dims
    state = call.initial_state if isinstance(call, SequenceCall) else call.pool
    return (
        form,
        tuple(sizes),
        # some choices begin at a length
        (B * T).bit_length(),
        call.q.dtype,
        call.k.dtype,
        call.v.dtype,
        call.options,
        None if isinstance(call, DecodeCall) else call.cu_seqlens is None,
        None if state is None else state.dtype,
        isinstance(call, SequenceCall) and call.output_final_state,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        call.q.requires_grad,
    )
