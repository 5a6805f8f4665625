"""The last step of every backward pass: from gradients a value head and part each to those of the inputs."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_host import aligned, given
from deltaproof.ops.common.triton_inputs import gate_gradients_kernel, head_gradients_kernel

Optional = torch.Tensor | None


def head_gradients(call: SequenceCall, name: str, parts: torch.Tensor) -> torch.Tensor:
    """Return the gradient of q or k from ``parts`` [P, B, T, HV, K], those of the normalised tensor."""
    x = aligned(getattr(call, name))
    B, T, H, HV, K, _ = call.dims
    dx = call.allocate(x.shape, dtype=x.dtype, device=x.device)
    BK = triton.next_power_of_2(K)
    block = max(1, 2048 // BK)
    if B * T:
        head_gradients_kernel[(triton.cdiv(B * T, block) * H,)](
            parts, x, dx, given(call.cu_seqlens, call.q), B * T, call.sequences, parts.shape[0], H=H, HV=HV,
            K=K, BK=BK, BLOCK=block, NORMALIZE=call.options.normalize_qk, VARLEN=call.cu_seqlens is not None,
            num_warps=4,
        )  # fmt: skip
    return dx


def gate_gradients(
    call: SequenceCall, d_gate: torch.Tensor, d_strength: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Optional, Optional]:
    """Return the gradients of g, beta, A_log and dt_bias from those of the log gate and strength [P, B, T, HV]."""
    options = call.options
    B, T, _, HV, _, _ = call.dims
    g, beta = aligned(call.g), aligned(call.beta)
    dg, dbeta = (call.allocate(x.shape, dtype=x.dtype, device=x.device) for x in (g, beta))
    BH = min(16, triton.next_power_of_2(HV))
    block = 64
    blocks = triton.cdiv(B * T, block)
    shares = [call.allocate((blocks, HV), dtype=torch.float32, device=g.device) for _ in range(2)]
    if blocks:
        gate_gradients_kernel[(blocks * triton.cdiv(HV, BH),)](
            d_gate, d_strength, g, beta, given(call.A_log, g),
            given(call.dt_bias, g), dg, dbeta, *shares, given(call.cu_seqlens, call.q), B * T,
            call.sequences, d_gate.shape[0], HV=HV, BH=BH, BLOCK=block, GATE=options.gate_in_kernel,
            DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval,
            VARLEN=call.cu_seqlens is not None, num_warps=4,
        )  # fmt: skip
    dA_log, ddt_bias = (
        None if x is None or not options.gate_in_kernel else share.sum(0).to(x.dtype)
        for x, share in zip((call.A_log, call.dt_bias), shares, strict=True)
    )
    return dg, dbeta, dA_log, ddt_bias
