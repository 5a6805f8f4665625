"""The ``torch`` backend of the causal convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deltaproof.contracts.conventions import Conventions, ConvLayout
from deltaproof.ops.causal_conv1d import torch_conv
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall


class TorchBackend:
    """Plain PyTorch on any device, without a host sync."""

    name = "torch"
    version: str = torch.__version__
    operator = "causal_conv1d"
    conventions = Conventions(layouts=tuple(ConvLayout))
    unsupported: Mapping[str, str] = {"allocation_free": "PyTorch expressions allocate their temporaries"}

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        return self._run(call, call.out)

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        return self._run(call, None)

    @staticmethod
    def _run(call: ConvCall, out: torch.Tensor | None) -> torch.Tensor:
        if out is None:
            out = call.allocate(call.x.shape, dtype=call.x.dtype, device=call.x.device)
        torch_conv.run(call, out)
        return out
