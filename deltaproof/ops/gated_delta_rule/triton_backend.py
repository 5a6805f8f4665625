"""The ``triton`` backend of the gated delta rule."""

from __future__ import annotations

from deltaproof.ops.common.triton_backend import TritonDeltaRule
from deltaproof.ops.gated_delta_rule.triton_ops import OPERATORS


class TritonBackend(TritonDeltaRule):
    """Portable Triton kernels; in Triton's interpreter (TRITON_INTERPRET=1) also on the CPU."""

    operator = "gated_delta_rule"
    operators = OPERATORS
