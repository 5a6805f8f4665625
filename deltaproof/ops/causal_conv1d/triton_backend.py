"""The ``triton`` backend of the causal convolution: kernels for GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

from deltaproof.contracts.conventions import Conventions, ConvLayout
from deltaproof.ops.causal_conv1d import triton_ops
from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall, ConvPrefillCall
from deltaproof.ops.common import triton_interpreter
from deltaproof.ops.common.triton_language import INTERPRETED

if INTERPRETED:
    triton_interpreter.hurry()


class TritonBackend:
    """Portable Triton kernels; in Triton's interpreter (TRITON_INTERPRET=1) also on the CPU."""

    name = "triton"
    version = triton.__version__
    operator = "causal_conv1d"
    conventions = Conventions(layouts=tuple(ConvLayout))
    unsupported: Mapping[str, str] = {
        **({} if INTERPRETED else {"device:cpu": "the kernels need a GPU"}),
    }
    only_when_asked = "its kernels are interpreted here, which is slow" if INTERPRETED else None
    cannot_run = triton_interpreter.why_not() if INTERPRETED else None

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        return triton_ops.decode(call)

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return triton_ops.prefill(call)
