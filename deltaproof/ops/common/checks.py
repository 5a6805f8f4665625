"""Clause E1: what a call's shapes, dtypes, devices, strides and host data show, checked before any kernel runs.

Shape legend: B batch, T tokens, H query/key heads, HV value heads, K, V head sizes, N sequences or rows, S slots.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from deltaproof.contracts.errors import ContractError
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_SIZE = 256
MAX_DECODE_TOKENS = 16
CHUNK_SIZES = (16, 32, 64)
SAFE_GATE = -5.0
"""What ``safe_gate`` promises of every log gate."""
ALIGNMENT = 16  # bytes

Call = SequenceCall | DecodeCall | PrefillCall


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(
    name: str,
    x: Any,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Raise ContractError unless ``x`` is a tensor of this shape (strings are free dimensions), dtype and device."""
    legend = "[" + ", ".join(map(str, shape)) + "]"
    if not isinstance(x, torch.Tensor):
        raise ContractError(name, f"a tensor {legend}", type(x).__name__)
    fits = x.dim() == len(shape) and all(isinstance(d, str) or d == n for d, n in zip(shape, x.shape, strict=True))
    if not fits:
        raise ContractError(name, f"shape {legend}", f"shape {list(x.shape)}")
    if x.dtype not in dtypes:
        raise ContractError(name, _names(dtypes), str(x.dtype).removeprefix("torch."))
    if device is not None and x.device != device:
        raise ContractError(name, f"a tensor on {device}, where q is", f"one on {x.device}")


def _check_tokens(call: Call, gate_per_channel: bool) -> None:
    """Check q, k, v, g, beta and the gate's parameters."""
    check_tensor("q", call.q, ("B", "T", "H", "K"), FLOATS)
    B, T, H, K = call.q.shape
    device = call.q.device
    check_tensor("k", call.k, (B, T, H, K), FLOATS, device)
    check_tensor("v", call.v, (B, T, "HV", "V"), FLOATS, device)
    HV, V = call.v.shape[2:]
    if H < 1 or HV < H or HV % H:
        raise ContractError("v", f"HV a positive multiple of q's H = {H}", f"HV = {HV}")
    for name, argument, size in (("K", "q", K), ("V", "v", V)):
        if not 1 <= size <= MAX_HEAD_SIZE:
            raise ContractError(argument, f"{name} from 1 to {MAX_HEAD_SIZE}", f"{name} = {size}")
    if isinstance(call.beta, torch.Tensor) and call.beta.dim() == 4:
        raise ContractError(
            "beta",
            f"one value a head, shape {[B, T, HV]}",
            f"shape {list(call.beta.shape)}; a beta per channel is not supported yet",
        )
    gate = (B, T, HV, K) if gate_per_channel else (B, T, HV)
    check_tensor("g", call.g, gate, FLOATS, device)
    check_tensor("beta", call.beta, (B, T, HV), FLOATS, device)
    _check_gate(call, HV, K, gate_per_channel)
    _check_bounds(call)


def _check_gate(call: Call, HV: int, K: int, gate_per_channel: bool) -> None:
    for name, x in (("A_log", call.A_log), ("dt_bias", call.dt_bias)):
        if x is not None and not call.options.gate_in_kernel:
            raise ContractError(name, "None unless use_gate_in_kernel=True", "a tensor")
    if not call.options.gate_in_kernel:
        return
    if call.A_log is not None or not gate_per_channel:
        check_tensor("A_log", call.A_log, (HV,), FLOATS, call.q.device)
    if call.dt_bias is not None:
        shape = (HV, K) if gate_per_channel else (HV,)
        check_tensor("dt_bias", call.dt_bias, shape, FLOATS, call.q.device)


def _check_bounds(call: Call) -> None:
    """Check what is said of the range of the gates."""
    options = call.options
    low = options.lower_bound
    if low is not None:
        if not options.gate_in_kernel:
            raise ContractError("lower_bound", "None unless use_gate_in_kernel=True", repr(low))
        if isinstance(low, bool) or not isinstance(low, (int, float)) or not -sys.float_info.max <= low < 0:
            raise ContractError("lower_bound", "a finite number below 0, or None", repr(low))
    if options.safe_gate and options.gate_in_kernel and (low is None or low < SAFE_GATE):
        raise ContractError(
            "safe_gate", f"a lower_bound in [{SAFE_GATE:g}, 0) beside the gate in the kernel", repr(low)
        )


