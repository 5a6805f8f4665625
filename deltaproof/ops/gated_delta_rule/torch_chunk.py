"""The part of the chunked gated delta rule in PyTorch that is its own: a chunk without its state.

The derivation stands in this folder's README. Shape legend: R rows (chunks), H query/key heads, G value heads a query
head, HV = H * G, C chunk size, K key size, V value size.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE
from deltaproof.ops.common.torch_rule import Intra, TorchRule
from deltaproof.ops.gated_delta_rule.gate import log_gate


def intra(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor) -> Intra:
    """Return what chunks need without a state, from q, k [R, C, H, K], v [R, C, HV, V] and g, beta [R, C, HV]."""
    C, H = q.shape[1:3]
    HV = v.shape[2]
    q, k = (x.transpose(1, 2)[:, :, None] for x in (q, k))  # [R, H, 1, C, K]
    v, g, beta = (x.transpose(1, 2).unflatten(1, (H, HV // H)) for x in (v, g, beta))  # [R, H, G, C(, V)]
    G = g.clamp(min=MIN_LOG_GATE).cumsum(-1)  # [R, H, G, C]
    lower = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    # masked before the exponential: above the diagonal the difference is positive and may overflow
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(~lower, float("-inf")).exp()  # [R, H, G, C, C]
    beta, grown, end = beta[..., None], G.exp()[..., None], G[..., -1:]  # [R, H, G, C, 1]
    system, attention = (k @ k.mT) * decay * beta, (q @ k.mT) * decay
    kept = k * (end - G).exp()[..., None]
    parts = (system, beta, v, k * grown, q * grown, kept, attention, end.exp()[..., None])
    return Intra(*(x.flatten(1, 2) for x in parts))


RULE = TorchRule(log_gate, intra)
