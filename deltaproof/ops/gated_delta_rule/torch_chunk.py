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
    R, C, H, K = q.shape
    HV, V = v.shape[2:]
    q, k = (x.transpose(1, 2)[:, :, None] for x in (q, k))  # [R, H, 1, C, K]
    v, g, beta = (x.transpose(1, 2).unflatten(1, (H, HV // H)) for x in (v, g, beta))  # [R, H, G, C(, V)]
    G = g.clamp(min=MIN_LOG_GATE).cumsum(-1)  # [R, H, G, C]
    lower = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    # masked before the exponential: above the diagonal the difference is positive and may overflow
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(~lower, float("-inf")).exp()  # [R, H, G, C, C]
    system = (k @ k.mT) * decay * beta[..., None]
    grown = G.exp()[..., None]  # [R, H, G, C, 1]
    right = torch.cat([v * beta[..., None], k * (beta[..., None] * grown)], -1)  # [R, H, G, C, V + K]
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split([V, K], -1)
    end = G[..., -1:]
    parts = (u, w, q * grown, k * (end - G).exp()[..., None], (q @ k.mT) * decay, end.exp()[..., None])
    return Intra(*(x.flatten(1, 2) for x in parts))


RULE = TorchRule(log_gate, intra)
