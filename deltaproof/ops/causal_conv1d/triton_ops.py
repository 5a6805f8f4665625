"""The convolution's Triton forms as torch custom operators, which ``torch.compile`` sees through.

They take a call as flat arguments and write into ``pool`` and ``out``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaproof.contracts.conventions import ConvLayout
from deltaproof.ops.causal_conv1d import triton_conv
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvOptions, ConvPrefillCall

_ROWS = "Tensor read_index, Tensor? write_index, Tensor? has_initial_state"
_SHARED = f"Tensor(a!) pool, Tensor(b!) out, Tensor x, Tensor weight, Tensor? bias, {_ROWS}"


def _flat(call: ConvCall, out: Tensor, *more: Tensor | None) -> tuple[Any, ...]:
    options = (call.options.silu, call.options.layout is ConvLayout.TIME_FIRST)
    rows = (call.read_index, call.write_index, call.has_initial_state)
    return call.pool, out, call.x, call.weight, call.bias, *rows, *more, *options


def _parts(arguments: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, Any]:
    pool, _, x, weight, bias, read, write, fresh, *more, silu, time_first = arguments
    layout = ConvLayout.TIME_FIRST if time_first else ConvLayout.CHANNELS_FIRST
    found = {
        "x": x, "weight": weight, "bias": bias, "options": ConvOptions(silu, layout), "pool": pool, "read_index": read,
        "write_index": write, "has_initial_state": fresh,
    }  # fmt: skip
    return found | dict(zip(names, more, strict=True))


_DECODE = ("num_tokens", "drafts", "draft_half", "accepted")
_PREFILL = ("cu_seqlens",)


def _decode(*arguments: Any) -> None:
    triton_conv.decode(ConvDecodeCall(**_parts(arguments, _DECODE)), arguments[1])


def _prefill(*arguments: Any) -> None:
    triton_conv.prefill(ConvPrefillCall(**_parts(arguments, _PREFILL)), arguments[1])


def _define(name: str, more: tuple[str, ...], kernel: Any) -> Any:
    """Register one operator and return it."""
    full = f"deltaproof::causal_conv1d_{name}"
    named = ", ".join(f"Tensor{'(c!)' if part == 'drafts' else ''}? {part}" for part in more)
    torch.library.define(full, f"({_SHARED}, {named}, bool silu, bool time_first) -> ()")
    # after a break in its graph Dynamo would look into this frame too, and compile the launches in it
    torch.library.impl(full, "default", torch._disable_dynamo(kernel))
    torch.library.register_fake(full, lambda *arguments: None)
    return getattr(torch.ops.deltaproof, f"causal_conv1d_{name}").default


decode_op = _define("decode", _DECODE, _decode)
prefill_op = _define("prefill", _PREFILL, _prefill)


def decode(call: ConvDecodeCall) -> Tensor:
    """Run the form ``decode``."""
    out = call.out
    if out is None:
        out = call.allocate(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    if torch.compiler.is_compiling():
        decode_op(*_flat(call, out, *(getattr(call, name) for name in _DECODE)))
    else:
        # an operator's dispatch costs more than the launch
        triton_conv.decode(call, out)
    return out


def prefill(call: ConvPrefillCall) -> Tensor:
    """Run the form ``prefill``."""
    out = call.allocate(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    if torch.compiler.is_compiling():
        prefill_op(*_flat(call, out, call.cu_seqlens))
    else:
        triton_conv.prefill(call, out)
    return out
