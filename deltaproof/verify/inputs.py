"""Drawing a case's inputs, each inside memory of its own with red zones around it.

Ahead of and behind every tensor lie elements that no call was given: NaN, or plausible stale values; for indices
numbers far out of range. A kernel that reads past an argument reads those.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, PrefillCall, SequenceCall
from deltaproof.ops.common.checks import SAFE_GATE
from deltaproof.verify.case import Case

Call = SequenceCall | DecodeCall | PrefillCall
Fill = Literal["nan", "stale"]
RED_ZONE = 4096
"""Elements before and after every tensor, more than any block a kernel rounds up to here."""


def red_zone_(memory: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Fill memory that no call owns."""
    if memory.is_floating_point():
        return memory.fill_(float("nan")) if fill == "nan" else memory.fill_(1.5)
    if memory.dtype == torch.bool:
        return memory.fill_(True)
    return memory.fill_(torch.iinfo(memory.dtype).max // 2 if fill == "nan" else 1)


def guarded(x: torch.Tensor, fill: Fill = "nan", device: torch.device | str = "cpu") -> torch.Tensor:
    """Return a copy of ``x`` on ``device`` in the middle of a larger allocation."""
    memory = red_zone_(torch.empty(x.numel() + 2 * RED_ZONE, dtype=x.dtype, device=device), fill)
    inner = memory[RED_ZONE : RED_ZONE + x.numel()].view(x.shape)
    return inner.copy_(x)


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as "bfloat16"."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


class Draw:
    """Draws the parts of a case's call, in a fixed order, on the CPU."""

    def __init__(self, case: Case, seed: int, *, gate_per_channel: bool = False) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case.seed(seed))
        self.gate_per_channel = gate_per_channel

    def normal(self, *shape: int) -> torch.Tensor:
        """Return standard normal float32."""
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Return uniform [0, 1) float32."""
        return torch.rand(shape, generator=self.generator)

    def keys(self) -> torch.Tensor:
        """Return k [B, T, H, K]; its rows have norm at most 1 where the call does not normalise (clause N1)."""
        case = self.case
        B, T = case.batch, case.tokens
        k = self.normal(B, T, case.H, case.K)
        if case.keys in ("identical", "correlated"):
            shared = self.normal(B, 1, case.H, case.K)
            k = shared.expand_as(k) if case.keys == "identical" else shared + 0.3 * k
        if not case.normalize:
            k = k / k.norm(dim=-1, keepdim=True).clamp(min=1e-3) * 0.999
        if case.keys == "zero_rows" and T:
            k = k.clone()
            k[:, ::3] = 0
        return k

    def gates(self) -> torch.Tensor:
        """Return g: log gates, or raw gate inputs."""
        case = self.case
        shape = (case.batch, case.tokens, case.HV) + ((case.K,) if self.gate_per_channel else ())
        if case.gate_in_kernel:
            raw = self.normal(*shape)
            if case.gates == "overflow":
                kind = torch.randint(0, 3, shape, generator=self.generator)
                return torch.where(kind == 0, 100.0, torch.where(kind == 1, -100.0, raw))
            return raw
        drawn = self._log_gates(shape)
        return drawn.clamp(min=SAFE_GATE) if case.safe_gate else drawn

    def _log_gates(self, shape: tuple[int, ...]) -> torch.Tensor:
        case = self.case
        # half-lives from about one token to about a thousand
        ordinary = -torch.exp(self.normal(*shape) * 1.5 - 3.0)
        if case.gates == "zero":
            return torch.zeros(shape)
        if case.gates == "slow":
            return ordinary * 0.01
        if case.gates == "steady":
            # a chunk of 64 decays by a little more than exp(-10); equal gates would all be rounded the same way
            return -0.16 - 0.02 * self.uniform(*shape)
        if case.gates == "extreme":
            return ordinary * 1e3 - 1e3 * self.uniform(*shape)
        if case.gates == "mixed":
            kind = torch.randint(0, 4, shape, generator=self.generator)
            return torch.where(kind == 0, -1e4, torch.where(kind == 1, 0.0, torch.where(kind == 2, -40.0, ordinary)))
        if case.gates == "all_extreme":
            return torch.full(shape, -1e4)
        if case.gates == "forties":
            return -40.0 - self.uniform(*shape)
        if case.gates == "alternating":
            every = torch.arange(case.tokens) % 2 == 0
            return torch.where(every.view(1, -1, *(1,) * (len(shape) - 2)), -1e4, 0.0).expand(shape).clone()
        return ordinary

    def time_bias(self, *channels: int) -> torch.Tensor:
        """Return dt_bias [HV] or [HV, K]; for gates that overflow, far above zero and far below it in turn."""
        drawn = self.normal(self.case.HV, *channels)
        if self.case.gates != "overflow":
            return drawn
        drawn[::2] += 80
        drawn[1::2] -= 80
        return drawn

    def betas(self) -> torch.Tensor:
        """Return beta [B, T, HV]: strengths in [0, 1], or logits."""
        case = self.case
        shape = (case.batch, case.tokens, case.HV)
        if case.beta_sigmoid:
            return self.normal(*shape) * 2
        if case.betas == "early":
            # what the last tokens read and leave is what was written long before
            return self.uniform(*shape) * (torch.arange(case.tokens) < case.tokens - 128).view(1, -1, 1)
        fixed = {"one": 1.0, "zero": 0.0, "two": 2.0}
        return torch.full(shape, fixed[case.betas]) if case.betas in fixed else self.uniform(*shape)


def build(case: Case, seed: int, device: str = "cpu", *, fill: Fill = "nan", gate_per_channel: bool = False) -> Call:
    """Return the call of a case; the same case and seed give the same values in new memory."""
    draw = Draw(case, seed, gate_per_channel=gate_per_channel)
    B, T, K, V = case.batch, case.tokens, case.K, case.V

    def place(x: torch.Tensor, dtype: str) -> torch.Tensor:
        return guarded(x.to(dtype_of(dtype)), fill, device)

    q = draw.normal(B, T, case.H, K)
    if case.keys == "zero_rows" and T:
        q[:, 1::4] = 0
    k, v, g, beta = draw.keys(), draw.normal(B, T, case.HV, V), draw.gates(), draw.betas()
    channels = (K,) if gate_per_channel else ()
    A_log = place(draw.normal(case.HV) * 0.5 - 1.5, case.parameter_dtype) if case.gate_in_kernel else None
    A_log = A_log if case.A_log else None
    biased = case.gate_in_kernel and case.dt_bias
    dt_bias = place(draw.time_bias(*channels), case.parameter_dtype) if biased else None
    end = T - case.tail
    if case.seqlens is not None:
        # rows in no sequence hold what the red zones hold
        for x in (q, k, v, g, beta):
            red_zone_(x[:, end:], fill)
    if case.dead_tokens:
        dead = dead_tokens(case)
        for x in (q, k, v, g, beta):
            x[dead] = red_zone_(torch.empty_like(x[dead]), fill)
    layout = StateLayout(case.layout)
    options = DeltaRuleOptions(
        scale=K**-0.5 if case.scale is None else case.scale,
        normalize_qk=case.normalize,
        gate_in_kernel=case.gate_in_kernel,
        beta_sigmoid=case.beta_sigmoid,
        neg_eigval=case.neg_eigval,
        layout=layout,
        chunk_size=case.chunk_size,
        batch_invariant=case.batch_invariant,
        lower_bound=case.lower_bound,
        safe_gate=case.safe_gate,
    )
    tokens: dict[str, Any] = {
        "q": place(q, case.dtype),
        "k": place(k, case.dtype),
        "v": place(v, case.v_dtype or case.dtype),
        "g": place(g, case.gate_dtype),
        "beta": place(beta, case.gate_dtype),
        "options": options,
        "A_log": A_log,
        "dt_bias": dt_bias,
    }
    cu_seqlens = None
    if case.seqlens is not None:
        bounds = torch.tensor([0, *case.seqlens]).cumsum(0)
        cu_seqlens = guarded(bounds.to(torch.int32 if case.tail % 2 else torch.int64), fill, device)
    inner = layout.inner_shape(K, V)
    if not case.is_pool:
        state = draw.normal(case.sequences, case.HV, *inner)
        return SequenceCall(
            **tokens,
            initial_state=place(state, case.state_dtype) if case.initial_state else None,
            output_final_state=case.final_state,
            cu_seqlens=cu_seqlens,
        )
    states = draw.normal(case.slots, case.HV, *inner)
    states[list(case.nan_slots)] = float("nan")
    pool = strided_pool(states, case, fill, device)
    wide = torch.int64 if case.index_dtype is None else dtype_of(case.index_dtype)
    narrow = torch.int32 if case.index_dtype is None else wide

    def index(values: tuple[object, ...] | None, dtype: torch.dtype = wide) -> torch.Tensor | None:
        return None if values is None else guarded(torch.tensor(values, dtype=dtype), fill, device)

    N = case.sequences
    fresh = case.fresh
    shared: dict[str, Any] = {
        "pool": pool,
        "read_index": index(case.read if case.read is not None else tuple(range(1, N + 1)), narrow),
        "write_index": index(case.write),
        "has_initial_state": None if fresh is None else index(tuple(not x for x in fresh), torch.bool),
    }
    if case.form == "decode":
        return DecodeCall(**tokens, **shared, num_tokens=index(case.num_tokens, torch.int32))
    checkpoints = index(case.checkpoints)
    return PrefillCall(
        **tokens, **shared, cu_seqlens=cu_seqlens, checkpoint_every=case.checkpoint_every, checkpoint_index=checkpoints
    )


def dead_tokens(case: Case) -> torch.Tensor:
    """Return which tokens [B, T] of a pool form belong to a padding row or lie past their row's num_tokens."""
    dead = torch.zeros(case.batch, case.tokens, dtype=torch.bool)
    reads = case.read if case.read is not None else tuple(range(1, case.sequences + 1))
    start = 0
    for n, slot in enumerate(reads):
        padding = not 0 <= slot < case.slots
        if case.seqlens is not None:
            dead[0, start : start + case.seqlens[n]] = padding
            start += case.seqlens[n]
        elif padding:
            dead[n] = True
        elif case.num_tokens is not None:
            dead[n, case.num_tokens[n] :] = True
    return dead


