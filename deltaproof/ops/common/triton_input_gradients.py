"""The last step of every backward pass: from gradients a value head and part each to those of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.common.triton_channel_gradients import channel_gate_gradients_kernel, strength_gradients_kernel
from deltaproof.ops.common.triton_host import aligned, gate_constants, given
from deltaproof.ops.common.triton_inputs import gate_gradients_kernel, head_gradients_kernel

Optional = torch.Tensor | None


@dataclass(frozen=True)
class Gradients:
    """The gradients of a call's inputs; None for inputs that were not given."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    A_log: Optional
    dt_bias: Optional
    initial_state: Optional


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
    """Return the gradients of g, beta, A_log and dt_bias.

    ``d_gate`` [P, B, T, HV] or [P, B, T, HV, K] and ``d_strength`` [P, B, T, HV] are those of log gates and strengths.
    """
    both = _channel_gates if call.g.dim() == 4 else _head_gates
    dg, dbeta, *shares = both(call, d_gate, d_strength)
    dA_log, ddt_bias = (
        None if x is None or not call.options.gate_in_kernel else share.sum(0).to(x.dtype)
        for x, share in zip((call.A_log, call.dt_bias), shares, strict=True)
    )
    return dg, dbeta, dA_log, ddt_bias


def _shapes(call: SequenceCall) -> tuple[dict[str, int], int, torch.Tensor]:
    """Return the constants of kernels over tokens and heads, the number of blocks of tokens, and what is cu_seqlens."""
    B, T, _, HV, _, _ = call.dims
    block = 64
    constants = {"HV": HV, "BH": min(16, triton.next_power_of_2(HV)), "BLOCK": block, "num_warps": 4}
    return constants, triton.cdiv(B * T, block), given(call.cu_seqlens, call.q)


def _head_gates(call: SequenceCall, d_gate: torch.Tensor, d_strength: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the gradients of g and beta, and those of A_log and dt_bias in shares."""
    options = call.options
    B, T, _, HV, _, _ = call.dims
    g, beta = aligned(call.g), aligned(call.beta)
    dg, dbeta = (call.allocate(x.shape, dtype=x.dtype, device=x.device) for x in (g, beta))
    constants, blocks, cu_seqlens = _shapes(call)
    shares = [call.allocate((blocks, HV), dtype=torch.float32, device=g.device) for _ in range(2)]
    if blocks:
        gate_gradients_kernel[(blocks * triton.cdiv(HV, constants["BH"]),)](
            d_gate, d_strength, g, beta, given(call.A_log, g), given(call.dt_bias, g), dg, dbeta, *shares, cu_seqlens,
            B * T, call.sequences, d_gate.shape[0], **constants, GATE=options.gate_in_kernel,
            DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval,
            VARLEN=call.cu_seqlens is not None,
        )  # fmt: skip
    return dg, dbeta, *shares


def _channel_gates(call: SequenceCall, d_gate: torch.Tensor, d_strength: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the gradients of g and beta, and those of A_log and dt_bias in shares."""
    options = call.options
    B, T, _, HV, K, _ = call.dims
    g, beta = aligned(call.g), aligned(call.beta)
    dg, dbeta = (call.allocate(x.shape, dtype=x.dtype, device=x.device) for x in (g, beta))
    constants, blocks, cu_seqlens = _shapes(call)
    varlen = call.cu_seqlens is not None
    BK, gates = triton.next_power_of_2(K), gate_constants(call)
    block = max(1, 2048 // BK)
    parts = triton.cdiv(B * T, block)
    shares = [call.allocate((parts, *shape), dtype=torch.float32, device=g.device) for shape in ((HV,), (HV, K))]
    if blocks:
        strength_gradients_kernel[(blocks * triton.cdiv(HV, constants["BH"]),)](
            d_strength, beta, dbeta, cu_seqlens, B * T, call.sequences, d_strength.shape[0], **constants,
            BETA_SIGMOID=options.beta_sigmoid, NEG_EIGVAL=options.neg_eigval, VARLEN=varlen,
        )  # fmt: skip
        channel_gate_gradients_kernel[(parts * HV,)](
            d_gate, g, given(call.A_log, g), given(call.dt_bias, g), dg, *shares, cu_seqlens, B * T, call.sequences,
            d_gate.shape[0], HV=HV, K=K, BK=BK, BLOCK=block, **gates, VARLEN=varlen, num_warps=4,
        )  # fmt: skip
    return dg, dbeta, *shares
