"""Loads and stores of the model kernels: every address and every mask is a method of its own.

Shape legend: P programs, L tokens a program, BK, BV head sizes rounded up to a power of two, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.verify.mutants.model.arithmetic import Arithmetic
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.pointer import Pointer, block

Call = SequenceCall | DecodeCall | PrefillCall


@dataclass
class Operands:
    """What a kernel works on, in fp32; masked lanes hold zeros.

    Attributes:
        q, k: [P, L, BK], normalised where asked.
        v: [P, L, BV].
        g, beta: [P, L] log gates that may be summed, and strengths.
        q_norm, k_norm: [P, L, 1] or None; what q and k were divided by.
        raw_gate, raw_beta: [P, L] as loaded, with dt_bias added to the gate.
        unclamped: [P, L] log gates before the clamp.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    raw_gate: torch.Tensor
    raw_beta: torch.Tensor
    unclamped: torch.Tensor


class Memory(Arithmetic):
    """Loads and stores."""

    def strides(self, name: str, x: torch.Tensor) -> tuple[int, ...]:
        """Return the strides by which a tensor is walked."""
        return x.stride()

    def row_mask(self, name: str, grid: Grid) -> torch.Tensor:
        """Return which token rows [P, L] of an input are loaded."""
        return grid.valid

    def lane_mask(self, name: str, lane: torch.Tensor, size: int) -> torch.Tensor:
        """Return which lanes of a block rounded up to a power of two are loaded."""
        return lane < size

    def first_row(self, name: str, grid: Grid) -> torch.Tensor:
        """Return the first token row [P] of each program's sequence."""
        return grid.start

    def query_head(self, grid: Grid, H: int, HV: int) -> torch.Tensor:
        """Return the query/key head [P] of each program's value head."""
        return grid.head // (HV // H)

    def value_head(self, name: str, grid: Grid, call: Call) -> torch.Tensor:
        """Return the head [P] at which v, g, beta, A_log or dt_bias is read."""
        return grid.head

    def load_rows(
        self, name: str, x: torch.Tensor, grid: Grid, head: torch.Tensor, size: int | None = None
    ) -> torch.Tensor:
        """Return the programs' rows of x [B, T, heads(, size)] as [P, L(, block)]."""
        step = self.strides(name, x)
        rows = self.first_row(name, grid)[:, None] + grid.lane
        place = (grid.row * step[0] + head * step[2])[:, None] + rows * step[1]
        mask = self.row_mask(name, grid)
        if size is not None:
            lane = torch.arange(block(size), device=x.device)
            place = place[..., None] + lane * step[3]
            mask = mask[..., None] & self.lane_mask(name, lane, size)
        return Pointer(x).load(place, mask)

    def operands(self, call: Call, grid: Grid) -> Operands:
        """Load everything a kernel needs of the tokens, and apply the options."""
        _, _, H, HV, K, V = call.dims
        options = call.options
        query = self.query_head(grid, H, HV)
        q, k = self.load_rows("q", call.q, grid, query, K), self.load_rows("k", call.k, grid, query, K)
        v = self.load_rows("v", call.v, grid, self.value_head("v", grid, call), V)
        raw_gate = self.load_rows("g", call.g, grid, self.value_head("g", grid, call))
        raw_beta = self.load_rows("beta", call.beta, grid, self.value_head("beta", grid, call))
        q_norm = k_norm = None
        if options.normalize_qk:
            q_norm, k_norm = self.norm(q), self.norm(k)
            q, k = q / q_norm, k / k_norm
        gate, raw_gate = self.log_gate(call, grid, raw_gate)
        beta = self.strength(call, raw_beta)
        return Operands(
            q,
            k,
            v,
            torch.where(self.row_mask("g", grid), self.clamp_gate(gate), 0.0),
            torch.where(self.row_mask("beta", grid), beta, 0.0),
            q_norm,
            k_norm,
            raw_gate,
            raw_beta,
            gate,
        )

    def log_gate(self, call: Call, grid: Grid, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log gates [P, L] and what softplus was taken of."""
        if not call.options.gate_in_kernel:
            return raw, raw
        assert call.A_log is not None
        rate = self.exp(Pointer(call.A_log).load(self.value_head("A_log", grid, call) * call.A_log.stride(0)))
        if call.dt_bias is not None:
            head = self.value_head("dt_bias", grid, call)
            raw = raw + Pointer(call.dt_bias).load(head * call.dt_bias.stride(0))[:, None]
        return -rate[:, None] * self.softplus(raw), raw

    def strength(self, call: Call, raw: torch.Tensor) -> torch.Tensor:
        """Return beta [P, L]."""
        if not call.options.beta_sigmoid:
            return raw
        return self.sigmoid(raw) * (2.0 if call.options.neg_eigval else 1.0)

    def state_strides(self, name: str, x: torch.Tensor, call: Call) -> tuple[int, int, int, int]:
        """Return the strides of a state [S, HV, ., .] over slots, heads, K and V."""
        slot, head, rows, columns = self.strides(name, x)
        if call.options.layout is StateLayout.K_FIRST:
            return slot, head, rows, columns
        return slot, head, columns, rows

    def slot_offset(self, slot: torch.Tensor, slots: int, stride: int) -> torch.Tensor:
        """Return the offset [P] of a slot in 64 bits."""
        return slot.long() * stride

    def state_place(
        self, name: str, x: torch.Tensor, slot: torch.Tensor, grid: Grid, call: Call
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the addresses of the programs' states [P, BK, BV] in x and the mask of their lanes."""
        *_, K, V = call.dims
        slots, heads, rows, columns = self.state_strides(name, x, call)
        i, j = torch.arange(block(K), device=x.device)[:, None], torch.arange(block(V), device=x.device)
        start = self.slot_offset(slot, x.shape[0], slots) + grid.head * heads
        lanes = self.lane_mask("state", i, K) & self.lane_mask("state", j, V)
        return start[:, None, None] + i * rows + j * columns, lanes

    def load_state(
        self, name: str, x: torch.Tensor, slot: torch.Tensor, used: torch.Tensor, grid: Grid, call: Call
    ) -> torch.Tensor:
        """Return the states [P, BK, BV] in slots [P] of x, zero where not ``used`` [P]."""
        place, lanes = self.state_place(name, x, slot, grid, call)
        return Pointer(x).load(place, lanes & used[:, None, None])

    def store_state(
        self,
        name: str,
        x: torch.Tensor,
        slot: torch.Tensor,
        state: torch.Tensor,
        kept: torch.Tensor,
        grid: Grid,
        call: Call,
    ) -> None:
        """Store states [P, BK, BV] into slots [P] of x where ``kept`` [P]."""
        place, lanes = self.state_place(name, x, slot, grid, call)
        Pointer(x).store(place, self.to_output(state, x.dtype), lanes & kept[:, None, None])

    def store_mask(self, grid: Grid) -> torch.Tensor:
        """Return which token rows [P, L] of the output are stored."""
        return grid.valid

    def store_rows(self, out: torch.Tensor, o: torch.Tensor, grid: Grid, mask: torch.Tensor) -> None:
        """Store o [P, L, BV] into out [B, T, HV, V] where ``mask`` [P, L]."""
        step, V = out.stride(), out.shape[3]
        lane = torch.arange(o.shape[2], device=out.device)
        rows = grid.start[:, None] + grid.lane
        place = (grid.row * step[0] + grid.head * step[2])[:, None] + rows * step[1]
        keep = mask[..., None] & (lane < V)
        Pointer(out).store(place[..., None] + lane * step[3], self.to_output(o, out.dtype), keep)

    def zero_tail(self, out: torch.Tensor, cu_seqlens: torch.Tensor | None) -> None:
        """Store zeros into the rows of out [1, T, HV, V] that lie in no sequence."""
        if cu_seqlens is not None:
            out[:, max(0, int(cu_seqlens[-1])) :] = 0