def strided_pool(states: torch.Tensor, case: Case, fill: Fill, device: str) -> torch.Tensor:
    """Return a pool [S, HV, ., .] with the case's gaps between slots and heads, and a guard slot at either end.

    Gaps and guard slots hold canaries: the red zone's filling. With ``heads_outermost`` the slots of one head lie
    side by side, and the gap between heads lies behind a head's last slot.
    """
    S, HV, rows, columns = states.shape
    dtype = dtype_of(case.state_dtype)
    unit = 16 // dtype.itemsize
    head = -(-(rows * columns + case.head_padding) // unit) * unit
    slot = -(-(head * HV + case.slot_padding) // unit) * unit
    if case.heads_outermost:
        slot = -(-(rows * columns + case.slot_padding) // unit) * unit
        head = -(-(slot * S + case.head_padding) // unit) * unit
    guard = max(slot, -(-RED_ZONE // unit) * unit)
    size = head * HV if case.heads_outermost else slot * S
    memory = red_zone_(torch.empty(size + 2 * guard, dtype=dtype, device=device), fill)
    pool = memory.as_strided((S, HV, rows, columns), (slot, head, columns, 1), guard)
    return pool.copy_(states)


def whole_memory(x: torch.Tensor) -> torch.Tensor:
    """Return every byte of the allocation behind ``x``, as uint8."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
