"""The ``triton`` backend of the gated delta rule: forward kernels for GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.gated_delta_rule import triton_chunk, triton_recurrent


class TritonBackend:
    """Portable Triton kernels; in Triton's interpreter (TRITON_INTERPRET=1) also on the CPU."""

    name = "triton"
    version = triton.__version__
    operator = "gated_delta_rule"
    conventions = Conventions()
    unsupported: Mapping[str, str] = {
        "backward": "the kernels compute outputs and states only",
        "compile": "the kernels are not registered as custom operators",
        **({} if INTERPRETED else {"device:cpu": "the kernels need a GPU"}),
    }

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the chunked form."""
        return triton_chunk.chunk_forward(call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the token-by-token form."""
        return triton_recurrent.recurrent_forward(call)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        return triton_recurrent.decode(call)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return triton_chunk.prefill(call)
