"""Launching the recurrent kernel: the forms ``recurrent`` (forward) and ``decode`` of the Triton backend."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common import hopper_decode
from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.common.triton_host import (
    aligned,
    given,
    speculative_arguments,
    speculative_constants,
    state_strides,
    token_constants,
    zero_tail,
)
from deltaproof.ops.common.triton_recurrence import recurrence_kernel
from deltaproof.ops.common.triton_speculation import speculation_kernel
from deltaproof.ops.common.triton_tables import ahead, recurrence, speculation


def _launch(
    call: SequenceCall | DecodeCall,
    o: torch.Tensor,
    rows: int,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> None:
    B, T, H, HV, K, V = call.dims
    options = call.options
    decode = call if isinstance(call, DecodeCall) else None
    launch = recurrence(K, V, options.layout, None if decode is None else decode.pool.dtype)
    write = None if decode is None else decode.writes

    recurrence_kernel[(rows * HV * triton.cdiv(V, launch.BV),)](
        *(aligned(x) for x in (call.q, call.k, call.v, call.g, call.beta)),
        given(call.A_log, o),
        given(call.dt_bias, o),
        o,
        o if source is None else source,
        o if sink is None else sink,
        given(None if decode is None else decode.read_index, o),
        given(write, o),
        given(None if decode is None else decode.num_tokens, o),
        given(None if decode is None else decode.has_initial_state, o),
        given(None if isinstance(call, DecodeCall) else call.cu_seqlens, o),
        options.scale,
        T,
        0 if decode is None else decode.pool.shape[0],
        *state_strides(source, options.layout),
        *state_strides(sink, options.layout),
        H=H,
        HV=HV,
        K=K,
        V=V,
        POOL=decode is not None,
        VARLEN=not isinstance(call, DecodeCall) and call.cu_seqlens is not None,
        RAGGED=decode is not None and decode.num_tokens is not None,
        FRESH=decode is not None and decode.has_initial_state is not None,
        READ=source is not None,
        WRITE=sink is not None and (write is None or write.dim() == 1),
        WRITE_EACH=write is not None and write.dim() == 2,
        NORMALIZE=options.normalize_qk,
        **token_constants(call),
        BETA_SIGMOID=options.beta_sigmoid,
        NEG_EIGVAL=options.neg_eigval,
        BK=launch.BK,
        BV=launch.BV,
        AHEAD=0 if decode is None else ahead(K, options.layout, decode.pool.dtype),
        **launch.options,
    )


def recurrent_forward(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the form ``recurrent`` without gradients."""
    B, T, _, HV, K, V = call.dims
    layout = call.options.layout
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    # a state's strides choose how its loads are laid out over threads, and with that the order of sums
    state = None if call.initial_state is None else aligned(call.initial_state)
    final = None
    if call.output_final_state:
        dtype = torch.float32 if state is None else state.dtype
        shape = (call.sequences, HV, *layout.inner_shape(K, V))
        final = call.allocate(shape, dtype=dtype, device=call.q.device)
    if call.sequences:
        _launch(call, o, call.sequences, state, final)
    zero_tail(o, call.cu_seqlens)
    return o, final


def _speculate(call: DecodeCall, o: torch.Tensor) -> None:
    N, _, _, HV, K, V = call.dims
    assert call.drafts is not None
    launch = speculation(K, V, call.options.layout)
    speculation_kernel[(N * HV * triton.cdiv(V, launch.BV),)](
        *speculative_arguments(call, o),
        *state_strides(call.pool, call.options.layout),
        *(x.stride(0) for x in call.drafts),
        **speculative_constants(call) | token_constants(call),
        BK=launch.BK,
        BV=launch.BV,
        **launch.options,
    )


def decode(call: DecodeCall, out: torch.Tensor) -> None:
    """Run the form ``decode`` into ``out`` [N, T, HV, V]."""
    if not call.q.shape[0]:
        return
    if call.drafts is None:
        _launch(call, out, call.q.shape[0], call.pool, call.pool)
    elif hopper_decode.takes(call):
        hopper_decode.speculate(call, out)
    else:
        _speculate(call, out)
