"""The convolution in a walk: the same slots, leases and steps as the delta rule's states.

Shape legend: N rows of a step, B batch, T tokens, C channels, W width, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall, ConvOptions, ConvPrefillCall, time_first
from deltaproof.state import ConvDraftField, ConvField, ConvLayout
from deltaproof.verify.conv.judge import expected
from deltaproof.verify.observation import Observation, compare, same_bits
from deltaproof.verify.serving.requests import Sizes

CHANNELS, WIDTH = 6, 4
HAZARD = "aliased-slot"


@dataclass(frozen=True)
class Step:
    """One step of the convolution.

    Attributes:
        form: decode or prefill.
        shape: (N, T) for decode, (1, T) for prefill.
        counts: new tokens of each row.
        slots: the slot each row writes; None for padding.
        arguments: the plan's.
        lines: inputs of each row so far [t, C]; None before its first token, and for padding.
        taken: inputs that each row takes in, where the step is a speculative one; else None.
        drafts: the drafts [S, 2, D, C] of such a step.
    """

    form: str
    shape: tuple[int, int]
    counts: list[int]
    slots: list[int | None]
    arguments: dict[str, Any]
    lines: list[torch.Tensor | None]
    taken: list[torch.Tensor | None] | None = None
    drafts: torch.Tensor | None = None


class Windows:
    """Draws the convolution's inputs, makes its calls, and holds each row to its own inputs.

    Args:
        backend: a backend of ``causal_conv1d``.
        sizes: what the walk runs on; inputs and windows have its dtype, so that a window holds inputs as they are.
        device: where it runs.
        seed: seed of weights and inputs.
    """

    def __init__(self, backend: Any, sizes: Sizes, device: str, seed: int) -> None:
        self.backend, self.device = backend, device
        self.generator = torch.Generator().manual_seed(seed + 1)
        layout = list(ConvLayout)[seed % 2]
        self.field = ConvField("window", CHANNELS, WIDTH, sizes.dtype, layout)
        self.drafts = ConvDraftField("inputs", max(sizes.drafts, 1), CHANNELS, sizes.dtype)
        self.options = ConvOptions(silu=True, layout=layout)
        self.weight = self._draw(CHANNELS, WIDTH) * WIDTH**-0.5
        self.bias = self._draw(CHANNELS)

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def step(
        self, pool: torch.Tensor, step: Step
    ) -> tuple[Observation | None, list[torch.Tensor | None], list[torch.Tensor]]:
        """Make one step on the windows ``pool`` of the layer.

        Returns:
            what is wrong, if anything, the inputs of each row that its window has seen now, and its new ones.
        """
        B, T = step.shape
        x = torch.full((B, T, CHANNELS), torch.nan, dtype=self.field.dtype, device=self.device)
        places: list[tuple[int, slice]] = []
        at = 0
        for row, count in enumerate(step.counts):
            places.append((row, slice(0, count)) if step.form == "decode" else (0, slice(at, at + count)))
            at += count
        for slot, place, count in zip(step.slots, places, step.counts, strict=True):
            if slot is not None:
                x[place] = self._draw(count, CHANNELS).to(x.dtype)
        kind: Any = ConvDecodeCall if step.form == "decode" else ConvPrefillCall
        more = {} if step.drafts is None else {"drafts": step.drafts}
        call = kind(x=x, weight=self.weight, bias=self.bias, options=self.options, pool=pool, **more, **step.arguments)
        y = getattr(self.backend, step.form)(call)
        after: list[torch.Tensor | None] = []
        problem = None
        for row, (slot, place) in enumerate(zip(step.slots, places, strict=True)):
            if slot is None:
                after.append(None)
                continue
            taken = None if step.taken is None else step.taken[row]
            parts = [part for part in (step.lines[row], taken) if part is not None]
            before = torch.cat([x.new_zeros(0, CHANNELS), *parts])
            after.append(before if step.taken is not None else torch.cat([before, x[place]]))
            problem = problem or self._row(row, before, after[-1], x[place], y[place], pool[slot])
            if step.drafts is not None and problem is None:
                problem = self._kept(step, row, slot, x[place])
        return problem, after, [x[place] for place in places]

    def _row(
        self,
        row: int,
        before: torch.Tensor,
        after: torch.Tensor | None,
        x: torch.Tensor,
        y: torch.Tensor,
        window: torch.Tensor,
    ) -> Observation | None:
        """Hold one row to the definition: the tokens x follow ``before``, and the window has seen ``after``."""
        assert after is not None
        alone = ConvPrefillCall(
            x=x[None].cpu(), weight=self.weight.cpu(), bias=self.bias.cpu(), options=self.options,
            pool=self._window(before)[None].cpu(), read_index=torch.tensor([0]),
        )  # fmt: skip
        want, _ = expected(alone)
        what = f"row {row} of the convolution, against its own inputs"
        seen = same_bits("window", window.cpu(), self._window(after).cpu(), "P2", HAZARD, what)
        if seen.ok and x.shape[0]:
            seen = compare(y[None].cpu(), want, "N2", HAZARD)
        return None if seen.ok else seen

    def _window(self, line: torch.Tensor) -> torch.Tensor:
        """Return the window after the inputs ``line`` [t, C]."""
        kept = torch.cat([line.new_zeros(WIDTH - 1, CHANNELS), line])[-(WIDTH - 1) :]
        return time_first(kept, self.field.layout)

    def _kept(self, step: Step, row: int, slot: int, x: torch.Tensor) -> Observation | None:
        """Hold the drafts of a row to its own inputs."""
        assert step.drafts is not None
        half = int(step.arguments["draft_half"][row])
        kept = step.drafts[slot, 1 - half if half >= 0 else 0, : x.shape[0]]
        seen = same_bits("drafts", kept, x, "P7", HAZARD, f"row {row} of the convolution: its own inputs")
        return None if seen.ok else seen
