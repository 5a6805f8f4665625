"""Kimi delta attention: chunked and recurrent over sequences, decode and prefill against a state pool.

Shape legend: B batch, T tokens, H query/key heads, HV value heads (a multiple of H; value head hv reads query/key
head hv // (HV // H)), K key size, V value size (both 1 to 256), N sequences, S slots.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.operators.arguments import Validate, allocator, looks_at_values
from deltaproof.operators.delta_rule import (
    check_indices,
    layout_of,
    refuse,
    run_decode,
    run_prefill,
    run_sequence,
    scale_of,
)
from deltaproof.ops.common.allocation import Init
from deltaproof.ops.common.calls import DecodeCall, DeltaRuleOptions, Drafts, PrefillCall, SequenceCall
from deltaproof.ops.common.checks import check_sequence, checked_bounds
from deltaproof.ops.kda.contract import OPERATOR


def _bias(dt_bias: torch.Tensor | None, g: torch.Tensor) -> torch.Tensor | None:
    """Return dt_bias as [HV, K] where it came as [HV * K]; anything else as it is, for the checks to judge."""
    if not isinstance(dt_bias, torch.Tensor) or not isinstance(g, torch.Tensor) or g.dim() != 4:
        return dt_bias
    return dt_bias.reshape(g.shape[2:]) if dt_bias.dim() == 1 and dt_bias.numel() == g.shape[2:].numel() else dt_bias


def _chunk_states(call: SequenceCall, cu_seqlens_cpu: torch.Tensor | None, values: bool) -> torch.Tensor:
    """Return memory for the state before each chunk of a call whose shapes were checked."""
    B, T, _, HV, K, V = call.dims
    chunk = call.options.chunk_size
    tensors = (call.q, call.k, call.v, call.g, call.beta, call.A_log, call.dt_bias, call.initial_state)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise ContractError(
            "return_intermediate_states", "torch.no_grad(): it is for inference", "a tensor with requires_grad=True"
        )
    count = -(-T // chunk)
    if call.cu_seqlens is not None:
        bounds = checked_bounds(call.cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu, T)
        if cu_seqlens_cpu is not None and values and bounds != call.cu_seqlens.tolist():
            raise ContractError("cu_seqlens_cpu", f"the values of cu_seqlens, {call.cu_seqlens.tolist()}", bounds)
        count = sum(-(-(b - a) // chunk) for a, b in pairwise(bounds))
    dtype = torch.float32 if call.initial_state is None else call.initial_state.dtype
    shape = (B, count, HV, *call.options.layout.inner_shape(K, V))
    return call.allocate(shape, dtype=dtype, device=call.q.device)


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    *,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    chunk_size: int = 64,
    transpose_state_layout: bool | None = None,
    state_layout: StateLayout | str | None = None,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None] | tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Run Kimi delta attention over sequences, a chunk of tokens at a time; differentiable.

    For each value head, from a state S [K, V]: ``S' = diag(exp(g_t)) S``, ``S = S' + k_t (x) beta_t (v_t - S'^T k_t)``,
    ``o_t = scale S^T q_t``. Source: Kimi Team, "Kimi Linear" (2025); the chunked form is derived in
    ``deltaproof/ops/kda/README.md``.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV, K], g <= 0; with ``use_gate_in_kernel`` the raw input of the gate.
        beta: write strengths [B, T, HV] in [0, 2]; with ``use_beta_sigmoid_in_kernel`` logits.
        scale: factor on the output; None means K ** -0.5.
        initial_state: [N, HV, K, V], or [N, HV, V, K] in layout v_first; never modified. Where K = V the layout
            cannot be seen from the shape and is the caller's word.
        output_final_state: return the final state too.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``, or with a lower bound L
            ``L * sigmoid(exp(A_log) * (g + dt_bias))``.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        safe_gate: the caller's promise that every log gate is at least -5 (with the gate in the kernel: a
            ``lower_bound`` in [-5, 0)). It may pick a faster kernel and never changes the function.
        lower_bound: L < 0, what no log gate is below; only with ``use_gate_in_kernel``.
        disable_recompute: accepted and without effect: what is kept for the backward is the backend's to choose.
        return_intermediate_states: return the state before each chunk too; inference only. With ``cu_seqlens`` their
            number is read on the host, from ``cu_seqlens_cpu`` where it is given (else a sync on a GPU).
        state_v_first: layout v_first; the other spelling is ``state_layout``.
        cu_seqlens: bounds [N + 1] of packed sequences, int32 or int64, first 0, non-decreasing, last <= T; B is 1.
            Rows past the last bound give o = 0 and zero gradients.
        cu_seqlens_cpu: the same on the CPU; not needed.
        cp_context: not supported yet.
        use_graph: not supported, for it is not needed: calls with ``cu_seqlens`` can be captured as they are where the
            backend promises it.
        max_num_seqs: not supported, as ``use_graph``.
        A_log: [HV], or None for a factor of 1; only with ``use_gate_in_kernel``.
        dt_bias: [HV * K], [HV, K] or None; only with ``use_gate_in_kernel``.
        chunk_size: 16, 32 or 64 tokens; changes rounding only.
        transpose_state_layout: deprecated spelling of ``state_v_first``.
        state_layout: "k_first" or "v_first".
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: a sequence's results do not depend on its neighbours, bitwise (clause I2).
        validate: "values" checks the tensors' contents too (a sync on a GPU), "shapes" does not; None means
            "values" on the CPU and "shapes" elsewhere.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        o [B, T, HV, V] in v's dtype, and the final state [N, HV, K, V] or [N, HV, V, K] in initial_state's dtype
        (float32 without one), or None. With ``return_intermediate_states`` also the states [B, M, HV, K, V] or
        [B, M, HV, V, K] before each chunk, in the final state's dtype: M chunks a sequence, or with ``cu_seqlens`` all
        chunks of all sequences one after another.

    Raises:
        ContractError: an argument breaks the contract; the message names it, what was expected and what came.
    """
    refuse(cp_context=cp_context, max_num_seqs=max_num_seqs)
    if use_graph is not False:
        raise ContractError("use_graph", "False: a pack needs no mode of its own here", use_graph)
    for name, flag in (
        ("disable_recompute", disable_recompute),
        ("return_intermediate_states", return_intermediate_states),
    ):
        if not isinstance(flag, bool):
            raise ContractError(name, "True or False", repr(flag))
    check_indices(cu_seqlens, cu_seqlens_cpu, None)
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        lower_bound=lower_bound,
        safe_gate=safe_gate,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout, state_v_first, transpose_state_layout),
        chunk_size=chunk_size,
        batch_invariant=batch_invariant,
    )
    call = SequenceCall(
        q, k, v, g, beta, options, A_log, _bias(dt_bias, g), initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, allocate=allocator(out_init),
    )  # fmt: skip
    if not return_intermediate_states:
        return run_sequence(OPERATOR, "chunk", call, backend, validate)
    check_sequence(call, gate_per_channel=True, values=False)
    call = call.with_(chunk_states=_chunk_states(call, cu_seqlens_cpu, looks_at_values(validate, q)))
    o, final = run_sequence(OPERATOR, "chunk", call, backend, validate)
    assert call.chunk_states is not None
    return o, final, call.chunk_states


