"""The ``triton`` backend of a delta rule: what an operator adds is its name and its operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common import triton_interpreter
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.common.triton_ops import TritonOperators

if INTERPRETED:
    triton_interpreter.hurry()


class TritonDeltaRule:
    """Portable Triton kernels; in Triton's interpreter (TRITON_INTERPRET=1) also on the CPU."""

    name = "triton"
    version = triton.__version__
    operator: str
    operators: TritonOperators
    conventions = Conventions()
    unsupported: Mapping[str, str] = {
        **({} if INTERPRETED else {"device:cpu": "the kernels need a GPU"}),
    }
    only_when_asked = "its kernels are interpreted here, which is slow" if INTERPRETED else None
    cannot_run = triton_interpreter.why_not() if INTERPRETED else None

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the chunked form."""
        return self.operators.chunk(call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the token-by-token form."""
        return self.operators.recurrent(call)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        return self.operators.decode(call)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return self.operators.prefill(call)
