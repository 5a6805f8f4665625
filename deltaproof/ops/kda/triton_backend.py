"""The ``triton`` backend of Kimi delta attention."""

from __future__ import annotations

from deltaproof.ops.common.triton_backend import TritonDeltaRule
from deltaproof.ops.kda.triton_ops import OPERATORS


class TritonBackend(TritonDeltaRule):
    """Portable Triton kernels; in Triton's interpreter (TRITON_INTERPRET=1) also on the CPU."""

    operator = "kda"
    operators = OPERATORS
