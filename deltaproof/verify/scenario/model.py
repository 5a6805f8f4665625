"""A tiny hybrid model: gated delta rule, attention over a short window, gated delta rule.

Training and serving run the same layers. They differ in who convolves, who runs the delta rule and who keeps the past
of the attention: a ``Mixer`` does.

Shape legend: B rows, T tokens, D width, H heads, K, V head sizes, C channels of the convolution, P tokens of the past.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from deltaproof.operators.gated_delta_rule import chunk_gated_delta_rule

WIDTH, HEADS, K, V = 64, 2, 32, 32
TAPS = 4
"""Tokens that the convolution sees."""
CHANNELS = HEADS * (2 * K + V)
WINDOW = 8
"""Tokens that the attention sees, the present one among them."""
KINDS = ("gdn", "attention", "gdn")
GDN_LAYERS = KINDS.count("gdn")
WEIGHTS = Path(__file__).with_name("recall.pt")


class Mixer(Protocol):
    """What a layer needs of the tokens before its own; ``layer`` counts layers of one kind."""

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return silu of the causal convolution of x [B, T, C] with weight [C, TAPS]."""
        ...

    def rule(self, layer: int, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the gated delta rule's o [B, T, H, V]; q and k are not normalised, g and beta are raw."""
        ...

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the attention over the window [B, T, H, V]; bias [H, WINDOW] is by distance."""
        ...


RULE: dict[str, Any] = {"use_qk_l2norm_in_kernel": True, "use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True}
"""How every form of the delta rule is called here."""


def window_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, past: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend to the last ``WINDOW`` tokens.

    Args:
        q: queries [B, T, H, K].
        k: keys [B, P + T, H, K]; v [B, P + T, H, V] beside them.
        v: see ``k``.
        bias: [H, WINDOW], by distance.
        past: how many of the P tokens, the last ones, there are [B]; None means P = 0.

    Returns:
        [B, T, H, V].
    """
    T, S = q.shape[1], k.shape[1]
    distance = (S - T + torch.arange(T))[:, None] - torch.arange(S)  # [T, S]
    seen = (distance >= 0) & (distance < WINDOW)
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    scores = scores + bias[:, distance.clamp(0, WINDOW - 1)]
    if past is not None:
        there = torch.arange(S)[None] >= S - T - past[:, None]  # [B, S]
        seen = seen & there[:, None, None]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", weights, v)


class Training:
    """The mixer of whole sequences from their first token on; differentiable.

    Args:
        forget: run every token of the delta rule from a state of zero, to see what depends on the state.
    """

    def __init__(self, *, forget: bool = False) -> None:
        self.forget = forget

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Convolve a whole sequence."""
        padded = functional.pad(x.transpose(1, 2), (TAPS - 1, 0))
        return functional.silu(functional.conv1d(padded, weight[:, None], groups=weight.shape[0])).transpose(1, 2)

    def rule(self, layer: int, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Run the chunked form."""
        if self.forget:
            B, T = inputs["q"].shape[:2]
            tokens = {name: x if x.dim() == 1 else x.reshape(B * T, 1, *x.shape[2:]) for name, x in inputs.items()}
            o = chunk_gated_delta_rule(**tokens, **RULE, chunk_size=16)[0]
            return o.view(B, T, *o.shape[2:])
        return chunk_gated_delta_rule(**inputs, **RULE, chunk_size=16)[0]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Attend inside the sequence."""
        return window_attention(q, k, v, bias)


class GdnLayer(nn.Module):
    """Convolution, gated delta rule, gate."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.RMSNorm(WIDTH)
        self.parts = (CHANNELS, HEADS * V, HEADS, HEADS)
        self.enter = nn.Linear(WIDTH, sum(self.parts), bias=False)
        self.taps = nn.Parameter(torch.randn(CHANNELS, TAPS) * TAPS**-0.5)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(HEADS)), nn.Parameter(torch.full((HEADS,), -4.0))
        # reads that are nearly nothing stay so
        self.head_norm = nn.RMSNorm(V, eps=1e-3)
        self.leave = nn.Linear(HEADS * V, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, mixer: Mixer) -> torch.Tensor:
        """Return what is added to x [B, T, D]."""
        mixed, gate, g, beta = self.enter(self.norm(x)).split(self.parts, -1)
        mixed = mixer.convolve(self.layer, mixed.contiguous(), self.taps)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).contiguous() for part in mixed.split((HEADS * K, HEADS * K, HEADS * V), -1)
        )
        inputs = {"q": q, "k": k, "v": v, "g": g.contiguous(), "beta": beta.contiguous()}
        o = mixer.rule(self.layer, inputs | {"A_log": self.A_log, "dt_bias": self.dt_bias})
        return self.leave(self.head_norm(o).flatten(-2) * functional.silu(gate))


class AttentionLayer(nn.Module):
    """Attention over ``WINDOW`` tokens, with a bias by distance."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.RMSNorm(WIDTH)
        self.enter = nn.Linear(WIDTH, HEADS * (2 * K + V), bias=False)
        self.bias = nn.Parameter(torch.zeros(HEADS, WINDOW))
        self.leave = nn.Linear(HEADS * V, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, mixer: Mixer) -> torch.Tensor:
        """Return what is added to x [B, T, D]."""
        parts = self.enter(self.norm(x)).split((HEADS * K, HEADS * K, HEADS * V), -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in parts)
        return self.leave(mixer.attend(self.layer, q, k, v, self.bias).flatten(-2))


class RecallModel(nn.Module):
    """Tokens in, scores of the next token out."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, WIDTH)
        layers: list[nn.Module] = []
        for at, kind in enumerate(KINDS):
            before = KINDS[:at].count(kind)
            layers.append(GdnLayer(before) if kind == "gdn" else AttentionLayer(before))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.RMSNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, mixer: Mixer) -> torch.Tensor:
        """Return scores [B, T, vocabulary] of tokens [B, T]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x, mixer)
        return self.scores(self.norm(x))


def load(path: Path = WEIGHTS) -> RecallModel:
    """Return the trained model, for inference, in float32."""
    kept = torch.load(path, weights_only=True)
    model = RecallModel(kept["embed.weight"].shape[0])
    model.load_state_dict({name: x.float() for name, x in kept.items()})
    return model.eval().requires_grad_(False)
