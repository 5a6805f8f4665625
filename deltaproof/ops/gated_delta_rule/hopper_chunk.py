"""Launching the chunk kernels for Hopper: the forms ``chunk`` (forward) and ``prefill``."""

from __future__ import annotations

import torch
import triton

from deltaproof.ops.common.hopper_triangles import FOLDED
from deltaproof.ops.common.hopper_walks import WalkOperands, walk
from deltaproof.ops.common.triton_chunks import Call, Chunks, Saved, operand_dtype
from deltaproof.ops.common.triton_host import aligned, given
from deltaproof.ops.gated_delta_rule.hopper_prepare import hopper_prepare_kernel


def _run(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None, *, keeps: bool) -> Saved:
    """Fill o and ``sink``; return G, strength and T' where it ``keeps`` them."""
    options = call.options
    # a key's length is a factor of what is written: of the operands' dtypes it may be too small for float16
    folds = options.normalize_qk and operand_dtype(call) == torch.bfloat16
    chunks = Chunks.of(call, normalize=options.normalize_qk and not folds)
    B, T, H, HV, _, _ = call.dims
    factors = chunks.new(chunks.count, HV, 4 if folds else 2, 64, dtype=torch.float32)
    G, strength = (chunks.new(B, T, HV, dtype=torch.float32) if keeps else factors for _ in range(2))
    inverse, attention = (chunks.new(chunks.count, HV, *size) for size in ((64, 64) if keeps else FOLDED, FOLDED))
    g, beta = aligned(call.g), aligned(call.beta)
    if chunks.count:
        # each of a program's two value heads has a query/key head of its own
        apart = HV == H and H % 2 == 0
        programs = H // 2 if apart else H * triton.cdiv(HV // H, 2)
        hopper_prepare_kernel[(chunks.count * programs,)](
            chunks.q, chunks.k, g, beta, given(call.A_log, g), given(call.dt_bias, g), G, strength, factors,
            inverse, attention, *chunks.pack, options.scale, T, call.sequences, **chunks.flags,
            GATE=options.gate_in_kernel, DT_BIAS=call.dt_bias is not None, BETA_SIGMOID=options.beta_sigmoid,
            NEG_EIGVAL=options.neg_eigval, APART=apart, NORMALIZE=folds, KEEPS=keeps, num_warps=4,
            # room for four programs a multiprocessor; apart for three
            maxnreg=168 if apart else 128,
        )  # fmt: skip
    known = WalkOperands(chunks.q, chunks.k, chunks.k, factors, strength, inverse, attention, per_channel=False)
    walk(chunks, known, o, source, sink)
    return (G, strength, inverse) if keeps else ()


def forward(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Saved:
    """Fill o [B, T, HV, V] and ``sink``, from the states in ``source``; return what a backward pass needs."""
    return _run(call, o, source, sink, keeps=True)


def inference(call: Call, o: torch.Tensor, source: torch.Tensor | None, sink: torch.Tensor | None) -> Saved:
    """Do the same, in less memory, and keep nothing."""
    return _run(call, o, source, sink, keeps=False)
