"""Kimi delta attention by its definition: float64, token by token. Every backend is held to this.

For each value head, with S the state [K, V] and g_t one number a channel (clause S0):

    S' = diag(exp(g_t)) S_{t-1}
    S_t = S' + k_t (x) beta_t (v_t - S'^T k_t)
    o_t = scale S_t^T q_t

Source: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture" (2025), section 3. Differentiable by
autograd.
"""

from __future__ import annotations

from deltaproof.ops.common.delta_oracle import DeltaRuleOracle, PoolResult, recurrence, spans, unrolled
from deltaproof.ops.kda.gate import log_gate

__all__ = ["PoolResult", "decode", "operands64", "prefill", "recurrence", "sequence", "spans", "unrolled"]

ORACLE = DeltaRuleOracle(log_gate)
operands64 = ORACLE.operands64
sequence = ORACLE.sequence
decode = ORACLE.decode
prefill = ORACLE.prefill
