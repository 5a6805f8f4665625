"""The model backend's speculative step: a decode of what is taken in and of the row's own tokens.

Shape legend: N rows, T tokens a row, P programs, S slots, D drafts a slot can hold.
"""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.ops.common.calls import DecodeCall, Drafts
from deltaproof.ops.gated_delta_rule.oracle import unrolled
from deltaproof.verify.mutants.halves import Halves


class Speculation(Halves):
    """What a backend with ``decode`` and the model's memory makes of drafts."""

    def taken(self, call: DecodeCall) -> DecodeCall:
        """Return the call whose drafts are taken in; the unbroken backend's is the call itself."""
        return call

    def state_after(self, call: DecodeCall, plain: DecodeCall, counts: list[int]) -> DecodeCall:
        """Return the decode of all tokens, which stores the state after each row's accepted drafts."""
        return plain

    def speculate(self: Any, call: DecodeCall) -> torch.Tensor:
        """Run a speculative step."""
        N, T, _, HV, _, V = call.dims
        plain, counts = unrolled(self.taken(call))
        grid = self.grid("decode", call)
        state, live = self.pool_start(call, grid)
        found = self.decode(self.state_after(call, plain, counts))
        none_taken = torch.tensor([count == 0 for count in counts])
        self.keep(call, call.writes, state, live & none_taken[grid.sequence], grid)
        self.keep_drafts(call)
        out = self.allocate_output(call, (N, T, HV, V)) if call.out is None else call.out
        for row, count in enumerate(counts):
            out[row] = found[row, count : count + T]
        return out

    def keep_drafts(self, call: DecodeCall) -> None:
        """Store the rows' own tokens in the drafts of their slots."""
        assert call.drafts is not None and call.draft_half is not None
        slots, T = call.pool.shape[0], call.dims[1]
        for row, (read, write) in enumerate(zip(call.read_index.tolist(), call.writes.tolist(), strict=True)):
            slot = self.draft_slot(write, slots)
            if slot is None or self.draft_slot(read, slots) is None:
                continue
            count = T if call.num_tokens is None else min(max(int(call.num_tokens[row]), 0), T)
            for name in Drafts._fields:
                half = self.new_half(int(call.draft_half[row]))
                getattr(call.drafts, name)[slot, half, :count] = getattr(call, name)[row, :count]
