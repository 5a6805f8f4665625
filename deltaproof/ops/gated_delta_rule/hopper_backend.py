"""The ``hopper`` backend of the gated delta rule."""

from __future__ import annotations

from deltaproof.ops.common.hopper_backend import HopperDeltaRule
from deltaproof.ops.gated_delta_rule.hopper_ops import OPERATORS


class HopperBackend(HopperDeltaRule):
    """Kernels in Gluon for compute capability 9.0; where they are interpreted (TRITON_INTERPRET=1), also on the CPU."""

    operator = "gated_delta_rule"
    operators = OPERATORS
