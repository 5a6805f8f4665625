"""Launching the backward kernel of the form ``recurrent``."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_host import aligned, given, state_strides, token_constants, zero_tail
from deltaproof.ops.common.triton_input_gradients import Gradients, gate_gradients, head_gradients
from deltaproof.ops.common.triton_recurrence_backward import recurrence_backward_kernel
from deltaproof.ops.common.triton_tables import SEGMENT, recurrence_backward


def recurrent_backward(call: SequenceCall, do: torch.Tensor, d_final: torch.Tensor | None) -> Gradients:
    """Return the gradients of ``recurrent_forward`` from those of o [B, T, HV, V] and of the final state."""
    B, T, H, HV, K, V = call.dims
    options, layout, N = call.options, call.options.layout, call.sequences
    device = do.device
    launch = recurrence_backward(K, V)
    parts = triton.cdiv(V, launch.BV)

    def new(*shape: int) -> torch.Tensor:
        return call.allocate(shape, dtype=torch.float32, device=device)

    do = aligned(do)
    dq, dk = new(parts, B, T, HV, K), new(parts, B, T, HV, K)
    d_gate, d_strength = new(parts, *call.g.shape), new(parts, B, T, HV)
    dv = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=device)
    state = call.initial_state
    d_initial = None if state is None else call.allocate(state.shape, dtype=state.dtype, device=device)
    if N:
        recurrence_backward_kernel[(N * HV * parts,)](
            *(aligned(x) for x in (call.q, call.k, call.v, call.g, call.beta)), given(call.A_log, do),
            given(call.dt_bias, do), do, do if state is None else state, do if d_final is None else d_final,
            do if d_initial is None else d_initial, dq, dk, dv, d_gate, d_strength,
            new(B * T // SEGMENT + N, HV, V, K), new(N, SEGMENT, HV, V, K), given(call.cu_seqlens, do),
            options.scale, T, B * T, *state_strides(state, layout), *state_strides(d_final, layout),
            *state_strides(d_initial, layout), H=H, HV=HV, K=K, V=V, BK=launch.BK, BV=launch.BV, SEGMENT=SEGMENT,
            VARLEN=call.cu_seqlens is not None, READ=state is not None, FINAL=d_final is not None,
            WRITE=d_initial is not None, NORMALIZE=options.normalize_qk, **token_constants(call),
            BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval, **launch.options,
        )  # fmt: skip
    zero_tail(dv, call.cu_seqlens)
    dg, dbeta, dA_log, ddt_bias = gate_gradients(call, d_gate, d_strength)
    return Gradients(
        head_gradients(call, "q", dq), head_gradients(call, "k", dk), dv, dg, dbeta, dA_log, ddt_bias, d_initial
    )
