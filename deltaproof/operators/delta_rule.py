"""What the public functions of every delta rule share: options under several names, and making a checked call."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.backends.registry import select
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.contracts.operator import Operator
from deltaproof.operators.arguments import looks_at_values
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.common.checks import check_sequence, check_tensor
from deltaproof.ops.common.pool_checks import check_decode, check_prefill


def layout_of(
    state_layout: StateLayout | str | None, state_v_first: bool = False, transpose_state_layout: bool | None = None
) -> StateLayout:
    """Resolve the three spellings of the state layout; any two at once are an error."""
    if transpose_state_layout is not None:
        if state_v_first or state_layout is not None:
            other = "state_v_first" if state_v_first else "state_layout"
            raise ContractError("transpose_state_layout", "one spelling of the state layout", f"{other} beside it")
        if not isinstance(transpose_state_layout, bool):
            raise ContractError("transpose_state_layout", "True or False", transpose_state_layout)
        warnings.warn("transpose_state_layout is deprecated: use state_v_first", DeprecationWarning, stacklevel=3)
        state_v_first = transpose_state_layout
    if not isinstance(state_v_first, bool):
        raise ContractError("state_v_first", "True or False", state_v_first)
    if state_layout is None:
        return StateLayout.V_FIRST if state_v_first else StateLayout.K_FIRST
    if state_v_first:
        raise ContractError("state_layout", "one spelling of the state layout", "state_v_first beside it")
    try:
        return StateLayout(state_layout)
    except ValueError:
        raise ContractError("state_layout", "'k_first' or 'v_first'", repr(state_layout)) from None


def refuse(**options: object) -> None:
    """Raise for options that other libraries have and this operator does not support yet."""
    for name, value in options.items():
        if value is not None:
            raise ContractError(name, "None: it is not supported yet", type(value).__name__)


def scale_of(scale: float | None, q: torch.Tensor) -> float:
    """Return the factor on the output, K ** -0.5 where the caller gave none; 1 where q is none to ask."""
    if scale is not None:
        return scale
    known = isinstance(q, torch.Tensor) and q.dim() > 0 and q.shape[-1] > 0
    return float(q.shape[-1]) ** -0.5 if known else 1.0


def check_indices(
    cu_seqlens: torch.Tensor | None, cu_seqlens_cpu: torch.Tensor | None, chunk_indices: torch.Tensor | None
) -> None:
    """Check the two derived forms of cu_seqlens, which our backends derive themselves."""
    for name, x in (("cu_seqlens_cpu", cu_seqlens_cpu), ("chunk_indices", chunk_indices)):
        if x is not None and cu_seqlens is None:
            raise ContractError(name, "cu_seqlens beside it", "cu_seqlens=None")
    ints = (torch.int32, torch.int64)
    if cu_seqlens is not None:
        check_tensor("cu_seqlens", cu_seqlens, ("N + 1",), ints)
    if cu_seqlens_cpu is not None and cu_seqlens is not None:
        check_tensor("cu_seqlens_cpu", cu_seqlens_cpu, tuple(cu_seqlens.shape), ints, torch.device("cpu"))
    if chunk_indices is not None:
        check_tensor("chunk_indices", chunk_indices, ("chunks", 2), ints)


def run_sequence(
    operator: Operator, form: str, call: SequenceCall, backend: str | Backend | None, validate: str | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Check a call of chunk or recurrent of an operator, and make it."""
    check_sequence(call, gate_per_channel=operator.gate_per_channel, values=looks_at_values(validate, call.q))
    result: tuple[torch.Tensor, torch.Tensor | None] = getattr(select(operator.name, form, call, backend), form)(call)
    return result


def run_decode(
    operator: Operator, call: DecodeCall, backend: str | Backend | None, validate: str | None
) -> torch.Tensor:
    """Check a call of decode of an operator, and make it."""
    check_decode(call, gate_per_channel=operator.gate_per_channel, values=looks_at_values(validate, call.q))
    chosen: Any = select(operator.name, "decode", call, backend)
    o: torch.Tensor = chosen.decode(call)
    return o


def run_prefill(
    operator: Operator, call: PrefillCall, backend: str | Backend | None, validate: str | None
) -> torch.Tensor:
    """Check a call of prefill of an operator, and make it."""
    check_prefill(call, gate_per_channel=operator.gate_per_channel, values=looks_at_values(validate, call.q))
    chosen: Any = select(operator.name, "prefill", call, backend)
    o: torch.Tensor = chosen.prefill(call)
    return o
