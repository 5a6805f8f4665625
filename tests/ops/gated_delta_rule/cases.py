"""Calls to test with, and how far a float32 result may lie from the float64 oracle.

Shape legend: B batch, T tokens, H query/key heads, HV value heads, K, V head sizes, N sequences, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_inputs import MIN_LOG_GATE, k_first
from deltaproof.ops.gated_delta_rule import oracle

ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""
K_FIRST, V_FIRST = StateLayout.K_FIRST, StateLayout.V_FIRST


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tokens(
    seed: int, B: int, T: int, H: int, HV: int, K: int, V: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return q, k, v, g, beta with keys of length 1, so that beta * |k|^2 <= 2."""
    k = normal(seed + 1, B, T, H, K)
    return {
        "q": normal(seed, B, T, H, K).to(dtype),
        "k": (k / k.norm(dim=-1, keepdim=True)).to(dtype),
        "v": normal(seed + 2, B, T, HV, V).to(dtype),
        "g": -0.3 * uniform(seed + 3, B, T, HV),
        "beta": 1.9 * uniform(seed + 4, B, T, HV),
    }


def sequence_call(
    seed: int = 0,
    *,
    B: int = 2,
    T: int = 70,
    H: int = 2,
    HV: int = 4,
    K: int = 24,
    V: int = 16,
    dtype: torch.dtype = torch.float32,
    cu_seqlens: list[int] | None = None,
    state: torch.dtype | None = torch.float32,
    layout: StateLayout = K_FIRST,
    **options: Any,
) -> SequenceCall:
    """Return a call of chunk or recurrent with a final state asked for; ``state`` is the initial state's dtype."""
    gate = {"A_log": normal(seed + 5, HV), "dt_bias": normal(seed + 6, HV)} if options.get("gate_in_kernel") else {}
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    return SequenceCall(
        **tokens(seed, B, T, H, HV, K, V, dtype),
        **gate,
        options=DeltaRuleOptions(**{"scale": K**-0.5, "layout": layout} | options),
        initial_state=None if state is None else normal(seed + 7, N, HV, *layout.inner_shape(K, V)).to(state),
        output_final_state=True,
        cu_seqlens=None if cu_seqlens is None else torch.tensor(cu_seqlens),
    )


def _index(values: list[Any]) -> torch.Tensor:
    x = torch.tensor(values)
    return x if x.dtype == torch.bool else x.long()


def pool_call(
    form: str,
    seed: int = 0,
    *,
    read_index: list[int],
    B: int | None = None,
    T: int = 3,
    H: int = 2,
    HV: int = 4,
    K: int = 24,
    V: int = 16,
    S: int = 7,
    dtype: torch.dtype = torch.float32,
    pool: torch.dtype = torch.float32,
    layout: StateLayout = K_FIRST,
    options: dict[str, Any] | None = None,
    **indices: Any,
) -> DecodeCall | PrefillCall:
    """Return a call of decode or prefill; lists among ``indices`` become tensors."""
    given = {name: _index(x) if isinstance(x, list) else x for name, x in indices.items()}
    return (DecodeCall if form == "decode" else PrefillCall)(
        **tokens(seed, len(read_index) if B is None else B, T, H, HV, K, V, dtype),
        options=DeltaRuleOptions(**{"scale": K**-0.5, "layout": layout, "chunk_size": 16} | (options or {})),
        pool=normal(seed + 7, S, HV, *layout.inner_shape(K, V)).to(pool),
        read_index=_index(read_index),
        **given,
    )


def _worst(got: torch.Tensor, exact: torch.Tensor, allowed: torch.Tensor) -> float:
    assert got.shape == exact.shape
    error = (got.double() - exact).abs()
    ratio = torch.where(error == 0, 0.0, error / allowed)  # an exact result fits a bound of zero
    assert not bool(ratio.isnan().any()), "NaN in the result"
    worst = float(ratio.max()) if ratio.numel() else 0.0
    assert worst <= 1, f"the worst error is {worst:.3g} times its bound"
    return worst


