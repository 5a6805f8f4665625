"""Launching the chunk kernels for Hopper: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import PrefillCall
from deltaproof.ops.common.triton_chunks import Call, Chunks
from deltaproof.ops.common.triton_host import aligned, given, state_strides, zero_tail
from deltaproof.ops.gated_delta_rule.hopper_prepare import hopper_prepare_kernel
from deltaproof.ops.gated_delta_rule.hopper_tables import walk
from deltaproof.ops.gated_delta_rule.hopper_walk import hopper_walk_kernel
from deltaproof.ops.gated_delta_rule.triton_chunk import Prepared


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Prepared:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; return what a backward pass needs."""
    chunks = Chunks.of(call, normalize=call.options.normalize_qk)
    options = call.options
    B, T, H, HV, K, V = call.dims
    layout, pool = options.layout, call if isinstance(call, PrefillCall) else None
    G, strength = (chunks.new(B, T, HV, dtype=torch.float32) for _ in range(2))
    factors = chunks.new(chunks.count, HV, 2, 64, dtype=torch.float32)
    inverse, attention = (chunks.new(chunks.count, HV, 64, 64) for _ in range(2))
    g, beta = aligned(call.g), aligned(call.beta)
    if chunks.count:
        hopper_prepare_kernel[(chunks.count * H,)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), G, strength, factors, inverse,
            attention, *chunks.pack, options.scale, T, call.sequences, **chunks.flags, GATE=options.gate_in_kernel,
            DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval,
            num_warps=4,
        )  # fmt: skip
    read = write = checkpoints = fresh = None
    if pool is not None:
        read = pool.read_index
        write = pool.read_index if pool.write_index is None else pool.write_index
        checkpoints, fresh = pool.checkpoint_index, pool.has_initial_state
    if call.sequences:
        launch = walk(V, HV)
        hopper_walk_kernel[(call.sequences * HV * (V // launch.BV),)](
            chunks.q, chunks.k, chunks.v, factors, inverse, attention, o, o if source is None else source,
            o if sink is None else sink, *(given(x, o) for x in (checkpoints, read, write, fresh)), *chunks.pack[:2],
            options.scale, T, 0 if pool is None else pool.pool.shape[0],
            0 if checkpoints is None else checkpoints.shape[1], *state_strides(source, layout),
            *state_strides(sink, layout), **chunks.flags, V=V, BV=launch.BV, STAGES=launch.num_stages,
            POOL=pool is not None, FRESH=fresh is not None, READ=source is not None, WRITE=sink is not None,
            EVERY=(pool.checkpoint_every or 0) if pool is not None else 0, num_warps=launch.BV // 16,
        )  # fmt: skip
    zero_tail(o, call.cu_seqlens)
    return G, strength, inverse
