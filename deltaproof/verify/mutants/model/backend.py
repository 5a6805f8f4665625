"""The model backend: four forms on top of the two kernels, and their gradients.

Shape legend: N sequences or rows, P programs, L tokens a program, S slots, M checkpoints a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deltaproof.contracts.conventions import Conventions
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.checks import check_sequence
from deltaproof.ops.common.pool_checks import check_decode, check_prefill
from deltaproof.verify.mutants.model.chunked import Chunked, Gradients
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call, Operands
from deltaproof.verify.mutants.model.pointer import Pointer
from deltaproof.verify.mutants.model.recurrent import Recurrent
from deltaproof.verify.mutants.model.speculation import Speculation

DIFFERENTIABLE = ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias")
HOST = "addresses are worked out on the host, as an emulation of kernels does"


class ModelBackend(Chunked, Recurrent, Speculation):
    """A right backend, written the way kernels are."""

    name = "model"
    version = "1"
    operator = "gated_delta_rule"
    per_channel = False
    conventions = Conventions()
    unsupported: Mapping[str, str] = {
        "P6": HOST,
        "graph": HOST,
        "compile": HOST,
        "sync_free_varlen": HOST,
    }

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the chunked form."""
        return self._differentiable("chunk", call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the token-by-token form."""
        return self._differentiable("recurrent", call)

    def _differentiable(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        check_sequence(call, gate_per_channel=self.per_channel, values=False)
        tensors = [getattr(call, name) for name in DIFFERENTIABLE]
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            o, final = _Apply.apply(self, form, call, *tensors)
            return o, final
        with torch.no_grad():
            o, final, _ = self.forward(form, call)
        return o, final

    def grid(self, form: str, call: Call) -> Grid:
        """Return the programs of a call."""
        return Grid.of(call, call.options.chunk_size if form in ("chunk", "prefill") else 1)

    def forward(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Return o, the final state or None, and what the backward needs."""
        B, T, _, HV, K, V = call.dims
        grid, device = self.grid(form, call), call.q.device
        x = self.operands(call, grid)
        state = self.initial(call, x, grid)
        low = call.q.dtype
        out = self.allocate_output(call, (B, T, HV, V))
        kept: Any
        if form == "chunk":
            o, after, kept = self.sweep(x, state, grid, call.options.scale, low)
        else:
            o, after = self.steps(x, state, grid, call.options.scale, low)
            kept = [state, *after]
        self.store_rows(out, o, grid, self.store_mask(grid))
        self.zero_tail(out, call.cu_seqlens)
        if not call.output_final_state:
            return out, None, (grid, x, kept)
        last = after[-1] if after else state
        shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
        final = self.final_buffer(call, shape)
        every = torch.ones(grid.programs, dtype=torch.bool, device=device)
        self.store_state("final_state", final, grid.sequence, last, self.final_mask(grid, every), grid, call)
        return out, final, (grid, x, kept)

    def allocate_output(self, call: Call, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the memory of o."""
        return call.allocate(shape, dtype=call.v.dtype, device=call.q.device)

    def final_buffer(self, call: SequenceCall, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the memory of the final states."""
        dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
        return call.allocate(shape, dtype=dtype, device=call.q.device)

    def final_mask(self, grid: Grid, every: torch.Tensor) -> torch.Tensor:
        """Return which programs [P] store a final state."""
        return every

    def initial(self, call: SequenceCall, x: Operands, grid: Grid) -> torch.Tensor:
        """Return the states [P, BK, BV] that the programs start from."""
        if call.initial_state is None:
            return x.q.new_zeros(grid.programs, x.q.shape[2], x.v.shape[2])
        every = torch.ones_like(grid.sequence, dtype=torch.bool)
        return self.load_state("initial_state", call.initial_state, grid.sequence, every, grid, call)

    def slot_mask(self, slot: torch.Tensor, slots: int) -> torch.Tensor:
        """Return which slot indices name a slot."""
        return (slot >= 0) & (slot < slots)

    def slot_of(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the slot that an index addresses."""
        return index

    def pool_start(self, call: DecodeCall | PrefillCall, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the programs' states [P, BK, BV] and which rows are not padding [P]."""
        slots = call.pool.shape[0]
        index = call.read_index[grid.sequence]
        live = self.slot_mask(index, slots)
        used = live
        if call.has_initial_state is not None:
            used = live & call.has_initial_state[grid.sequence]
        return self.pool_state(call, self.slot_of(index, slots), live, used, grid), live

    def pool_state(
        self, call: DecodeCall | PrefillCall, slot: torch.Tensor, live: torch.Tensor, used: torch.Tensor, grid: Grid
    ) -> torch.Tensor:
        """Return the states of ``used`` rows, and zeros for the others."""
        return self.load_state("pool", call.pool, slot, used, grid, call)

    def keep(
        self,
        call: DecodeCall | PrefillCall,
        index: torch.Tensor,
        state: torch.Tensor,
        kept: torch.Tensor,
        grid: Grid,
    ) -> None:
        """Store states [P, BK, BV] at slot indices [N] where ``kept`` [P] and the index names a slot."""
        slots = call.pool.shape[0]
        index = index[grid.sequence]
        kept = kept & self.slot_mask(index, slots)
        self.store_state("pool", call.pool, self.slot_of(index, slots), state, kept, grid, call)

    @torch.no_grad()
    def decode(self, call: DecodeCall) -> torch.Tensor:
        """Run up to 16 tokens a row against a pool."""
        check_decode(call, gate_per_channel=self.per_channel, values=False)
        if call.drafts is not None:
            return self.speculate(call)
        N, T, _, HV, _, V = call.dims
        grid = self.grid("decode", call)
        state, live = self.pool_start(call, grid)
        x = self.operands(call, grid)
        o, after = self.steps(x, state, grid, call.options.scale, call.q.dtype)
        out = self.allocate_output(call, (N, T, HV, V)) if call.out is None else call.out
        out.zero_()
        self.store_rows(out, o, grid, self.store_mask(grid) & live[:, None])
        self.keep_states(call, state, after, live, grid)
        return out

    def keep_states(
        self, call: DecodeCall, state: torch.Tensor, after: list[torch.Tensor], live: torch.Tensor, grid: Grid
    ) -> None:
        """Store the last state in place or at [N] indices, or the state after each token at [N, T] indices."""
        index = call.read_index if call.write_index is None else call.write_index
        if index.dim() == 1:
            self.keep(call, index, after[-1] if after else state, live, grid)
            return
        for t, reached in enumerate(after):
            self.keep(call, index[:, t], reached, live & (t < grid.length), grid)

    @torch.no_grad()
    def prefill(self, call: PrefillCall) -> torch.Tensor:
        """Run whole sequences against a pool."""
        check_prefill(call, gate_per_channel=self.per_channel, values=False)
        B, T, _, HV, _, V = call.dims
        grid = self.grid("prefill", call)
        state, live = self.pool_start(call, grid)
        x = self.operands(call, grid)
        o, after, _ = self.sweep(x, state, grid, call.options.scale, call.q.dtype)
        out = self.allocate_output(call, (B, T, HV, V))
        self.store_rows(out, torch.where(live[:, None, None], o, 0.0), grid, self.store_mask(grid))
        self.zero_tail(out, call.cu_seqlens)
        index = call.read_index if call.write_index is None else call.write_index
        self.keep(call, index, after[-1] if after else state, live, grid)
        if call.checkpoint_index is not None:
            for j in range(call.checkpoint_index.shape[1]):
                step = self.checkpoint_chunk(call, j)
                if step < len(after):
                    reached = live & (grid.length >= (step + 1) * grid.chunk)
                    self.keep(call, call.checkpoint_index[:, j], after[step], reached, grid)
        return out

    def checkpoint_chunk(self, call: PrefillCall, j: int) -> int:
        """Return the chunk after which checkpoint j is kept."""
        assert call.checkpoint_every is not None
        return (j + 1) * call.checkpoint_every // call.options.chunk_size - 1

    def gradients(
        self, form: str, call: SequenceCall, kept: Any, do: torch.Tensor | None, dfinal: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        """Return the gradient of every differentiable input."""
        _, _, _, HV, K, V = call.dims
        grid, x, trace = kept
        rows = torch.zeros_like(x.v)
        if do is not None:
            rows = self.load_rows("do", do, grid, grid.head, V)
        dstate = self.final_gradient(call, x, dfinal, grid)
        scale = self.backward_scale(call)
        if form == "chunk":
            found = self.chunk_gradients(rows, dstate, trace, grid, scale)
        else:
            found = self.step_gradients(rows, dstate, x, trace, grid, scale)
        result = self.through_options(call, found, x, grid)
        result["initial_state"] = None
        if call.initial_state is not None:
            state = call.initial_state
            buffer = torch.zeros(state.shape, dtype=state.dtype, device=state.device)
            every = torch.ones_like(grid.sequence, dtype=torch.bool)
            self.store_state("gradient", buffer, grid.sequence, found.state, every, grid, call)
            result["initial_state"] = buffer
        return result

    def returned(self, found: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
        """Return one gradient for each input of the forward."""
        return (None, None, None, *(found[name] for name in DIFFERENTIABLE))

    def backward_scale(self, call: SequenceCall) -> float:
        """Return the factor on the output, as the backward knows it."""
        return call.options.scale

    def final_gradient(self, call: SequenceCall, x: Operands, dfinal: torch.Tensor | None, grid: Grid) -> torch.Tensor:
        """Return the gradient [P, BK, BV] that arrives at the last state."""
        if dfinal is None:
            return x.q.new_zeros(grid.programs, x.q.shape[2], x.v.shape[2])
        every = torch.ones_like(grid.sequence, dtype=torch.bool)
        return self.load_state("dfinal", dfinal, grid.sequence, every, grid, call)

    def through_options(
        self, call: SequenceCall, found: Gradients, x: Operands, grid: Grid
    ) -> dict[str, torch.Tensor | None]:
        """Take gradients of the kernel's operands back to the inputs of the call."""
        options, HV = call.options, call.v.shape[2]
        dq, dk, dbeta = found.q, found.k, found.beta
        if x.q_norm is not None and x.k_norm is not None:
            dq, dk = self.norm_gradient(dq, x.q, x.q_norm), self.norm_gradient(dk, x.k, x.k_norm)
        if options.beta_sigmoid:
            s = self.sigmoid(x.raw_beta)
            dbeta = dbeta * (2.0 if options.neg_eigval else 1.0) * s * self.sigmoid(-x.raw_beta)
        # a gate below the clamp has no influence left
        dg = torch.where(self.clamp_gate(x.unclamped) == x.unclamped, found.g, 0.0)
        dA = dbias = None
        if options.gate_in_kernel:
            assert call.A_log is not None
            valid = torch.where(grid.valid, dg, 0.0)
            dA = self.over_heads((valid * x.unclamped).double().sum(1), HV).to(call.A_log.dtype)
            rate = self.exp(Pointer(call.A_log).load(grid.head * call.A_log.stride(0)))
            dg = -rate[:, None] * self.sigmoid(x.raw_gate) * dg
            if call.dt_bias is not None:
                valid = torch.where(grid.valid, dg, 0.0)
                dbias = self.over_heads(valid.double().sum(1), HV).to(call.dt_bias.dtype)
        return {
            "q": self.gather_rows(dq, call.q, grid, HV),
            "k": self.gather_rows(dk, call.k, grid, HV),
            "v": self.gather_rows(found.v, call.v, grid, HV),
            "g": self.gather_rows(dg[..., None], call.g[..., None], grid, HV)[..., 0],
            "beta": self.gather_rows(dbeta[..., None], call.beta[..., None], grid, HV)[..., 0],
            "A_log": dA,
            "dt_bias": dbias,
        }

    def norm_gradient(self, grad: torch.Tensor, y: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Take a gradient of y = x / norm [P, L, BK] back to x."""
        return (grad - y * self.total(grad * y, -1)[..., None]) / norm

    def over_heads(self, x: torch.Tensor, HV: int) -> torch.Tensor:
        """Sum [P] over sequences, one value a head."""
        return x.view(-1, HV).sum(0)

    def gather_rows(self, rows: torch.Tensor, like: torch.Tensor, grid: Grid, HV: int) -> torch.Tensor:
        """Return gradients [P, L, block] in the shape and dtype of ``like`` [B, T, heads, size]."""
        B, T, heads, size = like.shape
        buffer = torch.zeros(B, T, HV, size, device=like.device)
        self.store_rows(buffer, rows, grid, grid.valid)
        groups = buffer.unflatten(2, (heads, HV // heads))
        total = groups[:, :, :, 0]
        for i in range(1, HV // heads):
            total = total + groups[:, :, :, i]
        return self.to_output(total, like.dtype)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: ModelBackend, form: str, call: SequenceCall, *tensors: Any) -> Any:
        ctx.backend, ctx.form, ctx.call = backend, form, call
        ctx.set_materialize_grads(False)
        o, final, ctx.trace = backend.forward(form, call)
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        do, dfinal = (*grads, None)[:2]
        found = ctx.backend.gradients(ctx.form, ctx.call, ctx.trace, do, dfinal)
        return ctx.backend.returned(found)
