"""What an operator of the delta rule says of itself for the torch forms: its log gate, and a chunk without its state.

Shape legend: R rows (chunks, ordered as in ops/common/packing), HV value heads, C chunk size, K key size, V value size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deltaproof.ops.common.calls import DeltaRuleCall


@dataclass(frozen=True)
class Intra:
    """What a chunk needs that does not depend on the state."""

    system: torch.Tensor  # [R, HV, C, C] beta k . k, decayed, read below the diagonal
    beta: torch.Tensor  # [R, HV, C, 1]
    v: torch.Tensor  # [R, HV, C, V]
    keys: torch.Tensor  # [R, HV, C, K] exp(G) k
    queries: torch.Tensor  # [R, HV, C, K] exp(G) q
    kept: torch.Tensor  # [R, HV, C, K] exp(G_end - G) k
    attention: torch.Tensor  # [R, HV, C, C] q . k, decayed, causal
    decay: torch.Tensor  # [R, HV, 1 or K, 1] exp(G_end)


@dataclass(frozen=True)
class TorchRule:
    """One operator.

    Attributes:
        log_gate: returns a call's log gate [B, T, HV] or [B, T, HV, K] in a dtype.
        intra: takes q, k [R, C, H, K], v [R, C, HV, V], the log gate and beta [R, C, HV] in fp32.
    """

    log_gate: Callable[[DeltaRuleCall, torch.dtype], torch.Tensor]
    intra: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Intra]
