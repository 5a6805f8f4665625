"""What sets the operators apart for the bench: their gates, and who computes them. Imports no torch.

Shape legend: B rows, T tokens, H q,k heads, HV value heads, K, V head sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltaproof.bench.workload import Workload


@dataclass(frozen=True)
class Gate:
    """An operator's gate as its models compute it, in the kernel.

    Attributes:
        A_log: mean of A_log.
        dt_bias: mean of dt_bias.
        per_channel: g is [B, T, HV, K] and dt_bias [HV, K]; else [B, T, HV] and [HV].
        lower_bound: what no log gate is below; None for the gate by softplus.
        raw_sequences: the kernel computes the gate of sequences too, from raw tokens; else log gates are computed
            beforehand, in float32.
    """

    A_log: float
    dt_bias: float
    per_channel: bool = False
    lower_bound: float | None = None
    raw_sequences: bool = False

    def shape(self, workload: Workload) -> tuple[int, ...]:
        """Return the shape of a token's gate, which is that of its bias."""
        HV = workload.heads[1]
        return (HV, workload.K) if self.per_channel else (HV,)

    def token_shapes(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a token's q, k, v, g and beta."""
        (H, HV), K, V = workload.heads, workload.K, workload.V
        return {"q": (H, K), "k": (H, K), "v": (HV, V), "g": self.shape(workload), "beta": (HV,)}


GATES: Mapping[str, Gate] = {
    "gated_delta_rule": Gate(A_log=-1.5, dt_bias=0.0),
    # these means spread the channels' log gates from near 0 to near the bound: some forget, and some remember long
    "kda": Gate(A_log=0.0, dt_bias=-4.0, per_channel=True, lower_bound=-5.0, raw_sequences=True),
}
"""By operator."""
