"""Drawing a case's call, each tensor inside memory of its own with red zones around it."""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvOptions, ConvPrefillCall
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.draft_inputs import Placement, place_drafts
from deltaproof.verify.inputs import RED_ZONE, Fill, dtype_of, guarded, red_zone_, whole_memory


def build(case: ConvCase, seed: int, device: str = "cpu", *, fill: Fill = "nan", turn: int = 0) -> ConvCall:
    """Return the call of a case; the same case, seed and turn give the same values in new memory."""
    generator = torch.Generator().manual_seed(case.seed(seed + 7919 * turn))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def place(x: torch.Tensor, dtype: str) -> torch.Tensor:
        return guarded(x.to(dtype_of(dtype)), fill, device)

    def index(values: tuple[Any, ...] | None, dtype: torch.dtype) -> torch.Tensor | None:
        return None if values is None else guarded(torch.tensor(values, dtype=dtype), fill, device)

    N, ints = case.rows, dtype_of(case.index_dtype)
    lengths = case.seqlens or ()
    shape = (case.B, case.T) if case.seqlens is None else (1, sum(lengths) + case.tail)
    x = normal(*shape, case.C)
    reads = case.read if case.read is not None else tuple(range(1, N + 1))
    if not case.stray_tokens:
        _dead(case, x, reads, fill)
    layout = ConvLayout(case.layout)
    windows = normal(case.slots, *layout.inner_shape(case.C, case.W))
    windows[list(case.nan_slots)] = float("nan")
    parts: dict[str, Any] = {
        "x": place(x, case.dtype),
        "weight": place(normal(case.C, case.W) * case.W**-0.5, case.parameter_dtype),
        "bias": place(normal(case.C) * 0.3, case.parameter_dtype) if case.bias else None,
        "options": ConvOptions(case.silu, layout),
        "pool": _pool(windows, case, fill, device),
        "read_index": index(reads, ints),
        "write_index": index(case.write, ints),
        "has_initial_state": None if case.fresh is None else index(tuple(not x for x in case.fresh), torch.bool),
    }
    if case.form == "decode":
        call = ConvDecodeCall(**parts, num_tokens=index(case.num_tokens, torch.int32))
        if not case.drafts:
            return call
        tokens = {"": normal(N, case.drafts, case.C).to(call.x.dtype)}
        lying = Placement(case.slots, case.halves, case.accepted, case.slot_padding > 0)
        drafts, half, accepted = place_drafts(tokens, call.writes.tolist(), lying, fill, call.device)
        drafted: ConvCall = call.with_(drafts=drafts[""], draft_half=half, accepted=accepted)
        return drafted
    bounds = None
    if case.seqlens is not None:
        bounds = guarded(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), fill, device)
    return ConvPrefillCall(**parts, cu_seqlens=bounds)


def renew_(call: ConvCall, case: ConvCase, seed: int, turn: int) -> None:
    """Write the values of another turn into a call's memory, as a server reuses its buffers."""
    fresh = build(case, seed, call.device.type, turn=turn)
    for name, x in vars(call).items():
        if isinstance(x, torch.Tensor):
            whole_memory(x).copy_(whole_memory(getattr(fresh, name)))


def _dead(case: ConvCase, x: torch.Tensor, reads: tuple[int, ...], fill: Fill) -> None:
    """Let tokens of nobody hold what the red zones hold."""
    start = 0
    for n, slot in enumerate(reads):
        padding = not 0 <= slot < case.slots
        if case.seqlens is not None:
            if padding:
                red_zone_(x[0, start : start + case.seqlens[n]], fill)
            start += case.seqlens[n]
        elif padding:
            red_zone_(x[n], fill)
        elif case.num_tokens is not None:
            red_zone_(x[n, max(case.num_tokens[n], 0) :], fill)
    if case.seqlens is not None:
        red_zone_(x[0, start:], fill)


def _pool(windows: torch.Tensor, case: ConvCase, fill: Fill, device: str) -> torch.Tensor:
    """Return a pool with the case's gaps between slots; gaps and the memory around it hold the red zone's filling."""
    S, rows, columns = windows.shape
    dtype = dtype_of(case.state_dtype)
    unit = 16 // dtype.itemsize
    slot = -(-(rows * columns + case.slot_padding) // unit) * unit
    guard = max(slot, -(-RED_ZONE // unit) * unit)
    memory = red_zone_(torch.empty(slot * S + 2 * guard, dtype=dtype, device=device), fill)
    return memory.as_strided((S, rows, columns), (slot, columns, 1), guard).copy_(windows)
