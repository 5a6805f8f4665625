"""The convolution in a walk: the same slots, leases and steps as the delta rule's states.

Shape legend: N rows of a step, B batch, T tokens, C channels, W width.
"""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall, ConvOptions, ConvPrefillCall, time_first
from deltaproof.state import ConvField, ConvLayout
from deltaproof.verify.conv.judge import expected
from deltaproof.verify.observation import Observation, compare, same_bits

CHANNELS, WIDTH = 6, 4
HAZARD = "aliased-slot"


class Windows:
    """Draws the convolution's inputs, makes its calls, and holds each row to its own inputs.

    Args:
        backend: a backend of ``causal_conv1d``.
        dtype: dtype of inputs and windows, so that a window holds inputs as they are.
        device: where it runs.
        seed: seed of weights and inputs.
    """

    def __init__(self, backend: Any, dtype: torch.dtype, device: str, seed: int) -> None:
        self.backend, self.device = backend, device
        self.generator = torch.Generator().manual_seed(seed + 1)
        layout = list(ConvLayout)[seed % 2]
        self.field = ConvField("window", CHANNELS, WIDTH, dtype, layout)
        self.options = ConvOptions(silu=True, layout=layout)
        self.weight = self._draw(CHANNELS, WIDTH) * WIDTH**-0.5
        self.bias = self._draw(CHANNELS)

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def step(
        self,
        form: str,
        pool: torch.Tensor,
        lines: list[torch.Tensor | None],
        counts: list[int],
        shape: tuple[int, int],
        arguments: dict[str, Any],
        slots: list[int | None],
    ) -> tuple[Observation | None, list[torch.Tensor | None]]:
        """Make one step.

        Args:
            form: decode or prefill.
            pool: the windows of the layer.
            lines: inputs of each row so far [t, C]; None before its first token, and for padding.
            counts: new tokens of each row.
            shape: (N, T) for decode, (1, T) for prefill.
            arguments: the plan's.
            slots: the slot each row writes; None for padding.

        Returns:
            what is wrong, if anything, and the inputs of each row now.
        """
        B, T = shape
        x = torch.full((B, T, CHANNELS), torch.nan, dtype=self.field.dtype, device=self.device)
        places, at = [], 0
        for row, count in enumerate(counts):
            places.append((row, slice(0, count)) if form == "decode" else (0, slice(at, at + count)))
            at += count
        for row, (place, count) in enumerate(zip(places, counts, strict=True)):
            if slots[row] is not None:
                x[place] = self._draw(count, CHANNELS).to(x.dtype)
        kind = ConvDecodeCall if form == "decode" else ConvPrefillCall
        call = kind(x=x, weight=self.weight, bias=self.bias, options=self.options, pool=pool, **arguments)
        y = getattr(self.backend, form)(call)
        after: list[torch.Tensor | None] = []
        problem = None
        for row, place in enumerate(places):
            slot = slots[row]
            if slot is None:
                after.append(None)
                continue
            before = lines[row] if lines[row] is not None else x.new_zeros(0, CHANNELS)
            assert before is not None
            after.append(torch.cat([before, x[place]]))
            problem = problem or self._row(row, before, x[place], y[place], pool[slot])
        return problem, after

    def _row(
        self, row: int, before: torch.Tensor, x: torch.Tensor, y: torch.Tensor, window: torch.Tensor
    ) -> Observation | None:
        """Hold one row to the definition, from its first token on."""
        kept = torch.cat([before.new_zeros(WIDTH - 1, CHANNELS), before])[-(WIDTH - 1) :]
        alone = ConvPrefillCall(
            x=x[None].cpu(), weight=self.weight.cpu(), bias=self.bias.cpu(), options=self.options,
            pool=time_first(kept, self.field.layout)[None].cpu(), read_index=torch.tensor([0]),
        )  # fmt: skip
        want, writes = expected(alone)
        what = f"row {row} of the convolution, against its own inputs"
        seen = same_bits("window", window.cpu(), writes[0], "P2", HAZARD, what)
        if seen.ok and x.shape[0]:
            seen = compare(y[None].cpu(), want, "N2", HAZARD)
        return None if seen.ok else seen
