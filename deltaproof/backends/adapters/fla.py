"""Adapter to an installed fla (package fla-core): its chunked and its recurrent gated delta rule.

It translates names and conventions and nothing else: what fla returns is returned as it came, in fla's dtypes.
The first call of each kind is watched, and raises where kernels ran that the mode does not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import torch

from deltaproof.backends.adapters import fla_modes
from deltaproof.backends.adapters.fla_modes import Mode, Package
from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.contracts.conventions import Conventions, Padding, StateLayout
from deltaproof.ops.common.calls import SequenceCall

Result = tuple[torch.Tensor, torch.Tensor | None]

NO_RECURRENT_BACKWARD = "the backward of fused_recurrent_gated_delta_rule raises NotImplementedError"
HOPPER = (
    "chunk_bwd_dqkwg raises RuntimeError on Hopper with Triton from 3.4.0 to before 3.7.1, whose results it calls"
    " incorrect"
)


class ForeignKernels(RuntimeError):
    """Something ran that the mode does not allow: the result is not that of the backend it was asked of."""


class Fla:
    """fla's own Triton kernels, every hand-over to other kernels switched off.

    Attributes:
        ran: form, or form and " backward" -> the Triton kernels seen in watched calls, ``module.function``, and what
            fla's dispatcher picked, ``backend:function``.
    """

    mode: ClassVar[Mode] = fla_modes.TRITON
    operator = "gated_delta_rule"
    # its forms take no slot index
    conventions = Conventions(padding=Padding.NONE)

    def __init__(self) -> None:
        self._package: Package = fla_modes.load(self.mode)
        self.name = self.mode.name
        self.version = fla_modes.described(self.mode, self._package)
        self.unsupported: Mapping[str, str] = self._lacks()
        self.ran: dict[str, tuple[str, ...]] = {}
        self._watched: set[Hashable] = set()

    def _lacks(self) -> dict[str, str]:
        """Return what fla refuses itself, says that it does not do, or has no argument for."""
        lacks = {
            "device:cpu": "its Triton kernels need a GPU",
            "recurrent/backward": NO_RECURRENT_BACKWARD,
            "sync_free_varlen": "chunk counts the chunks of a pack on the host, as its prepare_chunk_indices says",
        }
        if self.mode.inference:
            lacks["backward"] = "its dispatch takes this path under torch.inference_mode alone"
        elif self._package.gated_backward_refused and not self._hands_over("tilelang"):
            lacks["backward"] = f"{HOPPER}; recurrent: {NO_RECURRENT_BACKWARD}"
        if self.mode.inference or self._hands_over("flash_qla"):
            lacks["batch_invariant"] = "no argument of its call keeps long sequences from being split"
        return lacks

    def _hands_over(self, partner: str) -> bool:
        """Return whether fla may hand calls to a package that is here."""
        return partner in self._package.partners and (self.mode.allowed is None or partner in self.mode.allowed)

    def chunk(self, call: SequenceCall) -> Result:
        """Run ``chunk_gated_delta_rule``."""
        return self._run("chunk", self._package.chunk, call, chunk_size=call.options.chunk_size)

    def recurrent(self, call: SequenceCall) -> Result:
        """Run ``fused_recurrent_gated_delta_rule``."""
        return self._run("recurrent", self._package.recurrent, call)

    def _run(self, form: str, function: Callable[..., Result], call: SequenceCall, **more: Any) -> Result:
        # a compiler cannot trace the watching
        if torch.compiler.is_compiling():
            return _made(function, call, more)
        if self.mode.inference and not torch.is_inference_mode_enabled():
            with torch.inference_mode():
                o, final = self._watch(form, function, call, **more)
            # a tensor made in inference mode cannot be changed outside of it
            return o.clone(), None if final is None else final.clone()
        return self._watch(form, function, call, **more)

    def _watch(self, form: str, function: Callable[..., Result], call: SequenceCall, **more: Any) -> Result:
        """Make the call; the first of its kind is watched, and so is the first backward of its kind."""
        kind = _kind(form, call)
        if kind in self._watched:
            o, final = _made(function, call, more)
        else:
            with Recording(self._package.dispatcher, tuple(fla_modes.PARTNERS)) as recording:
                o, final = _made(function, call, more)
            self._keep(form, kind, recording)
        if o.requires_grad and ("backward", kind) not in self._watched:
            self._watch_backward(form, kind, o)
        return o, final

    def _watch_backward(self, form: str, kind: Hashable, o: torch.Tensor) -> None:
        node = o.grad_fn
        assert node is not None, "fla's functions return what an autograd function made"
        recording = Recording(self._package.dispatcher, tuple(fla_modes.PARTNERS))

        def before(gradients: Any) -> None:
            recording.start()

        def after(into: Any, out_of: Any) -> None:
            recording.stop()
            for handle in handles:
                handle.remove()
            self._keep(f"{form} backward", ("backward", kind), recording)

        handles = (node.register_prehook(before), node.register_hook(after))

    def _keep(self, what: str, kind: Hashable, recording: Recording) -> None:
        """Add what ran to ``ran``; raise ForeignKernels where the mode does not allow it."""
        self.ran[what] = tuple(sorted({*self.ran.get(what, ()), *recording.names()}))
        foreign = recording.foreign("fla", self.mode.allowed)
        if foreign:
            raise ForeignKernels(f"{self.name} ({self.mode.text}): in {what} there ran {'; '.join(foreign)}")
        self._watched.add(kind)


def _made(function: Callable[..., Result], call: SequenceCall, more: Mapping[str, Any]) -> Result:
    """Call fla. The two functions order their arguments differently, so all go by name."""
    options = call.options
    return function(
        q=call.q,
        k=call.k,
        v=call.v,
        g=call.g,
        beta=call.beta,
        scale=options.scale,
        initial_state=call.initial_state,
        output_final_state=call.output_final_state,
        use_qk_l2norm_in_kernel=options.normalize_qk,
        use_gate_in_kernel=options.gate_in_kernel,
        A_log=call.A_log,
        dt_bias=call.dt_bias,
        use_beta_sigmoid_in_kernel=options.beta_sigmoid,
        allow_neg_eigval=options.neg_eigval,
        state_v_first=options.layout is StateLayout.V_FIRST,
        cu_seqlens=call.cu_seqlens,
        **more,
    )


def _kind(form: str, call: SequenceCall) -> Hashable:
    """Return what fla's choice of kernels can depend on."""
    B, T, *sizes = call.dims
    state = call.initial_state
    return (
        form,
        tuple(sizes),
        # some choices begin at a length
        (B * T).bit_length(),
        call.q.dtype,
        call.k.dtype,
        call.v.dtype,
        call.options,
        call.cu_seqlens is None,
        None if state is None else state.dtype,
        call.output_final_state,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        call.q.requires_grad,
    )


class FlaDefault(Fla):
    """What fla picks with none of its switches set: it depends on the packages beside it."""

    mode = fla_modes.DEFAULT


class FlaTileLang(Fla):
    """fla's Triton kernels, but TileLang where its dispatch prefers it: the chunked backward on Hopper."""

    mode = fla_modes.TILELANG


class FlaIntracard(Fla):
    """fla's Triton kernels with long packed sequences split inside the card (from 24,576 tokens on)."""

    mode = fla_modes.INTRACARD