def _flags(call: Call) -> Iterator[tuple[str, object]]:
    """Yield the yes-or-no options of a call by the names of the public functions."""
    options = call.options
    yield "use_qk_l2norm_in_kernel", options.normalize_qk
    yield "use_gate_in_kernel", options.gate_in_kernel
    yield "safe_gate", options.safe_gate
    yield "use_beta_sigmoid_in_kernel", options.beta_sigmoid
    yield "allow_neg_eigval", options.neg_eigval
    yield "batch_invariant", options.batch_invariant
    if isinstance(call, SequenceCall):
        yield "output_final_state", call.output_final_state


def _check_options(call: Call) -> None:
    options = call.options
    for name, value in _flags(call):
        if not isinstance(value, bool):
            raise ContractError(name, "True or False", repr(value))
    if not isinstance(options.scale, (int, float)) or not abs(options.scale) <= sys.float_info.max:
        raise ContractError("scale", "a finite number or None", options.scale)
    if options.neg_eigval and not options.beta_sigmoid:
        raise ContractError(
            "allow_neg_eigval", "use_beta_sigmoid_in_kernel=True beside it", "use_beta_sigmoid_in_kernel=False"
        )
    if options.chunk_size not in CHUNK_SIZES:
        raise ContractError("chunk_size", "16, 32 or 64", options.chunk_size)


def _check_cu_seqlens(call: SequenceCall | PrefillCall) -> None:
    if call.cu_seqlens is None:
        return
    check_tensor("cu_seqlens", call.cu_seqlens, ("N + 1",), (torch.int32, torch.int64), call.q.device)
    if call.cu_seqlens.shape[0] == 0:
        raise ContractError("cu_seqlens", "N + 1 bounds, at least one", "an empty tensor")
    if call.q.shape[0] != 1:
        raise ContractError("q", "B = 1 with cu_seqlens", f"B = {call.q.shape[0]}")


def _check_state(call: SequenceCall) -> None:
    state = call.initial_state
    if state is None:
        return
    _, _, _, HV, K, V = call.dims
    layout = call.options.layout
    if not isinstance(state, torch.Tensor):
        raise ContractError("initial_state", "a tensor or None", type(state).__name__)
    shape = (call.sequences, HV, *layout.inner_shape(K, V))
    swapped = (call.sequences, HV, *layout.inner_shape(K, V)[::-1])
    if tuple(state.shape) == swapped != shape:
        raise ContractError(
            "initial_state", f"shape {list(shape)} in layout {layout.value}", f"shape {list(swapped)}, the other layout"
        )
    check_tensor("initial_state", state, shape, FLOATS, call.q.device)


def check_sequence(call: SequenceCall, *, gate_per_channel: bool, values: bool) -> None:
    """Check a call of chunk or recurrent; with ``values`` also what the tensors hold (syncs on a GPU)."""
    _check_options(call)
    _check_tokens(call, gate_per_channel)
    _check_cu_seqlens(call)
    _check_state(call)
    if values:
        end = None if call.cu_seqlens is None else checked_bounds(call.cu_seqlens, call.q.shape[1])[-1]
        live = slice(None) if end is None else slice(0, end)
        _check_ranges(call, call.g[:, live], call.beta[:, live])


def checked_bounds(cu_seqlens: torch.Tensor, T: int) -> list[int]:
    """Return the values of cu_seqlens of T tokens, on the host (a sync on a GPU).

    Raises:
        ContractError: they do not start at 0, fall, or end behind T.
    """
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ContractError("cu_seqlens", "0 first", bounds[0])
    for n, (a, b) in enumerate(pairwise(bounds)):
        if b < a:
            raise ContractError("cu_seqlens", "non-decreasing values", f"{a} then {b} at position {n + 1}")
    if bounds[-1] > T:
        raise ContractError("cu_seqlens", f"a last value of at most T = {T}", bounds[-1])
    return bounds


def _check_ranges(call: Call, g: torch.Tensor, beta: torch.Tensor) -> None:
    """Check the gates and betas of live tokens."""
    if not call.options.gate_in_kernel and not bool((g <= 0).all()):
        raise ContractError("g", "log gates g <= 0", float(g.detach()[~(g <= 0)][0]))
    if call.options.safe_gate and not call.options.gate_in_kernel and not bool((g >= SAFE_GATE).all()):
        low = float(g.detach()[~(g >= SAFE_GATE)][0])
        raise ContractError("g", f"log gates of at least {SAFE_GATE:g}, as safe_gate promises", low)
    if not call.options.beta_sigmoid and not bool(((beta >= 0) & (beta <= 2)).all()):
        raise ContractError("beta", "values in [0, 2]", float(beta.detach()[~((beta >= 0) & (beta <= 2))][0]))
