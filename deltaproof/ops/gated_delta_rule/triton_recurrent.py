"""Launching the recurrent kernel: the forms ``recurrent`` (forward) and ``decode`` of the Triton backend."""

from __future__ import annotations

import torch
import triton

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.common.triton_recurrence import recurrence_kernel, zero_tail_kernel


def config(K: int, V: int, layout: StateLayout) -> dict[str, int]:
    """Return the launch configuration from head sizes and layout; never a function of T or N (clause I2).

    A block is contiguous in memory in layout v_first, so small blocks read at full speed; in k_first its lines are BV
    long. On an H200, K = V = 128: 8 x 128 on one warp, and 64 x 128 on four, were the fastest of eleven.
    """
    BK = triton.next_power_of_2(K)
    wide = layout is StateLayout.K_FIRST
    BV = min(triton.next_power_of_2(V), max(1, (8192 if wide else 1024) // BK), 64)
    return {"BK": BK, "BV": BV, "num_warps": 4 if wide and BK * BV > 1024 else 1, "num_stages": 2}


def state_strides(state: torch.Tensor, layout: StateLayout) -> tuple[int, int, int, int]:
    """Return the strides of a state [N, HV, ., .] as (slot, head, k, v)."""
    slot, head, first, second = state.stride()
    return (slot, head, first, second) if layout is StateLayout.K_FIRST else (slot, head, second, first)


def _launch(
    call: SequenceCall | DecodeCall,
    o: torch.Tensor,
    rows: int,
    source: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> None:
    B, T, H, HV, K, V = call.dims
    options = call.options
    settings = config(K, V, options.layout)
    blocks = triton.cdiv(V, settings["BV"])
    decode = call if isinstance(call, DecodeCall) else None
    write = None if decode is None else decode.read_index if decode.write_index is None else decode.write_index

    def given(x: torch.Tensor | None) -> torch.Tensor:
        # o stands for an argument that the flags leave out
        return o if x is None else x.contiguous()

    recurrence_kernel[(rows * HV * blocks,)](
        *(x.contiguous() for x in (call.q, call.k, call.v, call.g, call.beta)),
        given(call.A_log),
        given(call.dt_bias),
        o,
        o if source is None else source,
        o if sink is None else sink,
        given(None if decode is None else decode.read_index),
        given(write),
        given(None if decode is None else decode.num_tokens),
        given(None if decode is None else decode.has_initial_state),
        given(None if isinstance(call, DecodeCall) else call.cu_seqlens),
        options.scale,
        T,
        0 if decode is None else decode.pool.shape[0],
        *(state_strides(source, options.layout) if source is not None else (0, 0, 0, 0)),
        *(state_strides(sink, options.layout) if sink is not None else (0, 0, 0, 0)),
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
        GATE=options.gate_in_kernel,
        DT_BIAS=call.dt_bias is not None,
        BETA_SIGMOID=options.beta_sigmoid,
        NEG_EIGVAL=options.neg_eigval,
        **settings,
    )


def recurrent_forward(call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the form ``recurrent`` without gradients."""
    B, T, _, HV, K, V = call.dims
    layout = call.options.layout
    o = call.allocate((B, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    state = call.initial_state
    final = None
    if call.output_final_state:
        dtype = torch.float32 if state is None else state.dtype
        shape = (call.sequences, HV, *layout.inner_shape(K, V))
        final = call.allocate(shape, dtype=dtype, device=call.q.device)
    if call.sequences:
        _launch(call, o, call.sequences, state, final)
    if call.cu_seqlens is not None:
        zero_tail(o, call.cu_seqlens)
    return o, final


def zero_tail(o: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    """Zero the rows of o [1, T, HV, V] behind the last sequence, wherever that is."""
    T, width = o.shape[1], o.shape[2] * o.shape[3]
    block = 32
    if T:
        zero_tail_kernel[(triton.cdiv(T, block),)](
            o, cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1, T, WIDTH=width, BLOCK=block
        )


def decode(call: DecodeCall) -> torch.Tensor:
    """Run the form ``decode``."""
    N, T, _, HV, _, V = call.dims
    o = call.out
    if o is None:
        o = call.allocate((N, T, HV, V), dtype=call.v.dtype, device=call.q.device)
    if N:
        _launch(call, o, N, call.pool, call.pool)
    return o
