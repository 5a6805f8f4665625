"""The part of chunked Kimi delta attention in PyTorch that is its own: a chunk without its state.

The derivation stands in this folder's README. Shape legend: R rows (chunks), H query/key heads, HV value heads, C chunk
size, K key size, V value size, B rows of a sub-chunk.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE, repeat_heads
from deltaproof.ops.common.torch_rule import Intra, TorchRule
from deltaproof.ops.kda.gate import log_gate

SUB_CHUNK = 16


def faded_products(x: torch.Tensor, k: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Return sum_c x_ic k_jc exp(G_ic - G_jc) for j <= i, and 0 above, [R, HV, C, C].

    x, k and the cumulative log gate G are [R, HV, C, K]. Between sub-chunks the exponential is split in two at the
    first row of the later one, where both factors are at most 1 and neither knows a token behind its row; inside a
    sub-chunk no such row exists, and the differences are taken one by one.
    """
    C = x.shape[2]
    B = min(SUB_CHUNK, C)
    inner = torch.ones(B, B, dtype=torch.bool, device=x.device).tril()
    rows = []
    for start in range(0, C, B):
        own = slice(start, start + B)
        # masked before the exponential: above the diagonal the difference is positive and may overflow
        difference = (G[:, :, own, None] - G[:, :, None, own]).masked_fill(~inner[..., None], float("-inf"))
        diagonal = (x[:, :, own, None] * (k[:, :, None, own] * difference.exp())).sum(-1)  # [R, HV, B, B]
        after = x.new_zeros(*x.shape[:2], B, C - start - B)
        parts = [diagonal, after]
        if start:
            at = G[:, :, start : start + 1]
            left = x[:, :, own] * (G[:, :, own] - at).exp()  # [R, HV, B, K]
            right = k[:, :, :start] * (at - G[:, :, :start]).exp()  # [R, HV, start, K]
            parts = [left @ right.mT, *parts]
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows, -2)


def intra(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor) -> Intra:
    """Return what chunks need without a state.

    q, k are [R, C, H, K], v [R, C, HV, V], the log gate g [R, C, HV, K] and beta [R, C, HV].
    """
    HV = v.shape[2]
    q, k = (repeat_heads(x, HV).transpose(1, 2) for x in (q, k))  # [R, HV, C, K]
    v, g = v.transpose(1, 2), g.transpose(1, 2)
    beta = beta.transpose(1, 2)[..., None]  # [R, HV, C, 1]
    G = g.clamp(min=MIN_LOG_GATE).cumsum(-2)  # [R, HV, C, K]
    grown, end = G.exp(), G[:, :, -1:]
    system, attention = faded_products(k, k, G) * beta, faded_products(q, k, G)
    return Intra(system, beta, v, k * grown, q * grown, k * (end - G).exp(), attention, end.exp().mT)


RULE = TorchRule(log_gate, intra)
