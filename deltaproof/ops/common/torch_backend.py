"""The ``torch`` backend of a delta rule: what an operator adds is its name and its rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common import torch_chunk, torch_pool_forms, torch_recurrent
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_rule import TorchRule


class TorchDeltaRule:
    """Plain PyTorch on any device; the default where no GPU kernel applies."""

    name = "torch"
    version = torch.__version__
    operator: str
    rule: TorchRule
    conventions = Conventions()
    unsupported: Mapping[str, str] = {
        "I2": "built on library matmuls, which choose their summation order by the shape of the whole batch",
        "sync_free_varlen": "the rows of a pack are planned on the host from cu_seqlens",
        "allocation_free": "PyTorch expressions allocate their temporaries",
    }

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the chunked form."""
        return torch_chunk.chunk(call, self.rule)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the token-by-token form."""
        return torch_recurrent.recurrent(call, self.rule)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        return torch_pool_forms.decode(call, self.rule)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return torch_pool_forms.prefill(call, self.rule)
