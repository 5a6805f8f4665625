"""Which program computes what: one program a sequence and value head, all of them at once.

Shape legend: P programs, L tokens a program, rounded up to whole chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall


@dataclass(frozen=True)
class Grid:
    """The programs of one launch.

    Attributes:
        sequence, head, row, start, length: [P] sequence, value head, batch row, first token, number of tokens.
        chunk: tokens a chunk.
        steps: L.
        total: T, the token rows of every input.
    """

    sequence: torch.Tensor
    head: torch.Tensor
    row: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    chunk: int
    steps: int
    total: int

    @classmethod
    def of(cls, call: SequenceCall | DecodeCall | PrefillCall, chunk: int) -> Grid:
        """Return the programs of a call, cut into chunks of ``chunk`` tokens from each sequence's own start."""
        B, T, _, HV, _, _ = call.dims
        bounds = None if isinstance(call, DecodeCall) else call.cu_seqlens
        device = call.q.device
        if bounds is None:
            row = torch.arange(B, device=device)
            start, length = torch.zeros_like(row), torch.full_like(row, T)
            if isinstance(call, DecodeCall) and call.num_tokens is not None:
                length = call.num_tokens.long().clamp(0, T)
        else:
            # nobody checked the bounds here: one outside the tokens counts as the nearest, as in a kernel
            start = bounds[:-1].long().clamp(0, T)
            length = torch.maximum(bounds[1:].long().clamp(0, T), start) - start
            row = torch.zeros_like(start)
        N = row.shape[0]
        head = torch.arange(HV, device=device).repeat(N)
        sequence = torch.arange(N, device=device)
        sequence, row, start, length = (x.repeat_interleave(HV) for x in (sequence, row, start, length))
        longest = int(length.max()) if length.numel() else 0
        return cls(sequence, head, row, start, length, chunk, -(-longest // chunk) * chunk, T)

    @property
    def programs(self) -> int:
        """Return P."""
        return self.head.shape[0]

    @property
    def lane(self) -> torch.Tensor:
        """Return the token numbers inside a sequence, [L]."""
        return torch.arange(self.steps, device=self.head.device)

    @property
    def valid(self) -> torch.Tensor:
        """Return which places hold a token of the program's sequence, [P, L]."""
        return self.lane < self.length[:, None]

    def running(self, chunk: int) -> torch.Tensor:
        """Return which programs have tokens in a chunk, [P, 1, 1]."""
        return (chunk * self.chunk < self.length)[:, None, None]
