"""One step of a batch on the device: the model's layers against pools, and the attention against each request's past.

Shape legend: N rows, padded; T tokens a row; P tokens of the past that the window holds; H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from deltaproof.ops.common.calls import Drafts
from deltaproof.verify.scenario.adapters import Adapter
from deltaproof.verify.scenario.model import RecallModel, window_attention
from deltaproof.verify.scenario.requests import PAST, Request


class Pools(Protocol):
    """Where states lie."""

    def states(self, layer: int) -> torch.Tensor:
        """Return a layer's states [S, H, K, V]."""
        ...

    def windows(self, layer: int) -> torch.Tensor:
        """Return a layer's windows of the convolution [S, C, TAPS - 1]."""
        ...

    def drafts(self, layer: int) -> tuple[Drafts, torch.Tensor] | None:
        """Return a layer's drafts of the delta rule, and of the convolution; None where there are none."""
        ...


@dataclass
class Step:
    """A planned step, and the mixer that runs it.

    Attributes:
        form: "decode" (rows of at most T tokens) or "prefill" (sequences side by side).
        rows: whose rows these are, without padding at the end.
        counts: tokens of each.
        arguments: what the operators take of it.
        pools: where states lie.
        adapter: the delta rule.
    """

    form: str
    rows: Sequence[Request]
    counts: Sequence[int]
    arguments: Mapping[str, Any]
    pools: Pools
    adapter: Adapter

    def run(self, model: RecallModel, tokens: torch.Tensor) -> torch.Tensor:
        """Run tokens [N, T] or [1, T]; return the scores' largest [N, T]."""
        best: torch.Tensor = model(tokens, self).argmax(-1)
        return best

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Convolve against the windows in the pool."""
        return self.adapter.convolve(self.form, x, weight, self.pools.windows(layer), self._arguments(layer, 1))

    def rule(self, layer: int, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Run the delta rule against the states in the pool."""
        return self.adapter.rule(self.form, inputs, self.pools.states(layer), self._arguments(layer, 0))

    def _arguments(self, layer: int, which: int) -> dict[str, Any]:
        """Return the step's arguments, with the drafts of the delta rule (0) or the convolution (1) if it has any."""
        drafts = self.pools.drafts(layer) if "draft_half" in self.arguments else None
        return {**self.arguments, **({} if drafts is None else {"drafts": drafts[which]})}

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Attend to each request's own past, and keep the new keys and values there."""
        if self.form == "prefill":
            ends = self.arguments["cu_seqlens"].tolist()
            parts = [
                self._attend(layer, [row], [part[:, ends[at] : ends[at + 1]] for part in (q, k, v)], bias)
                for at, row in enumerate(self.rows)
            ]
            return torch.cat(parts, 1)
        return self._attend(layer, self.rows, [q, k, v], bias)

    def _attend(
        self, layer: int, rows: Sequence[Request], parts: Sequence[torch.Tensor], bias: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = parts
        N, T, H, K = q.shape
        past = q.new_zeros(N, 2, PAST, H, K)
        counts = torch.zeros(N, dtype=torch.long)
        for at, row in enumerate(rows):
            past[at] = row.past[layer, :, row.fed : row.fed + PAST]
            counts[at] = min(row.fed, PAST)
            room = min(T, row.past.shape[2] - PAST - row.fed)
            row.past[layer, 0, PAST + row.fed : PAST + row.fed + room] = k[at, :room]
            row.past[layer, 1, PAST + row.fed : PAST + row.fed + room] = v[at, :room]
        keys, values = torch.cat([past[:, 0], k], 1), torch.cat([past[:, 1], v], 1)
        return window_attention(q, keys, values, bias, counts)