@dataclass(frozen=True)
class Bound:
    """How far the elements of each value head may lie from the oracle's, [HV]: outputs and states."""

    o: torch.Tensor
    state: torch.Tensor
    roundings: float

    def check(self, got: torch.Tensor, exact: torch.Tensor, *, state: bool = False) -> float:
        """Assert that ``got`` lies within the bound and return the worst error over its bound.

        ``got`` and ``exact`` are [B, T, HV, V], or states [N, HV, K, V] or [N, HV, V, K] with ``state``. A result
        in another dtype than float32 may differ by that dtype's rounding too.
        """
        allowed = self.state[:, None, None] if state else self.o[:, None]
        if got.dtype != torch.float32:
            allowed = allowed + exact.abs() * torch.finfo(got.dtype).eps / 2
        return _worst(got, exact, allowed)

    def check_gradient(self, got: torch.Tensor, exact: torch.Tensor) -> float:
        """Assert that a gradient lies within as many roundings of its largest element; return error over bound."""
        return _worst(got, exact, self.roundings * exact.abs().max())


def runs(call: SequenceCall | DecodeCall | PrefillCall) -> list[tuple[int, slice, torch.Tensor]]:
    """Return the batch row, the tokens and the first state [HV, K, V], float64, of whatever is not padding."""
    _, T, _, HV, K, V = call.dims
    if isinstance(call, DecodeCall):
        counts = [T] * call.q.shape[0] if call.num_tokens is None else call.num_tokens.tolist()
        spans = [(n, slice(0, count)) for n, count in enumerate(counts)]
    else:
        spans = oracle.spans(call)
    found = []
    for n, (b, span) in enumerate(spans):
        start: torch.Tensor | None = torch.zeros(HV, K, V, dtype=torch.float64)
        if not isinstance(call, SequenceCall):
            slot = int(call.read_index[n])
            fresh = call.has_initial_state is not None and not call.has_initial_state[n]
            if not 0 <= slot < call.pool.shape[0]:
                continue
            start = start if fresh else k_first(call.pool[slot], call.options.layout).double()
        elif call.initial_state is not None:
            start = k_first(call.initial_state[n], call.options.layout).double()
        found.append((b, span, start))
    return found


def bound(call: SequenceCall | DecodeCall | PrefillCall, *, aligned: bool = False) -> Bound:
    """Return the bound for float32 arithmetic.

    With beta * |k|^2 <= 2 a step never makes an error in the state larger, so errors only add up: those of T steps,
    each a sum of K products, as independent roundings do, with the square root of their number; and that of a
    chunk's cumulative gate of size |G|, whose rounding is a relative error of its exponential. That is
    sqrt(T + K) + |G| roundings of the largest number there is: the largest state, or what one token writes into it.
    An output is such a state read with scale * q. With ``aligned``, where all tokens have one key, roundings are not
    independent and count T + K.
    """
    _, T, _, HV, K, _ = call.dims
    operands = oracle.operands64(call)
    size, length, gate = torch.zeros(HV, dtype=torch.float64), 0.0, 0.0
    for b, span, start in runs(call):
        q, k, v, g, beta = (x[b, span] for x in operands)
        _, states = oracle.recurrence(q, k, v, g, beta, state=start, scale=1.0)
        size = torch.maximum(size, torch.stack(states).flatten(2).norm(dim=-1).amax(0))
        if q.shape[0]:
            size = torch.maximum(size, (beta * k.norm(dim=-1) * v.norm(dim=-1)).amax(0))
            length = max(length, float(q.norm(dim=-1).max()))
            sums = [part.sum(0).abs().max() for part in g.clamp(min=MIN_LOG_GATE).split(call.options.chunk_size)]
            gate = max(gate, float(torch.stack(sums).max()))
    roundings = ((T + K) ** (1.0 if aligned else 0.5) + gate) * ROUNDING
    return Bound(roundings * call.options.scale * length * size, roundings * size, roundings)
