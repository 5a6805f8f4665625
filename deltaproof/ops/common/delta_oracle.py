"""The delta rule by its definition: float64, token by token, for every form and whatever the gate is.

For each value head, with S the state [K, V] (clause S0) and the gate a number or one a channel of K:

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (x) beta_t (v_t - S'^T k_t)
    o_t = scale S_t^T q_t

An operator's oracle says what its log gate is, and is otherwise this. Differentiable by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from deltaproof.ops.common.calls import DecodeCall, DeltaRuleCall, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.common.torch_inputs import NORM_EPS, k_first


@dataclass(frozen=True)
class PoolResult:
    """What a pool form must return and leave behind.

    Attributes:
        o: [N or B, T, HV, V] in float64.
        writes: slot -> the state it must hold, [HV, K, V] or [HV, V, K], float64; all other slots are unchanged.
    """

    o: torch.Tensor
    writes: dict[int, torch.Tensor]


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    state: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run q, k [T, HV, K], v [T, HV, V], g [T, HV] or [T, HV, K], beta [T, HV] from state [HV, K, V].

    Returns the outputs [T, HV, V] and the states before the first token and after each.
    """
    states = [state]
    outputs = []
    for t in range(q.shape[0]):
        fade = g[t].exp()[:, None] if g.dim() == 2 else g[t].exp()  # [HV, 1 or K]
        decayed = fade[..., None] * states[-1]
        predicted = torch.einsum("hkv,hk->hv", decayed, k[t])
        error = beta[t][:, None] * (v[t] - predicted)
        states.append(decayed + torch.einsum("hk,hv->hkv", k[t], error))
        outputs.append(scale * torch.einsum("hkv,hk->hv", states[-1], q[t]))
    return (torch.stack(outputs) if outputs else torch.zeros_like(v)), states


def spans(call: SequenceCall | PrefillCall) -> list[tuple[int, slice]]:
    """Return the batch row and the tokens of every sequence."""
    B, T, *_ = call.dims
    if call.cu_seqlens is None:
        return [(b, slice(0, T)) for b in range(B)]
    bounds = call.cu_seqlens.tolist()
    return [(0, slice(a, b)) for a, b in pairwise(bounds)]


def _start(call: DecodeCall | PrefillCall, row: int) -> torch.Tensor | None:
    """Return the state row ``row`` starts from, or None if the row is padding."""
    slot = int(call.read_index[row])
    if not 0 <= slot < call.pool.shape[0]:
        return None
    state = k_first(call.pool, call.options.layout)[slot].double()
    fresh = call.has_initial_state is not None and not bool(call.has_initial_state[row])
    return torch.zeros_like(state) if fresh else state


def _keep(call: DecodeCall | PrefillCall, writes: dict[int, torch.Tensor], slot: int, state: torch.Tensor) -> None:
    if 0 <= slot < call.pool.shape[0]:
        writes[slot] = k_first(state, call.options.layout)


def unrolled(call: DecodeCall) -> tuple[DecodeCall, list[int]]:
    """Return a speculative step as a decode that stores each token's state, and how many tokens each row replays.

    A row's tokens are those it replays and then its own (clause P7). It keeps the state after the last one that it
    replays; a row that replays none, and keeps a state, is not among the writes of the result.
    """
    assert call.drafts is not None and call.draft_half is not None and call.accepted is not None
    N, T, *_ = call.dims
    D, slots = call.drafts.k.shape[2], call.pool.shape[0]
    counts, tokens = [], {name: [] for name in Drafts._fields}  # type: ignore[var-annotated]
    write = torch.full((N, D + T), -1, dtype=torch.int64)
    q = call.q.new_zeros(N, D + T, *call.q.shape[2:])
    for n in range(N):
        half, slot = int(call.draft_half[n]), int(call.writes[n])
        replays = half in (0, 1) and 0 <= slot < slots and 0 <= int(call.read_index[n]) < slots
        count = min(max(int(call.accepted[slot]), 0), D) if replays else 0
        counts.append(count)
        if count:
            write[n, count - 1] = slot
        q[n, count : count + T] = call.q[n]
        for name in Drafts._fields:
            own = getattr(call, name)[n]
            old = getattr(call.drafts, name)[slot, half, :count] if count else own[:0]
            tokens[name].append(torch.cat([old, own, own.new_zeros(D - count, *own.shape[1:])]))
    own_counts = [T] * N if call.num_tokens is None else [min(max(n, 0), T) for n in call.num_tokens.tolist()]
    return call.with_(
        q=q,
        **{name: torch.stack(parts) if parts else getattr(call, name) for name, parts in tokens.items()},
        num_tokens=torch.tensor([a + b for a, b in zip(counts, own_counts, strict=True)], dtype=torch.int32),
        write_index=write, drafts=None, draft_half=None, accepted=None, out=None,
    ), counts  # fmt: skip


