"""The torch backend of the causal convolution as a kernel would take its steps, each a method of its own.

It is a right backend, and gives the torch backend's bits; a mutant is a line or two of it gone wrong. Loads and stores
go through ``Pointer``: an address that leaves a tensor reaches the memory around it. A program has one row or sequence.
Shape legend: N rows or sequences, L places a row, B batch, T tokens, C channels, W width in tokens, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall
from deltaproof.ops.causal_conv1d.torch_backend import TorchBackend
from deltaproof.verify.mutants.conv.speculation import ConvSpeculation
from deltaproof.verify.mutants.model.pointer import Pointer


@dataclass(frozen=True)
class Rows:
    """Where the tokens of every row are, and which slots it has.

    Attributes:
        batch: row of x that holds its tokens [N].
        start: first of them there [N].
        length: how many of them count [N].
        extent: how many outputs it owns, those that must be zero among them [N].
        read, write: slots, as addresses are made from them [N].
        live: whether it is no padding row [N].
        used: whether it starts from what its slot holds [N].
        kept: whether its new window is stored [N].
    """

    batch: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    extent: torch.Tensor
    read: torch.Tensor
    write: torch.Tensor
    live: torch.Tensor
    used: torch.Tensor
    kept: torch.Tensor


class ConvModel(ConvSpeculation, TorchBackend):
    """The unbroken backend."""

    name = "model"

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        return self.run(call, call.out) if call.drafts is None else self.speculate(call)

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        return self.run(call, None)

    @torch.no_grad()
    def run(self, call: ConvCall, out: torch.Tensor | None) -> torch.Tensor:
        """Run a form into ``out``, or into new memory."""
        if out is None:
            out = call.allocate(call.x.shape, dtype=call.x.dtype, device=call.x.device)
        self.steps(call, self.rows(call), out)
        self.zero_tail(call, out)
        return out

    def steps(self, call: ConvCall, rows: Rows, out: torch.Tensor) -> None:
        """Write the outputs, then the windows: in place the new one lies where the old one was."""
        old = self.old_window(call, rows)
        self.outputs(call, rows, old, out)
        self.store_window(call, rows, self.new_window(call, rows, old))

    def rows(self, call: ConvCall) -> Rows:
        """Return what the rows are."""
        batch, start, length, extent = self.spans(call)
        slots, reads, writes = call.pool.shape[0], self.read_index(call), self.write_index(call)
        live = self.slot_mask(reads, slots)
        return Rows(
            batch, start, length, extent, self.slot_of(reads, slots), self.slot_of(writes, slots), live,
            self.used(call, live), self.kept(call, live, writes),
        )  # fmt: skip

    def spans(self, call: ConvCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return batch, start, length and extent of every row."""
        B, T, _, _ = call.dims
        if isinstance(call, ConvPrefillCall) and call.cu_seqlens is not None:
            bounds = call.cu_seqlens.long().clamp(0, T).cummax(0).values
            start, length = bounds[:-1], bounds[1:] - bounds[:-1]
            return torch.zeros_like(start), start, length, length
        batch = torch.arange(B, device=call.x.device)
        whole = torch.full_like(batch, T)
        return batch, torch.zeros_like(batch), self.counts(call, whole), whole

    def counts(self, call: ConvCall, whole: torch.Tensor) -> torch.Tensor:
        """Return how many tokens of a row of T count [N]."""
        if isinstance(call, ConvPrefillCall) or call.num_tokens is None:
            return whole
        return torch.minimum(call.num_tokens.long().clamp(min=0), whole)

    def read_index(self, call: ConvCall) -> torch.Tensor:
        """Return the index of the slot that a row starts from."""
        return call.read_index

    def write_index(self, call: ConvCall) -> torch.Tensor:
        """Return the index of the slot that keeps a row's window."""
        return call.writes

    def slot_mask(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which indices name a slot."""
        return (index >= 0) & (index < slots)

    def slot_of(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the slot that an index names."""
        return index.long()

    def used(self, call: ConvCall, live: torch.Tensor) -> torch.Tensor:
        """Return which rows start from their slot; the others start from zeros."""
        return live if call.has_initial_state is None else live & call.has_initial_state

    def kept(self, call: ConvCall, live: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
        """Return which rows store their window."""
        return live & self.slot_mask(writes, call.pool.shape[0])

    def pool_of(self, call: ConvCall) -> torch.Tensor:
        """Return the pool that is read and written."""
        return call.pool

    def window_strides(self, call: ConvCall) -> tuple[int, int, int]:
        """Return the pool's strides over slots, time and channels."""
        slot, outer, inner = self.pool_of(call).stride()
        return (slot, inner, outer) if call.options.layout is ConvLayout.CHANNELS_FIRST else (slot, outer, inner)

    def slot_offset(self, slot: torch.Tensor, stride: int) -> torch.Tensor:
        """Return the offset [N] of a slot in 64 bits."""
        return slot * stride

    def window_place(self, call: ConvCall, slot: torch.Tensor) -> torch.Tensor:
        """Return the addresses of the windows in these slots [N, W - 1, C]."""
        _, _, C, W = call.dims
        slots, time, channels = self.window_strides(call)
        w, c = torch.arange(W - 1, device=slot.device), torch.arange(C, device=slot.device)
        return self.slot_offset(slot, slots)[:, None, None] + w[:, None] * time + c * channels

    def old_window(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        """Return what stands before every row's first token [N, W - 1, C], in fp32."""
        return self.load_window(call, rows.read, rows.used)

    def load_window(self, call: ConvCall, slot: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """Return the windows in slots [N], zeros where not ``used`` [N]."""
        return Pointer(self.pool_of(call)).load(self.window_place(call, slot), used[:, None, None])

    def new_window(self, call: ConvCall, rows: Rows, old: torch.Tensor) -> torch.Tensor:
        """Return the last W - 1 of the old window and the tokens [N, W - 1, C]."""
        W = call.dims[3]
        at = self.window_length(call, rows)[:, None] - (W - 1) + torch.arange(W - 1, device=old.device)
        past = self.old_part(call, old, at)
        return torch.where((at < 0)[..., None], past, self.load_tokens(call, rows, at, at >= 0))

    def window_length(self, call: ConvCall, rows: Rows) -> torch.Tensor:
        """Return behind how many tokens of a row its window is cut [N]."""
        return rows.length

    def old_part(self, call: ConvCall, old: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return what the old window holds at places before the first token; ``at`` [N, W - 1] is negative there."""
        W = call.dims[3]
        return old.gather(1, (at + W - 1).clamp(0, W - 2)[..., None].expand_as(old))

    def store_window(self, call: ConvCall, rows: Rows, window: torch.Tensor) -> None:
        """Store the new windows."""
        pool = self.pool_of(call)
        place = self.window_place(call, rows.write)
        Pointer(pool).store(place, window.to(pool.dtype), rows.kept[:, None, None])

    def token_strides(self, call: ConvCall) -> tuple[int, ...]:
        """Return the strides by which x is walked."""
        return call.x.stride()

    def load_tokens(self, call: ConvCall, rows: Rows, at: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the rows' inputs at places ``at`` [N, L] as [N, L, C] in fp32, zeros where not ``mask`` [N, L]."""
        batch, token, channel = self.token_strides(call)
        base = rows.batch[:, None] * batch + (rows.start[:, None] + at) * token
        c = torch.arange(call.dims[2], device=at.device)
        return Pointer(call.x).load(base[..., None] + c * channel, (mask & rows.live[:, None])[..., None])

    def tap(
        self, call: ConvCall, rows: Rows, old: torch.Tensor, place: torch.Tensor, valid: torch.Tensor, j: int
    ) -> torch.Tensor:
        """Return what weight j meets at places [L] of every row [N, L, C]."""
        W = call.dims[3]
        back = place - (W - 1) + j
        past = old[:, (back + W - 1).clamp(0, W - 2)]
        now = self.load_tokens(call, rows, back.expand_as(valid), valid & (back >= 0))
        return torch.where((back < 0)[:, None], past, now)

    def total(self, call: ConvCall, taps: list[torch.Tensor]) -> torch.Tensor:
        """Return the sums [N, L, C] in fp32: bias, then tap by tap."""
        bias, weight = self.bias(call), call.weight.float()
        total = torch.zeros_like(taps[0]) if bias is None else bias.float().expand_as(taps[0])
        for j, term in enumerate(taps):
            total = total + weight[:, self.weight_at(j, len(taps))] * term
        return total

    def bias(self, call: ConvCall) -> torch.Tensor | None:
        """Return the bias."""
        return call.bias

    def weight_at(self, j: int, W: int) -> int:
        """Return which weight meets tap j; the last one is the present token."""
        return j

    def silu(self, call: ConvCall) -> bool:
        """Return whether the output goes through silu."""
        return call.options.silu

    def outputs(self, call: ConvCall, rows: Rows, old: torch.Tensor, out: torch.Tensor) -> None:
        """Store the outputs of every row, and zeros at its places that do not count."""
        extent = int(rows.extent.max()) if rows.extent.numel() else 0
        place = torch.arange(extent, device=out.device)
        inside = place < rows.extent[:, None]
        valid = (place < rows.length[:, None]) & inside & rows.live[:, None]  # [N, L]
        total = self.total(call, [self.tap(call, rows, old, place, valid, j) for j in range(call.dims[3])])
        if self.silu(call):
            total = total / (1 + torch.exp(-total))
        self.store_outputs(rows, out, torch.where(valid[..., None], total, 0), self.stored(rows, inside, valid))

    def stored(self, rows: Rows, inside: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return which places [N, L] are stored."""
        return inside

    def store_outputs(self, rows: Rows, out: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> None:
        """Store y [N, L, C] into out [B, T, C] where ``mask`` [N, L]."""
        batch, token, channel = out.stride()
        place = rows.batch[:, None] * batch + (rows.start[:, None] + torch.arange(y.shape[1], device=y.device)) * token
        c = torch.arange(y.shape[2], device=y.device)
        Pointer(out).store(place[..., None] + c * channel, y, mask[..., None])

    def zero_tail(self, call: ConvCall, out: torch.Tensor) -> None:
        """Store zeros behind the last sequence."""
        if isinstance(call, ConvPrefillCall) and call.cu_seqlens is not None:
            out[:, max(0, int(call.cu_seqlens[-1])) :] = 0
