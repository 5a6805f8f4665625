"""Drawing what a call is given of its tokens and of its gate: raw, or computed beforehand.

Shape legend: B rows, T tokens, H q,k heads, HV value heads, K, V head sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from deltaproof.bench.gates import Gate
from deltaproof.bench.workload import Workload
from deltaproof.ops.common.calls import DeltaRuleOptions

SEED = 0


class Source:
    """Random tensors on a device, the same for the same seed."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(SEED)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return standard normal float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Return uniform [0, 1) float32."""
        return torch.rand(shape, generator=self.generator, device=self.device)


def raw(
    gate: Gate, workload: Workload, B: int, T: int, dtype: torch.dtype, source: Source, *, safe_gate: bool = False
) -> dict[str, Any]:
    """Return tokens [B, T, ...] and parameters of a call whose kernel does what comes before the rule.

    That is the gate, the normalisation of q and k and the sigmoid of beta; all tokens are standard normal.
    """
    drawn = {name: source.normal(B, T, *own).to(dtype) for name, own in gate.token_shapes(workload).items()}
    options = DeltaRuleOptions(
        scale=workload.K**-0.5,
        normalize_qk=True,
        gate_in_kernel=True,
        beta_sigmoid=True,
        layout=workload.layout,
        lower_bound=gate.lower_bound,
        safe_gate=safe_gate,
    )
    A_log = 0.5 * source.normal(workload.heads[1]) + gate.A_log
    return {**drawn, "options": options, "A_log": A_log, "dt_bias": source.normal(*gate.shape(workload)) + gate.dt_bias}


def beforehand(workload: Workload, T: int, dtype: torch.dtype, source: Source) -> dict[str, Any]:
    """Return tokens [1, T, ...] as the rule takes them.

    Keys and queries have length 1, log gates lie in (-0.1, 0] and strengths in [0, 1).
    """
    (H, HV), K, V = workload.heads, workload.K, workload.V
    return {
        **{name: F.normalize(source.normal(1, T, H, K), dim=-1).to(dtype) for name in ("q", "k")},
        "v": source.normal(1, T, HV, V).to(dtype),
        "g": -0.1 * source.uniform(1, T, HV),
        "beta": source.uniform(1, T, HV).to(dtype),
        "options": DeltaRuleOptions(scale=K**-0.5, layout=workload.layout),
    }
