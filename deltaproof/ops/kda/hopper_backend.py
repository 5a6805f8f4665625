"""The ``hopper`` backend of Kimi delta attention."""

from __future__ import annotations

from deltaproof.ops.common.hopper_backend import HopperDeltaRule
from deltaproof.ops.kda.hopper_ops import OPERATORS


class HopperBackend(HopperDeltaRule):
    """Kernels in Gluon for compute capability 9.0; where they are interpreted (TRITON_INTERPRET=1), also on the CPU."""

    operator = "kda"
    operators = OPERATORS
