"""What every torch form does first: fp32 operands, normalisation, beta and the state in one orientation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DeltaRuleOptions

NORM_EPS = 1e-6
MIN_LOG_GATE = -64.0
"""A token's log gate is clamped here before it is summed (clause N1): exp(-64) is below fp32's rounding of 1."""


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Divide the last dimension by sqrt(sum(x ** 2) + 1e-6); a zero row stays zero."""
    return x * torch.rsqrt(_sum(x * x) + NORM_EPS)


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Sum the last dimension, kept, by halves: a library's reduction chooses its order by the whole tensor's shape."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = F.pad(x, (0, width - x.shape[-1]))
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return the sigmoid, each element the same bits wherever it stands in a tensor of whatever size.

    ``torch.sigmoid`` and ``F.softplus`` round otherwise in the last elements of a CPU tensor, those that fill no vector
    register, so a token's value would change when tokens are appended (clause I3). ``exp`` and ``log1p`` do not.
    """
    small = torch.where(x >= 0, -x, x).exp()
    return torch.where(x >= 0, 1.0, small) / (1.0 + small)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(x)), each element the same bits wherever it stands; see ``sigmoid``."""
    return torch.where(x >= 0, x, 0.0) + torch.where(x >= 0, -x, x).exp().log1p()


def operands(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, options: DeltaRuleOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, v, beta in fp32 with normalisation and the beta sigmoid applied where asked."""
    q, k, v, beta = q.float(), k.float(), v.float(), beta.float()
    if options.normalize_qk:
        q, k = normalize(q), normalize(k)
    if options.beta_sigmoid:
        beta = sigmoid(beta) * (2.0 if options.neg_eigval else 1.0)
    return q, k, v, beta


def k_first(state: torch.Tensor, layout: StateLayout) -> torch.Tensor:
    """Return a view of a state [..., HV, K, V] whatever its layout; its own inverse."""
    return state if layout is StateLayout.K_FIRST else state.transpose(-1, -2)


def repeat_heads(x: torch.Tensor, HV: int, dim: int = 2) -> torch.Tensor:
    """Repeat query/key heads so that value head hv reads head hv // (HV // H)."""
    groups = HV // x.shape[dim]
    return x if groups == 1 else x.repeat_interleave(groups, dim)
