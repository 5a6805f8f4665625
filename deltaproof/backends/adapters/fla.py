"""Adapter to an installed fla (package fla-core): its chunked and its recurrent form of an operator.

It translates names and conventions and nothing else: what fla returns is returned as it came, in fla's dtypes.
The first call of each kind is watched, and raises where kernels ran that the mode does not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from deltaproof.backends.adapters import fla_modes, fla_operators
from deltaproof.backends.adapters.fla_modes import Mode, Package
from deltaproof.backends.adapters.fla_operators import Functions
from deltaproof.backends.adapters.kernels_ran import Recording
from deltaproof.backends.adapters.watched import Result, Watched, kind
from deltaproof.contracts.conventions import Conventions, Padding, StateLayout
from deltaproof.ops.common.calls import SequenceCall


class Fla(Watched):
    """fla's own Triton kernels, every hand-over to other kernels switched off.

    Attributes:
        ran: form, or form and " backward" -> the Triton kernels seen in watched calls, ``module.function``, and what
            fla's dispatcher picked, ``backend:function``.
    """

    functions: ClassVar[Functions] = fla_operators.GATED_DELTA_RULE
    mode: ClassVar[Mode] = fla_modes.TRITON
    # its forms take no slot index
    conventions = Conventions(padding=Padding.NONE)

    def __init__(self) -> None:
        super().__init__()
        self._package: Package = fla_modes.load(self.mode, self.functions)
        self.operator = self.functions.operator
        self.name = self.mode.name
        self.version = fla_modes.described(self.mode, self._package)
        self.unsupported: Mapping[str, str] = self._lacks()

    def _lacks(self) -> dict[str, str]:
        """Return what fla refuses itself, says that it does not do, or has no argument for."""
        lacks = {"device:cpu": "its Triton kernels need a GPU", **self.functions.lacks}
        if self.mode.inference:
            lacks["backward"] = "its dispatch takes this path under torch.inference_mode alone"
        elif self._package.gated_backward_refused and not self._hands_over("tilelang"):
            lacks.update(self.functions.gated_kernel_refuses)
        if self.mode.inference or self._hands_over("flash_qla"):
            lacks["batch_invariant"] = "no argument of its call keeps long sequences from being split"
        return lacks

    def _hands_over(self, partner: str) -> bool:
        """Return whether fla may hand calls to a package that is here."""
        return partner in self._package.partners and (self.mode.allowed is None or partner in self.mode.allowed)

    def chunk(self, call: SequenceCall) -> Result:
        """Run fla's chunked function."""
        return self._run("chunk", self._package.chunk, call)

    def recurrent(self, call: SequenceCall) -> Result:
        """Run fla's recurrent function."""
        return self._run("recurrent", self._package.recurrent, call)

    def _run(self, form: str, function: Callable[..., Result], call: SequenceCall) -> Result:
        more = self.functions.arguments(form, call)
        # a compiler cannot trace the watching
        if torch.compiler.is_compiling():
            return _made(function, call, more)
        if self.mode.inference and not torch.is_inference_mode_enabled():
            with torch.inference_mode():
                o, final = self._watch(form, kind(form, call), lambda: _made(function, call, more))
            # a tensor made in inference mode cannot be changed outside of it
            return o.clone(), None if final is None else final.clone()
        of = kind(form, call)
        o, final = self._watch(form, of, lambda: _made(function, call, more))
        self._watch_backward(form, of, o)
        return o, final

    def _recording(self) -> Recording:
        return Recording(self._package.dispatcher, tuple(fla_modes.PARTNERS))

    def _complaints(self, what: str, recording: Recording) -> list[str]:
        return recording.foreign("fla", self.mode.allowed)

    def _mode(self) -> str:
        return self.mode.text


def _made(function: Callable[..., Result], call: SequenceCall, more: Mapping[str, Any]) -> Result:
    """Call fla. Its functions order their arguments differently, so all go by name."""
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
        use_beta_sigmoid_in_kernel=options.beta_sigmoid,
        allow_neg_eigval=options.neg_eigval,
        state_v_first=options.layout is StateLayout.V_FIRST,
        cu_seqlens=call.cu_seqlens,
        **more,
    )


class FlaDefault(Fla):
    """What fla picks with none of its switches set: it depends on the packages beside it."""

    mode = fla_modes.DEFAULT


class FlaTileLang(Fla):
    """fla's Triton kernels, but TileLang where its dispatch prefers it: in the chunked backward."""

    mode = fla_modes.TILELANG


class FlaIntracard(Fla):
    """fla's Triton kernels with long packed sequences split inside the card (from 24,576 tokens on)."""

    mode = fla_modes.INTRACARD


class FlaKda(Fla):
    """Kimi delta attention by fla's own Triton kernels."""

    functions = fla_operators.KDA


class FlaKdaDefault(FlaKda):
    """What fla picks for it with none of its switches set: FlashKDA for some forwards, where it is there."""

    mode = fla_modes.DEFAULT


class FlaKdaTileLang(FlaKda):
    """The same, but TileLang where fla's dispatch prefers it."""

    mode = fla_modes.TILELANG


class FlaKdaIntracard(FlaKda):
    """The same with long packed sequences split inside the card."""

    mode = fla_modes.INTRACARD
