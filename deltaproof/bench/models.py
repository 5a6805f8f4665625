"""Heads of public models as one GPU sees them, from their configurations. Imports no torch.

``linear_num_key_heads`` and ``linear_num_value_heads`` of Qwen3.5 and Qwen3.6, ``linear_attn_config.num_heads`` of Kimi
Linear; all have heads of 128. Tensor parallelism divides both.
"""

from __future__ import annotations

from collections.abc import Mapping

Heads = tuple[int, int]

TENSOR_PARALLEL = (1, 2, 4, 8)
MODELS: Mapping[str, Mapping[str, Heads]] = {
    "gated_delta_rule": {
        "Qwen3.5 397B and 122B": (16, 64),
        "Qwen3.5 and Qwen3.6 27B": (16, 48),
        "Qwen3.5 35B, 9B and 4B, Qwen3.6 35B": (16, 32),
        "Qwen3.5 2B and 0.8B": (16, 16),
    },
    "kda": {"Kimi Linear 48B": (32, 32)},
}
"""Operator -> models -> q,k heads and value heads of a layer."""


def model_heads(operator: str) -> list[Heads]:
    """Return the heads of an operator's models on one GPU of 1, 2, 4 and 8."""
    return [(H // tp, HV // tp) for H, HV in MODELS[operator].values() for tp in TENSOR_PARALLEL]