def fused_recurrent_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
    state_layout: StateLayout | str | None = None,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run Kimi delta attention over sequences, token by token; differentiable.

    The function, the tensors and the errors are those of ``chunk_kda``; the two agree within the bound of clause N2.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV, K], g <= 0; with ``use_gate_in_kernel`` the raw input of the gate.
        beta: write strengths [B, T, HV] in [0, 2]; with ``use_beta_sigmoid_in_kernel`` logits.
        A_log: [HV], or None for a factor of 1; only with ``use_gate_in_kernel``.
        dt_bias: [HV * K], [HV, K] or None; only with ``use_gate_in_kernel``.
        scale: factor on the output; None means K ** -0.5.
        initial_state: [N, HV, K, V], or [N, HV, V, K] in layout v_first; never modified.
        output_final_state: return the final state too.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``, or with a lower bound L
            ``L * sigmoid(exp(A_log) * (g + dt_bias))``.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        lower_bound: L < 0, what no log gate is below; only with ``use_gate_in_kernel``.
        state_v_first: layout v_first; the other spelling is ``state_layout``.
        cu_seqlens: bounds [N + 1] of packed sequences; B is 1.
        transpose_state_layout: deprecated spelling of ``state_v_first``.
        state_layout: "k_first" or "v_first".
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: refuse a backend that does not promise clause I2.
        validate: "values" checks the tensors' contents too (a sync on a GPU), "shapes" does not; None means
            "values" on the CPU and "shapes" elsewhere.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        o [B, T, HV, V] in v's dtype, and the final state in the layout asked for, or None.

    Raises:
        ContractError: an argument breaks the contract; the message names it, what was expected and what came.
    """
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        lower_bound=lower_bound,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout, state_v_first, transpose_state_layout),
        batch_invariant=batch_invariant,
    )
    call = SequenceCall(
        q, k, v, g, beta, options, A_log, _bias(dt_bias, g), initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, allocate=allocator(out_init),
    )  # fmt: skip
    return run_sequence(OPERATOR, "recurrent", call, backend, validate)


def kda_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    pool: torch.Tensor,
    read_index: torch.Tensor,
    write_index: torch.Tensor | None = None,
    num_tokens: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    drafts: Drafts | None = None,
    draft_half: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None,
    state_layout: StateLayout | str | None = None,
    out: torch.Tensor | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run 1 to 16 tokens a row against a pool of states, updating the pool in place; inference only.

    Indices, drafts and padding mean what they mean in ``gated_delta_rule_decode``.

    Args:
        q: queries [N, T, H, K], T from 1 to 16, float32, bfloat16 or float16.
        k: keys [N, T, H, K].
        v: values [N, T, HV, V].
        g: log gates [N, T, HV, K], g <= 0; with ``use_gate_in_kernel`` the raw input of the gate.
        beta: write strengths [N, T, HV] in [0, 2]; with ``use_beta_sigmoid_in_kernel`` logits.
        pool: states [S, HV, K, V] (k_first) or [S, HV, V, K] (v_first), float32, bfloat16 or float16, any slot and
            head stride that is a multiple of 16 bytes, inner matrix contiguous.
        read_index: slot each row starts from [N], int32 or int64; outside [0, S) the row is padding.
        write_index: None writes back in place; [N] the slot that keeps the row's last state; [N, T] the slot that
            keeps the state after each token. Outside [0, S) a state is not kept. No slot may be written twice, nor
            be read by another row.
        num_tokens: tokens of each row that count [N], 0 to T; the others give o = 0 and do nothing.
        has_initial_state: bool [N]; False starts the row from zero, whatever the slot holds.
        drafts: memory of the tokens that may be rejected: k [S, 2, D, H, K], v [S, 2, D, HV, V], g [S, 2, D, HV, K],
            beta [S, 2, D, HV], each of its own argument's dtype, D at least T, any slot stride that is a multiple of
            16 bytes.
        draft_half: which half of its slot's drafts each row replays [N], 0 or 1; anything else replays none.
        accepted: how many tokens of its last drafts each slot keeps [S], 0 to D.
        state_layout: "k_first" (None) or "v_first".
        out: [N, T, HV, V] in v's dtype, contiguous, filled and returned; None allocates it.
        scale: factor on the output; None means K ** -0.5.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``, or with a lower bound L
            ``L * sigmoid(exp(A_log) * (g + dt_bias))``.
        A_log: [HV], or None for a factor of 1; only with ``use_gate_in_kernel``.
        dt_bias: [HV * K], [HV, K] or None; only with ``use_gate_in_kernel``.
        lower_bound: L < 0, what no log gate is below; only with ``use_gate_in_kernel``.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: refuse a backend that does not promise clause I2.
        validate: "values" checks the tensors' contents too (a sync on a GPU), "shapes" does not; None means
            "values" on the CPU and "shapes" elsewhere.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        o [N, T, HV, V] in v's dtype.

    Raises:
        ContractError: an argument breaks the contract; the pool is then as it was.
    """
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        lower_bound=lower_bound,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout),
        batch_invariant=batch_invariant,
    )
    call = DecodeCall(
        q, k, v, g, beta, options, A_log, _bias(dt_bias, g), pool=pool, read_index=read_index,
        write_index=write_index, num_tokens=num_tokens, has_initial_state=has_initial_state, out=out,
        drafts=drafts, draft_half=draft_half, accepted=accepted, allocate=allocator(out_init),
    )  # fmt: skip
    return run_decode(OPERATOR, call, backend, validate)


