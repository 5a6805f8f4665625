"""The convolution's model: a speculative step (clause P7).

Shape legend: N rows, T tokens a row, C channels, W width in tokens, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.ops.causal_conv1d.calls import ConvDecodeCall
from deltaproof.verify.mutants.halves import Halves


class ConvSpeculation(Halves):
    """What a backend with the model's rows, windows and outputs makes of drafts."""

    def taken_count(self, call: ConvDecodeCall, slot: int) -> int:
        """Return how many drafts of a slot are taken in."""
        assert call.accepted is not None
        return int(call.accepted[slot])

    def kept_window(self, call: ConvDecodeCall, rows: Any, window: torch.Tensor) -> torch.Tensor:
        """Return the windows that are stored; ``window`` [N, W - 1, C] has taken the drafts in."""
        return window

    def seen_window(self, old: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Return the windows that the outputs see, out of that of the slot and the one with the drafts."""
        return window

    @torch.no_grad()
    def speculate(self: Any, call: ConvDecodeCall) -> torch.Tensor:
        """Run a speculative step."""
        assert call.drafts is not None and call.draft_half is not None
        out = call.out
        if out is None:
            out = call.allocate(call.x.shape, dtype=call.x.dtype, device=call.x.device)
        rows = self.rows(call)
        old = self.old_window(call, rows)
        slots, W = call.pool.shape[0], call.dims[3]
        window = old.clone()
        named = list(zip(call.read_index.tolist(), call.writes.tolist(), call.draft_half.tolist(), strict=True))
        for row, (read, write, half) in enumerate(named):
            if half in (0, 1) and 0 <= read < slots and 0 <= write < slots:
                past = call.drafts[write, half, : self.taken_count(call, write)]
                window[row] = torch.cat([old[row], past.float()])[-(W - 1) :]
        self.outputs(call, rows, self.seen_window(old, window), out)
        self.store_window(call, rows, self.kept_window(call, rows, window))
        for row, (read, write, half) in enumerate(named):
            slot = self.draft_slot(write, slots)
            if slot is not None and self.draft_slot(read, slots) is not None:
                count = int(rows.length[row])
                call.drafts[slot, self.new_half(half), :count] = call.x[row, :count]
        return out
