"""The ``torch`` backend of Kimi delta attention."""

from __future__ import annotations

from deltaproof.ops.common.torch_backend import TorchDeltaRule
from deltaproof.ops.kda.torch_chunk import RULE


class TorchBackend(TorchDeltaRule):
    """Plain PyTorch on any device; the default where no GPU kernel applies."""

    operator = "kda"
    rule = RULE
