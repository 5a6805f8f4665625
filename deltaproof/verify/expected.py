"""What a call must give: the oracle's values, and beside each row the bound of clause N2.

A row is the last dimension of a tensor: V outputs of one token and head, or one line of a head's state. Its bound is
``LAMBDA * sigma + u * |row| + tiny``: sigma the spread that the operator's rounding model shows for that row (blended
with a quarter of its head's, for rows whose spread came out small by chance; with more for rows shorter than 16, and
with all of it for single numbers), u the unit roundoff of the stored dtype, tiny half its smallest subnormal.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltaproof.contracts.operator import Operator
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_inputs import k_first
from deltaproof.verify.noise import UNIT_ROUNDOFF, Rounding

LAMBDA = 8.0
DRAWS = 6
BLEND = 0.25
SUBNORMAL = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float64: 2.0**-1074}
GRADIENT_INPUTS = ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias")


@dataclass(frozen=True)
class Expected:
    """One tensor's expected values and the bound of each of its rows.

    Attributes:
        name: what the tensor is, for messages.
        want: float64 values.
        bound: float64, ``want.shape[:-1]``; on the Euclidean norm of a row's error.
        dtype: dtype the tensor must have.
    """

    name: str
    want: torch.Tensor
    bound: torch.Tensor
    dtype: torch.dtype


def row_bound(want: torch.Tensor, draws: torch.Tensor, dtype: torch.dtype, lead: int) -> torch.Tensor:
    """Return the bound of every row from the draws [P, *want.shape].

    ``lead`` leading dimensions of want name the heads over which spreads are blended.
    """
    if want.numel() == 0:
        return want.new_zeros(want.shape[:-1])
    variance = (draws - want).pow(2).sum(-1).mean(0)
    if want.dim() - 1 > lead:
        group = variance.mean(dim=tuple(range(lead, want.dim() - 1)), keepdim=True)
        # the shorter a row, the less a few draws say about its spread
        blend = max(BLEND, want.shape[-1] ** -0.5)
        variance = variance + blend**2 * group
    tiny = SUBNORMAL[dtype] * math.sqrt(want.shape[-1])
    return LAMBDA * variance.sqrt() + UNIT_ROUNDOFF[dtype] * want.norm(dim=-1) + tiny


def operand_roundoff(call: SequenceCall | DecodeCall | PrefillCall, chunked: bool) -> float:
    """Return the unit roundoff of matmul operands: the inputs' own in chunked forms, fp32's in the others."""
    if not chunked:
        return UNIT_ROUNDOFF[torch.float32]
    # mixed dtypes widen without loss
    return min(UNIT_ROUNDOFF[x.dtype] for x in (call.q, call.k, call.v))


class Reference:
    """The oracle and the rounding model of one operator."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.oracle: Any = importlib.import_module(operator.oracle)
        self.noise: Any = importlib.import_module(f"deltaproof.verify.noise.{operator.name}")

    def sequence(self, call: SequenceCall, *, chunked: bool) -> dict[str, Expected]:
        """Return what ``o`` and ``final_state`` of a sequence form must be. The call is on the CPU."""
        with torch.no_grad():
            o, final = self.oracle.sequence(call)
            batch = _Batch(self.oracle.spans(call), call.dims)
            outputs, states = self._draws(call, batch, chunked, call.initial_state)
        dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
        draws = batch.unpad(outputs)  # [P, B, T, HV, V]
        result = {"o": batch.exact_outside(_tokens("o", o, draws, call.v.dtype))}
        if call.output_final_state:
            last = k_first(states[-1], call.options.layout).unflatten(0, (DRAWS, -1))
            result["final_state"] = Expected("final_state", final, row_bound(final, last, dtype, 2), dtype)
        return result

    def pool(self, call: DecodeCall | PrefillCall) -> tuple[Expected, dict[int, Expected]]:
        """Return what ``o`` must be and what every written slot must hold. The call is on the CPU."""
        if isinstance(call, DecodeCall) and call.drafts is not None:
            return self._speculative(call)
        with torch.no_grad():
            if isinstance(call, DecodeCall):
                result = self.oracle.decode(call)
                batch = _Batch([(b, slice(0, n)) for b, n in enumerate(_lengths(call))], call.dims)
            else:
                result = self.oracle.prefill(call)
                batch = _Batch(self.oracle.spans(call), call.dims)
            start = _start_states(call)
            outputs, states = self._draws(call, batch, isinstance(call, PrefillCall), start)
        padding = ~_live_tokens(call, batch)
        # a select: what a padding row's tokens hold must not reach its neighbours' bounds
        draws = batch.unpad(outputs).masked_fill(padding[None, ..., None], 0)
        o = _tokens("o", result.o, draws, call.v.dtype)
        o.bound[padding] = 0.0
        writes = {}
        for slot, (row, step) in _written(call).items():
            drawn = k_first(states[step], call.options.layout).unflatten(0, (DRAWS, -1))[:, row]
            want = result.writes[slot]
            bound = row_bound(want, drawn, call.pool.dtype, 1)
            writes[slot] = Expected(f"pool[{slot}]", want, bound, call.pool.dtype)
        assert writes.keys() == result.writes.keys()
        return o, writes

    def _speculative(self, call: DecodeCall) -> tuple[Expected, dict[int, Expected]]:
        """Return the same of a speculative step, from the decode of what it replays and of its own tokens."""
        plain, counts = self.oracle.unrolled(call)
        o, writes = self.pool(plain)
        T, N = call.dims[1], len(counts)
        own = torch.tensor(counts)[:, None] + torch.arange(T)  # [N, T]
        rows = torch.arange(N)[:, None]
        o = replace(o, want=o.want[rows, own], bound=o.bound[rows, own])
        for row, slot in enumerate(call.writes.tolist()):
            if counts[row] == 0 and _inside(int(call.read_index[row]), call) and _inside(slot, call):
                # nothing to replay: the state goes to its slot as it is
                want = _start_states(call)[row]
                bound = want.new_zeros(want.shape[:-1])
                writes[slot] = Expected(f"pool[{slot}]", want, bound, call.pool.dtype)
        return o, writes

    def gradients(
        self, call: SequenceCall, do: torch.Tensor, dstate: torch.Tensor | None, *, chunked: bool
    ) -> dict[str, Expected]:
        """Return the gradient of every differentiable input for cotangents of o and of the final state (CPU)."""
        batch = _Batch(self.oracle.spans(call), call.dims)
        exact = _leaves(batch.zeros_outside(call))
        o, final = self.oracle.sequence(call.with_(**exact))
        want = _vjp(o, final, do, dstate, exact)
        dense, leaves = batch.dense(call, call.initial_state, leaves=True)
        outputs, states = self._run(
            dense, batch, operand_roundoff(call, chunked), call.options.chunk_size if chunked else 1
        )
        last = k_first(states[-1], call.options.layout)
        cotangent = batch.pad(do.double()).repeat(DRAWS, 1, 1, 1)
        drawn = _vjp(
            outputs, last, cotangent, None if dstate is None else dstate.double().repeat(DRAWS, 1, 1, 1), leaves
        )
        result = {}
        for name, exact_grad in want.items():
            dtype = getattr(call, name).dtype
            draws = drawn[name]
            if name == "initial_state":
                draws, lead = k_first(draws, call.options.layout).unflatten(0, (DRAWS, -1)), 2
            elif name in ("A_log", "dt_bias"):
                # sequences add up, and a row is a single number, or a head's channels
                draws, lead = draws.unflatten(0, (DRAWS, -1)).sum((1, 2)), 0
                if exact_grad.dim() == 1:
                    draws, exact_grad = draws[..., None], exact_grad[..., None]
            else:
                draws = batch.unpad(draws)
                if exact_grad.dim() == 3:
                    draws, exact_grad = draws[..., None], exact_grad[..., None]
                result[name] = batch.exact_outside(_tokens(f"gradient of {name}", exact_grad, draws, dtype))
                continue
            bound = row_bound(exact_grad, draws, dtype, lead)
            result[name] = Expected(f"gradient of {name}", exact_grad, bound, dtype)
        return result

    def _draws(
        self, call: SequenceCall | DecodeCall | PrefillCall, batch: _Batch, chunked: bool, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        dense, _ = batch.dense(call, state)
        return self._run(dense, batch, operand_roundoff(call, chunked), call.options.chunk_size if chunked else 1)

    def _run(
        self, dense: SequenceCall, batch: _Batch, operand: float, chunk: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rounding = Rounding(operand, UNIT_ROUNDOFF[torch.float32], seed=1)
        q, k, v, g, beta = self.noise.operands(dense, rounding)
        filled = batch.filled.repeat(DRAWS, 1)
        g = g.masked_fill(~filled.view(*filled.shape, *(1,) * (g.dim() - 2)), 0)
        assert dense.initial_state is not None
        return self.noise.run(
            q, k, v, g, beta, dense.initial_state, scale=dense.options.scale, chunk=chunk, rounding=rounding
        )


class _Batch:
    """Sequences cut out of [B, T] and padded to one length, and back."""

    def __init__(self, spans: list[tuple[int, slice]], dims: tuple[int, ...]) -> None:
        self.spans = spans
        self.B, self.T, _, self.HV, self.K, self.V = dims
        sizes = [span.stop - span.start for _, span in self.spans]
        self.length = max(sizes, default=0)
        self.filled = torch.arange(self.length)[None] < torch.tensor(sizes, dtype=torch.int64)[:, None]

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, T, ...] as [N, length, ...] with zeros after each sequence."""
        out = x.new_zeros(len(self.spans), self.length, *x.shape[2:])
        for n, (b, span) in enumerate(self.spans):
            out[n, : span.stop - span.start] = x[b, span]
        return out

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """Return [P * N, length, ...] as [P, B, T, ...] with zeros at tokens in no sequence."""
        x = x.unflatten(0, (DRAWS, len(self.spans)))
        out = x.new_zeros(DRAWS, self.B, self.T, *x.shape[3:])
        for n, (b, span) in enumerate(self.spans):
            out[:, b, span] = x[:, n, : span.stop - span.start]
        return out

    def covered(self) -> torch.Tensor:
        """Return which tokens [B, T] belong to a sequence."""
        covered = torch.zeros(self.B, self.T, dtype=torch.bool)
        for b, span in self.spans:
            covered[b, span] = True
        return covered

    def exact_outside(self, expected: Expected) -> Expected:
        """Bind tokens in no sequence to exactly what is wanted there, which is zero."""
        expected.bound[~self.covered()] = 0.0
        return expected

    def zeros_outside(self, call: SequenceCall) -> SequenceCall:
        """Return the call with zeros at tokens in no sequence: NaN there would reach float64's own gradients."""
        outside = ~self.covered()
        tokens = {name: getattr(call, name).detach().clone() for name in ("q", "k", "v", "g", "beta")}
        for x in tokens.values():
            x[outside] = 0
        clean: SequenceCall = call.with_(**tokens)
        return clean

    def dense(
        self, call: SequenceCall | DecodeCall | PrefillCall, state: torch.Tensor | None, leaves: bool = False
    ) -> tuple[SequenceCall, dict[str, torch.Tensor]]:
        """Return the call in float64 as P * N padded sequences, and with ``leaves`` its differentiable tensors."""
        P, N = DRAWS, len(self.spans)
        found = {}
        for name in ("q", "k", "v", "g", "beta"):
            x = self.pad(getattr(call, name).detach().double())
            found[name] = x.repeat(P, *(1,) * (x.dim() - 1))
        for name in ("A_log", "dt_bias"):
            x = getattr(call, name)
            if x is not None:
                found[name] = x.detach().double().expand(P * N, 1, *x.shape).clone()
        if state is None:
            start = torch.zeros(P * N, self.HV, self.K, self.V, dtype=torch.float64)
        else:
            start = k_first(state.detach(), call.options.layout).double().repeat(P, 1, 1, 1)
            found["initial_state"] = start
        if leaves:
            found = {name: x.requires_grad_() for name, x in found.items()}
        parts: dict[str, Any] = {"A_log": None, "dt_bias": None, "initial_state": start, **found}
        return SequenceCall(**parts, options=call.options, output_final_state=True), found


def _tokens(name: str, want: torch.Tensor, draws: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return expectations of a [B, T, heads, ...] tensor; spreads are blended over the tokens of a row and head."""
    moved = row_bound(want.transpose(1, 2), draws.transpose(2, 3), dtype, 2)
    return Expected(name, want, moved.transpose(1, 2).contiguous(), dtype)


def _leaves(call: SequenceCall) -> dict[str, torch.Tensor]:
    found = {name: getattr(call, name) for name in GRADIENT_INPUTS}
    return {name: x.detach().double().requires_grad_() for name, x in found.items() if x is not None}


def _vjp(
    o: torch.Tensor, final: torch.Tensor, do: torch.Tensor, dstate: torch.Tensor | None, leaves: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    loss = (o * do.double()).sum() + (0 if dstate is None else (final * dstate.double()).sum())
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(leaves.items(), grads, strict=True)
    }


def _inside(slot: int, call: DecodeCall | PrefillCall) -> bool:
    return 0 <= slot < call.pool.shape[0]


def _lengths(call: DecodeCall) -> list[int]:
    N, T, *_ = call.dims
    if call.num_tokens is None:
        return [T] * N
    return [min(max(n, 0), T) for n in call.num_tokens.tolist()]


def _start_states(call: DecodeCall | PrefillCall) -> torch.Tensor:
    """Return the states rows start from, in the pool's layout; zeros for padding and fresh rows."""
    reads = call.read_index.tolist()
    fresh = [False] * len(reads) if call.has_initial_state is None else [not x for x in call.has_initial_state.tolist()]
    zero = call.pool.new_zeros(call.pool.shape[1:], dtype=torch.float64)
    rows = [call.pool[s].double() if _inside(s, call) and not f else zero for s, f in zip(reads, fresh, strict=True)]
    return torch.stack(rows) if rows else zero[None][:0]


def _live_tokens(call: DecodeCall | PrefillCall, batch: _Batch) -> torch.Tensor:
    """Return which tokens [B, T, HV] are computed."""
    live = torch.zeros(batch.B, batch.T, dtype=torch.bool)
    for slot, (b, span) in zip(call.read_index.tolist(), batch.spans, strict=True):
        live[b, span] = _inside(slot, call)
    return live[..., None].expand(-1, -1, batch.HV)


def _written(call: DecodeCall | PrefillCall) -> dict[int, tuple[int, int]]:
    """Return slot -> (row, index into the states after each chunk) of everything a call keeps."""
    writes: dict[int, tuple[int, int]] = {}
    index = (call.read_index if call.write_index is None else call.write_index).tolist()
    lengths = _lengths(call) if isinstance(call, DecodeCall) else None
    for row, slot in enumerate(call.read_index.tolist()):
        if not _inside(slot, call):
            continue
        targets = index[row]
        if isinstance(targets, list):
            assert lengths is not None
            pairs = [(target, t + 1) for t, target in enumerate(targets) if t < lengths[row]]
        else:
            pairs = [(targets, -1)]
        if isinstance(call, PrefillCall) and call.checkpoint_index is not None:
            assert call.checkpoint_every is not None
            T = call.q.shape[1]
            length = T if call.cu_seqlens is None else int(call.cu_seqlens[row + 1] - call.cu_seqlens[row])
            step = call.checkpoint_every // call.options.chunk_size
            every = enumerate(call.checkpoint_index[row].tolist(), 1)
            pairs += [(target, j * step) for j, target in every if j * call.checkpoint_every <= length]
        writes.update({target: (row, step) for target, step in pairs if _inside(target, call)})
    return writes