@dataclass(frozen=True)
class DeltaRuleOracle:
    """The oracle of one operator.

    Attributes:
        log_gate: returns a call's log gate [B, T, HV] or [B, T, HV, K] in a dtype.
    """

    log_gate: Callable[[DeltaRuleCall, torch.dtype], torch.Tensor]

    def operands64(self, call: DeltaRuleCall) -> tuple[torch.Tensor, ...]:
        """Return q, k (repeated to HV heads), v, g, beta of a call in float64, with every option applied."""
        groups = call.v.shape[2] // call.q.shape[2]
        q, k = (x.double().repeat_interleave(groups, 2) for x in (call.q, call.k))
        beta = call.beta.double()
        if call.options.normalize_qk:
            q, k = (x / (x.pow(2).sum(-1, keepdim=True) + NORM_EPS).sqrt() for x in (q, k))
        if call.options.beta_sigmoid:
            beta = beta.sigmoid() * (2 if call.options.neg_eigval else 1)
        return q, k, call.v.double(), self.log_gate(call, torch.float64), beta

    def sequence(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        """Return o [B, T, HV, V] and the final state in the call's layout, both float64."""
        B, T, _, HV, K, V = call.dims
        q, k, v, g, beta = self.operands64(call)
        rows: list[list[torch.Tensor]] = [[] for _ in range(B)]
        finals = []
        for n, (b, span) in enumerate(spans(call)):
            if call.initial_state is None:
                state = v.new_zeros(HV, K, V)
            else:
                state = k_first(call.initial_state, call.options.layout)[n].double()
            parts = (x[b, span] for x in (q, k, v, g, beta))
            o, states = recurrence(*parts, state=state, scale=call.options.scale)
            rows[b].append(o)
            finals.append(states[-1])
        outputs = []
        for row in rows:
            covered = sum(o.shape[0] for o in row)
            outputs.append(torch.cat([*row, v.new_zeros(T - covered, HV, V)]))
        o = torch.stack(outputs) if outputs else v.new_zeros(0, T, HV, V)
        final = torch.stack(finals) if finals else v.new_zeros(0, HV, K, V)
        return o, k_first(final, call.options.layout)

    def _speculate(self, call: DecodeCall) -> PoolResult:
        N, T, *_ = call.dims
        plain, counts = unrolled(call)
        found = self.decode(plain)
        o = torch.stack([found.o[n, a : a + T] for n, a in enumerate(counts)]) if N else found.o
        writes = dict(found.writes)
        for n, count in enumerate(counts):
            state = _start(call, n)
            if state is not None and not count:
                _keep(call, writes, int(call.writes[n]), state)
        return PoolResult(o, writes)

    def decode(self, call: DecodeCall) -> PoolResult:
        """Return outputs and writes of the decode form."""
        if call.drafts is not None:
            return self._speculate(call)
        N, T, *_ = call.dims
        q, k, v, g, beta = self.operands64(call)
        o = torch.zeros_like(v)
        writes: dict[int, torch.Tensor] = {}
        for n in range(N):
            state = _start(call, n)
            if state is None:
                continue
            tokens = T if call.num_tokens is None else min(max(int(call.num_tokens[n]), 0), T)
            parts = (x[n, :tokens] for x in (q, k, v, g, beta))
            o[n, :tokens], states = recurrence(*parts, state=state, scale=call.options.scale)
            index = call.read_index if call.write_index is None else call.write_index
            if index.dim() == 1:
                _keep(call, writes, int(index[n]), states[-1])
            else:
                for t in range(tokens):
                    _keep(call, writes, int(index[n, t]), states[t + 1])
        return PoolResult(o, writes)

    def prefill(self, call: PrefillCall) -> PoolResult:
        """Return outputs and writes of the prefill form."""
        q, k, v, g, beta = self.operands64(call)
        o = torch.zeros_like(v)
        writes: dict[int, torch.Tensor] = {}
        index = call.read_index if call.write_index is None else call.write_index
        for n, (b, span) in enumerate(spans(call)):
            state = _start(call, n)
            if state is None:
                continue
            parts = (x[b, span] for x in (q, k, v, g, beta))
            o[b, span], states = recurrence(*parts, state=state, scale=call.options.scale)
            _keep(call, writes, int(index[n]), states[-1])
            if call.checkpoint_index is not None and call.checkpoint_every is not None:
                for j, slot in enumerate(call.checkpoint_index[n].tolist()):
                    position = (j + 1) * call.checkpoint_every
                    if position < len(states):
                        _keep(call, writes, slot, states[position])
        return PoolResult(o, writes)
