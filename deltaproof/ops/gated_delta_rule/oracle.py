"""The gated delta rule by its definition: float64, token by token. Every backend is held to this.

For each value head, with S the state [K, V] (clause S0):

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (x) beta_t (v_t - S'^T k_t)
    o_t = scale S_t^T q_t

Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024), equation 10. Differentiable by autograd.
"""

from __future__ import annotations

from deltaproof.ops.common.delta_oracle import DeltaRuleOracle, PoolResult, recurrence, spans, unrolled
from deltaproof.ops.gated_delta_rule.gate import log_gate

__all__ = ["PoolResult", "decode", "operands64", "prefill", "recurrence", "sequence", "spans", "unrolled"]

ORACLE = DeltaRuleOracle(log_gate)
operands64 = ORACLE.operands64
sequence = ORACLE.sequence
decode = ORACLE.decode
prefill = ORACLE.prefill