def kda_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    pool: torch.Tensor,
    read_index: torch.Tensor,
    write_index: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    checkpoint_every: int | None = None,
    checkpoint_index: torch.Tensor | None = None,
    state_layout: StateLayout | str | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    chunk_size: int = 64,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run whole sequences against a pool of states, updating the pool in place; inference only.

    Slot indices mean what they mean in ``kda_decode``.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV, K], g <= 0; with ``use_gate_in_kernel`` the raw input of the gate.
        beta: write strengths [B, T, HV] in [0, 2]; with ``use_beta_sigmoid_in_kernel`` logits.
        pool: states [S, HV, K, V] (k_first) or [S, HV, V, K] (v_first), as in ``kda_decode``.
        read_index: slot each sequence starts from [N].
        write_index: slot that keeps each sequence's final state [N]; None writes back in place.
        has_initial_state: bool [N]; False starts the sequence from zero.
        cu_seqlens: bounds [N + 1] of packed sequences, B = 1; None means N = B sequences of T tokens.
        checkpoint_every: keep a state every so many tokens; a positive multiple of ``chunk_size``.
        checkpoint_index: [N, M]; entry j names the slot that keeps the state after (j + 1) * checkpoint_every
            tokens, where the sequence is that long. Outside [0, S) it is not kept.
        state_layout: "k_first" (None) or "v_first".
        scale: factor on the output; None means K ** -0.5.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``, or with a lower bound L
            ``L * sigmoid(exp(A_log) * (g + dt_bias))``.
        A_log: [HV], or None for a factor of 1; only with ``use_gate_in_kernel``.
        dt_bias: [HV * K], [HV, K] or None; only with ``use_gate_in_kernel``.
        safe_gate: the caller's promise that every log gate is at least -5 (with the gate in the kernel: a
            ``lower_bound`` in [-5, 0)). It may pick a faster kernel and never changes the function.
        lower_bound: L < 0, what no log gate is below; only with ``use_gate_in_kernel``.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        chunk_size: 16, 32 or 64 tokens.
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: a sequence's results do not depend on its neighbours, bitwise (clause I2).
        validate: "values" checks the tensors' contents too (a sync on a GPU), "shapes" does not; None means
            "values" on the CPU and "shapes" elsewhere.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        o [B, T, HV, V] in v's dtype.

    Raises:
        ContractError: an argument breaks the contract; the pool is then as it was.
    """
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        lower_bound=lower_bound,
        safe_gate=safe_gate,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout),
        chunk_size=chunk_size,
        batch_invariant=batch_invariant,
    )
    call = PrefillCall(
        q, k, v, g, beta, options, A_log, _bias(dt_bias, g), pool=pool, read_index=read_index,
        write_index=write_index, has_initial_state=has_initial_state, cu_seqlens=cu_seqlens,
        checkpoint_every=checkpoint_every, checkpoint_index=checkpoint_index, allocate=allocator(out_init),
    )  # fmt: skip
    return run_prefill(OPERATOR, call, backend, validate)
