"""Decode and prefill of the delta rule against a state pool, in PyTorch. Inference only.

Shape legend: N rows or sequences, T tokens a row, S slots, H query/key heads, HV value heads, K, V head sizes.
"""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DecodeCall, Drafts, PrefillCall
from deltaproof.ops.common.drafts import drafted, keep_drafts, replayed
from deltaproof.ops.common.packing import Packing
from deltaproof.ops.common.slot_checks import inside
from deltaproof.ops.common.torch_chunk import chunk_delta_rule
from deltaproof.ops.common.torch_inputs import operands, repeat_heads
from deltaproof.ops.common.torch_pool import read_slots, write_slots
from deltaproof.ops.common.torch_recurrent import token_step
from deltaproof.ops.common.torch_rule import TorchRule


@torch.no_grad()
def decode(call: DecodeCall, rule: TorchRule) -> torch.Tensor:
    """Form ``decode`` of the torch backend."""
    N, T, _, HV, _, V = call.dims
    layout = call.options.layout
    q, k, v, beta = operands(call.q, call.k, call.v, call.beta, call.options)
    q, k, g = repeat_heads(q, HV), repeat_heads(k, HV), rule.log_gate(call, torch.float32)
    state, valid = read_slots(call.pool, call.read_index, call.has_initial_state, layout)
    write_index = call.writes
    out = call.out
    if out is None:
        out = call.allocate((N, T, HV, V), dtype=call.v.dtype, device=q.device)
    kept = []
    if call.drafts is not None:
        state = _replay(call, state, valid, rule)
    for t in range(T):
        # a padding row's tokens may be anything, NaN too: selected away below
        o, advanced = token_step(
            state, q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t], scale=call.options.scale
        )  # [N, HV, V], [N, HV, K, V]
        runs = valid if call.num_tokens is None else valid & (t < call.num_tokens)
        out[:, t] = torch.where(runs[:, None, None], o, 0.0).to(out.dtype)
        state = torch.where(runs[:, None, None, None], advanced, state)
        if write_index.dim() == 2:
            kept.append((write_index[:, t], runs, state))
    if write_index.dim() == 1 and call.drafts is None:
        kept.append((write_index, valid, state))
    for index, keep, after in kept:
        write_slots(call.pool, index, keep, after, layout)
    return out


def _replay(call: DecodeCall, state: torch.Tensor, valid: torch.Tensor, rule: TorchRule) -> torch.Tensor:
    """Advance the states [N, HV, K, V] by the accepted drafts, store them, and keep the rows' tokens as new drafts."""
    assert call.drafts is not None and call.draft_half is not None and call.accepted is not None
    (N, T, _, HV, _, _), D = call.dims, call.drafts.k.shape[2]
    if N == 0 or call.pool.shape[0] == 0:
        return state
    kept = valid & inside(call.writes, call.pool.shape[0])
    count, half, other = replayed(call.draft_half, call.accepted, kept, call.writes, D)
    old = {name: drafted(getattr(call.drafts, name), call.writes, kept, half) for name in Drafts._fields}
    past = call.with_(q=old["k"], **old)
    _, k, v, beta = operands(past.q, past.k, past.v, past.beta, call.options)
    k, g = repeat_heads(k, HV), rule.log_gate(past, torch.float32)
    for t in range(D):
        _, advanced = token_step(state, k[:, t], k[:, t], v[:, t], g[:, t], beta[:, t], scale=call.options.scale)
        state = torch.where((t < count)[:, None, None, None], advanced, state)
    write_slots(call.pool, call.writes, valid, state, call.options.layout)
    counts = torch.full_like(count, T) if call.num_tokens is None else call.num_tokens
    for name in Drafts._fields:
        keep_drafts(getattr(call.drafts, name), getattr(call, name), call.writes, kept, other, counts)
    return state


@torch.no_grad()
def prefill(call: PrefillCall, rule: TorchRule) -> torch.Tensor:
    """Form ``prefill`` of the torch backend."""
    B, T, _, HV, _, V = call.dims
    layout = call.options.layout
    q, k, v, beta = operands(call.q, call.k, call.v, call.beta, call.options)
    g = rule.log_gate(call, torch.float32)
    state, valid = read_slots(call.pool, call.read_index, call.has_initial_state, layout)
    packing = Packing.of((B, T), call.cu_seqlens, call.options.chunk_size)
    out = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=q.device)
    scale = call.options.scale
    out, final, after = chunk_delta_rule(q, k, v, g, beta, state, scale=scale, packing=packing, out=out, rule=rule)
    if call.cu_seqlens is None:
        live = valid[:, None]  # [B, 1]
    else:
        # the sequence of each token; tokens past the last sequence are zero already
        owner = torch.bucketize(torch.arange(T, device=q.device), call.cu_seqlens[1:].long().contiguous(), right=True)
        live = torch.cat([valid, valid.new_zeros(1)])[owner][None]  # [1, T]
    out.masked_fill_(~live[..., None, None], 0)
    write_index = call.read_index if call.write_index is None else call.write_index
    write_slots(call.pool, write_index, valid, final, layout)
    if call.checkpoint_index is not None:
        _write_checkpoints(call, packing, after, valid)
    return out


def _write_checkpoints(call: PrefillCall, packing: Packing, after: list[torch.Tensor], valid: torch.Tensor) -> None:
    assert call.checkpoint_every is not None and call.checkpoint_index is not None
    _, T, *_ = call.dims
    if call.cu_seqlens is None:
        lengths = torch.full_like(call.read_index, T)
    else:
        lengths = call.cu_seqlens[1:] - call.cu_seqlens[:-1]
    chunks = call.checkpoint_every // call.options.chunk_size
    index, lengths, valid = (packing.sort(x) for x in (call.checkpoint_index, lengths, valid))
    for j in range(index.shape[1]):
        step = (j + 1) * chunks - 1
        if step >= len(after):
            return
        count = after[step].shape[0]
        reached = valid[:count] & (lengths[:count] >= (j + 1) * call.checkpoint_every)
        write_slots(call.pool, index[:count, j], reached, after[step], call.options.layout)
