"""The causal convolution of a hybrid model's inputs, against a pool of windows, updated in place; inference only.

Each channel c of token t gives

    y[t, c] = f(bias[c] + sum over j of weight[c, j] * x[t - (W - 1) + j, c]),   j = 0 ... W - 1

where inputs before a row's first token come from its window, the last W - 1 inputs of what came before. f is silu or
nothing. It is the depthwise convolution of Mamba (Gu and Dao, 2023), as Dao-AILab's causal-conv1d has it.

Shape legend: N rows or sequences, B batch, T tokens, C channels, W width in tokens (2 to 16), S slots.
"""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.backends.registry import select
from deltaproof.contracts.conventions import ConvLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.operators.arguments import Validate, allocator, looks_at_values
from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvOptions, ConvPrefillCall
from deltaproof.ops.causal_conv1d.checks import check
from deltaproof.ops.common.allocation import Init

NAME = "causal_conv1d"


def _options(activation: str | None, conv_layout: ConvLayout | str | None) -> ConvOptions:
    if activation not in (None, "silu"):
        raise ContractError("activation", "None or 'silu'", repr(activation))
    if conv_layout is None:
        return ConvOptions(activation == "silu")
    try:
        return ConvOptions(activation == "silu", ConvLayout(conv_layout))
    except ValueError:
        raise ContractError("conv_layout", "'channels_first' or 'time_first'", repr(conv_layout)) from None


def _run(form: str, call: ConvCall, backend: str | Backend | None, validate: str | None) -> torch.Tensor:
    check(call, values=looks_at_values(validate, call.x))
    chosen: Any = select(NAME, form, call, backend)
    y: torch.Tensor = getattr(chosen, form)(call)
    return y


def causal_conv1d_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    pool: torch.Tensor,
    read_index: torch.Tensor,
    write_index: torch.Tensor | None = None,
    num_tokens: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    drafts: torch.Tensor | None = None,
    draft_half: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None,
    activation: str | None = None,
    conv_layout: ConvLayout | str | None = None,
    out: torch.Tensor | None = None,
    backend: str | Backend | None = None,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run 1 to 16 tokens a row against a pool of windows.

    Slot indices mean what they mean in ``gated_delta_rule_decode``, so one ``StepPlan`` serves both.

    Args:
        x: inputs [N, T, C], T from 1 to 16, float32, bfloat16 or float16.
        weight: [C, W], the last column meets the present token; any of these dtypes.
        bias: [C] or None.
        pool: windows [S, C, W - 1] (channels_first) or [S, W - 1, C] (time_first) of any of these dtypes, oldest
            input first, any slot stride that is a multiple of 16 bytes, each window contiguous.
        read_index: slot each row starts from [N], int32 or int64; outside [0, S) the row is padding and gives 0.
        write_index: slot that keeps each row's window [N]; None writes back in place; outside [0, S) keeps none.
        num_tokens: tokens of each row that count [N], 0 to T; the others give 0.
        has_initial_state: bool [N]; False starts the row from zeros, whatever the slot holds.
        drafts: inputs of tokens that may be rejected [S, 2, D, C] in x's dtype, D at least T; the step is then a
            speculative one, as in ``gated_delta_rule_decode``.
        draft_half: which half of its slot's drafts each row takes in [N], 0 or 1; anything else takes in none.
        accepted: how many tokens of its last drafts each slot keeps [S], 0 to D.
        activation: None or "silu".
        conv_layout: "channels_first" (None) or "time_first".
        out: [N, T, C] in x's dtype, contiguous, filled and returned; None allocates it.
        backend: a backend's name or object; None takes the first that can make the call.
        validate: "values", "shapes" or None.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        y [N, T, C] in x's dtype; sums are in float32.

    Raises:
        ContractError: an argument breaks the contract; the pool is then as it was.
    """
    call = ConvDecodeCall(
        x=x, weight=weight, bias=bias, options=_options(activation, conv_layout), pool=pool, read_index=read_index,
        write_index=write_index, has_initial_state=has_initial_state, num_tokens=num_tokens, out=out,
        drafts=drafts, draft_half=draft_half, accepted=accepted, allocate=allocator(out_init),
    )  # fmt: skip
    return _run("decode", call, backend, validate)


def causal_conv1d_prefill(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    pool: torch.Tensor,
    read_index: torch.Tensor,
    write_index: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    activation: str | None = None,
    conv_layout: ConvLayout | str | None = None,
    backend: str | Backend | None = None,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run whole sequences, or their next parts, against a pool of windows.

    Args:
        x: inputs [B, T, C].
        weight: [C, W]; bias [C] or None, as in ``causal_conv1d_update``.
        bias: see ``weight``.
        pool: windows, as in ``causal_conv1d_update``.
        read_index: slot each sequence starts from [N].
        write_index: slot that keeps the last W - 1 inputs of each sequence [N]; None writes back in place.
        has_initial_state: bool [N]; False starts the sequence from zeros.
        cu_seqlens: bounds [N + 1] of packed sequences, B = 1; None means N = B sequences of T tokens.
        activation: None or "silu".
        conv_layout: "channels_first" (None) or "time_first".
        backend: a backend's name or object; None takes the first that can make the call.
        validate: "values", "shapes" or None.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        y [B, T, C] in x's dtype; tokens behind the last sequence, and those of padding, give 0.

    Raises:
        ContractError: an argument breaks the contract; the pool is then as it was.
    """
    call = ConvPrefillCall(
        x=x, weight=weight, bias=bias, options=_options(activation, conv_layout), pool=pool, read_index=read_index,
        write_index=write_index, has_initial_state=has_initial_state, cu_seqlens=cu_seqlens,
        allocate=allocator(out_init),
    )  # fmt: skip
    return _run("prefill", call, backend, validate)
