"""The gates of the model backend of Kimi delta attention: loads, options, and their way back.

Shape legend: P programs, L tokens a program, BK key channels rounded up to a power of two.
"""

from __future__ import annotations

import torch

from deltaproof.verify.mutants.model import ModelBackend
from deltaproof.verify.mutants.model.chunked import Gradients
from deltaproof.verify.mutants.model.grid import Grid
from deltaproof.verify.mutants.model.memory import Call, Operands
from deltaproof.verify.mutants.model.pointer import Pointer


class ChannelGate(ModelBackend):
    """A log gate a channel, [P, L, BK]."""

    def operands(self, call: Call, grid: Grid) -> Operands:
        """Load everything a kernel needs of the tokens, and apply the options."""
        _, _, H, HV, K, V = call.dims
        query = self.query_head(grid, H, HV)
        q, k = self.load_rows("q", call.q, grid, query, K), self.load_rows("k", call.k, grid, query, K)
        v = self.load_rows("v", call.v, grid, self.value_head("v", grid, call), V)
        raw_gate = self.load_rows("g", call.g, grid, self.value_head("g", grid, call), K)
        raw_beta = self.load_rows("beta", call.beta, grid, self.value_head("beta", grid, call))
        q_norm = k_norm = None
        if call.options.normalize_qk:
            q_norm, k_norm = self.norm(q), self.norm(k)
            q, k = q / q_norm, k / k_norm
        gate, raw_gate = self.log_gate(call, grid, raw_gate)
        beta = torch.where(self.row_mask("beta", grid), self.strength(call, raw_beta), 0.0)
        log = torch.where(self.row_mask("g", grid)[..., None], self.clamp_gate(gate), 0.0)
        return Operands(q, k, v, log, beta, q_norm, k_norm, raw_gate, raw_beta, gate)

    def rate(self, call: Call, grid: Grid) -> torch.Tensor:
        """Return exp(A_log) of every program, [P, 1, 1]; 1 where there is none."""
        if call.A_log is None:
            return torch.ones(grid.programs, 1, 1, device=call.q.device)
        return self.exp(Pointer(call.A_log).load(grid.head * call.A_log.stride(0)))[:, None, None]

    def bias_place(self, head: torch.Tensor, lane: torch.Tensor, dt_bias: torch.Tensor) -> torch.Tensor:
        """Return where the biases [P, BK] of heads [P] lie in dt_bias [HV, K]."""
        return head[:, None] * dt_bias.stride(0) + lane * dt_bias.stride(1)

    def log_gate(self, call: Call, grid: Grid, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log gates [P, L, BK], and the raw gates with their bias added."""
        options = call.options
        if not options.gate_in_kernel:
            return raw, raw
        if call.dt_bias is not None:
            lane = torch.arange(raw.shape[2], device=raw.device)
            bias = Pointer(call.dt_bias).load(self.bias_place(grid.head, lane, call.dt_bias), lane < call.dims[4])
            raw = raw + bias[:, None]
        rate = self.rate(call, grid)
        if options.lower_bound is not None:
            return options.lower_bound * self.sigmoid(rate * raw), raw
        return -rate * self.softplus(raw), raw

    def through_options(self, call: Call, found: Gradients, x: Operands, grid: Grid) -> dict[str, torch.Tensor | None]:  # type: ignore[override]
        """Take gradients of the kernel's operands back to the inputs of the call."""
        options, HV, K = call.options, call.v.shape[2], call.q.shape[3]
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
            rate = self.rate(call, grid)
            if options.lower_bound is None:
                by_rate, slope = x.unclamped, -rate * self.sigmoid(x.raw_gate)
            else:
                scaled = rate * x.raw_gate
                steep = options.lower_bound * self.sigmoid(scaled) * self.sigmoid(-scaled)
                by_rate, slope = steep * scaled, steep * rate
            if call.A_log is not None:
                every = self._valid(dg * by_rate, grid).double().sum((1, 2))
                dA = self.over_heads(every, HV).to(call.A_log.dtype)
            dg = dg * slope
            if call.dt_bias is not None:
                each = self._valid(dg, grid).double().sum(1)[:, :K]
                dbias = each.view(-1, HV, K).sum(0).to(call.dt_bias.dtype)
        return {
            "q": self.gather_rows(dq, call.q, grid, HV),
            "k": self.gather_rows(dk, call.k, grid, HV),
            "v": self.gather_rows(found.v, call.v, grid, HV),
            "g": self.gather_rows(dg, call.g, grid, HV),
            "beta": self.gather_rows(dbeta[..., None], call.beta[..., None], grid, HV)[..., 0],
            "A_log": dA,
            "dt_bias": dbias,
        }

    def _valid(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.where(grid.valid[..., None], x, 0.0)
