"""The ``torch`` backend of the gated delta rule."""

from __future__ import annotations

from deltaproof.ops.common.torch_backend import TorchDeltaRule
from deltaproof.ops.gated_delta_rule.torch_chunk import RULE


class TorchBackend(TorchDeltaRule):
    """Plain PyTorch on any device; the default where no GPU kernel applies."""

    operator = "gated_delta_rule"
    rule = RULE
