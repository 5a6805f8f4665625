"""The gated delta rule: chunked and recurrent over sequences, decode and prefill against a state pool.

Shape legend: B batch, T tokens, H query/key heads, HV value heads (a multiple of H; value head hv reads query/key
head hv // (HV // H)), K key size, V value size (both 1 to 256), N sequences, S slots.
"""

from __future__ import annotations

from typing import Any

import torch

from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import StateLayout
from deltaproof.contracts.errors import ContractError
from deltaproof.operators.arguments import Validate, allocator
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
from deltaproof.ops.gated_delta_rule.contract import OPERATOR


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    cp_context: Any = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    chunk_size: int = 64,
    transpose_state_layout: bool | None = None,
    state_layout: StateLayout | str | None = None,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the gated delta rule over sequences, a chunk of tokens at a time; differentiable.

    For each value head, from a state S [K, V]: ``S' = exp(g_t) S``, ``S = S' + k_t (x) beta_t (v_t - S'^T k_t)``,
    ``o_t = scale S^T q_t``. Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024); the chunked form
    is derived in ``deltaproof/ops/gated_delta_rule/README.md``.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV], g <= 0; with ``use_gate_in_kernel`` the raw input of the gate.
        beta: write strengths [B, T, HV] in [0, 2]; with ``use_beta_sigmoid_in_kernel`` logits.
        scale: factor on the output; None means K ** -0.5.
        initial_state: [N, HV, K, V], or [N, HV, V, K] in layout v_first; never modified. Where K = V the layout
            cannot be seen from the shape and is the caller's word.
        output_final_state: return the final state too.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        state_v_first: layout v_first; the other spelling is ``state_layout``.
        cu_seqlens: bounds [N + 1] of packed sequences, int32 or int64, first 0, non-decreasing, last <= T; B is 1.
            Rows past the last bound give o = 0 and zero gradients.
        cu_seqlens_cpu: the same on the CPU; checked for its shape, and not needed.
        chunk_indices: precomputed chunk indices [chunks, 2]; checked for their shape, and not needed.
        cp_context: not supported yet.
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``.
        A_log: [HV]; needed with ``use_gate_in_kernel``.
        dt_bias: [HV] or None.
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
        (float32 without one), or None.

    Raises:
        ContractError: an argument breaks the contract; the message names it, what was expected and what came.
    """
    refuse(cp_context=cp_context)
    check_indices(cu_seqlens, cu_seqlens_cpu, chunk_indices)
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout, state_v_first, transpose_state_layout),
        chunk_size=chunk_size,
        batch_invariant=batch_invariant,
    )
    call = SequenceCall(
        q, k, v, g, beta, options, A_log, dt_bias, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, allocate=allocator(out_init),
    )  # fmt: skip
    return run_sequence(OPERATOR, "chunk", call, backend, validate)


def fused_recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    gk: torch.Tensor | None = None,
    gv: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
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
    """Run the gated delta rule over sequences, token by token; differentiable.

    The function, the tensors and the errors are those of ``chunk_gated_delta_rule``; the two agree within the
    bound of clause N2.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV] or None for no gate (g = 0); raw with ``use_gate_in_kernel``, and then needed.
        gk: a gate per key channel; not supported yet.
        gv: a gate per value channel; not supported yet.
        beta: write strengths [B, T, HV] in [0, 2], or None for 1 at every token; logits with
            ``use_beta_sigmoid_in_kernel``, and then needed.
        scale: factor on the output; None means K ** -0.5.
        initial_state: [N, HV, K, V], or [N, HV, V, K] in layout v_first; never modified.
        output_final_state: return the final state too.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``.
        A_log: [HV]; needed with ``use_gate_in_kernel``.
        dt_bias: [HV] or None.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        state_v_first: layout v_first; the other spelling is ``state_layout``.
        cu_seqlens: bounds [N + 1] of packed sequences; B is 1.
        transpose_state_layout: deprecated spelling of ``state_v_first``.
        state_layout: "k_first" or "v_first".
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: refuse a backend that does not promise clause I2.
        validate: "values", "shapes" or None.
        out_init: content of output memory before the kernels run: "empty", "zeros" or "poison".

    Returns:
        o [B, T, HV, V] in v's dtype, and the final state in the layout asked for, or None.

    Raises:
        ContractError: an argument breaks the contract; the message names it, what was expected and what came.
    """
    refuse(gk=gk, gv=gv)
    for name, x, option in (("g", g, use_gate_in_kernel), ("beta", beta, use_beta_sigmoid_in_kernel)):
        if x is None and option:
            raise ContractError(name, "a tensor [B, T, HV], the raw input of the kernel's own step", "None")
    options = DeltaRuleOptions(
        scale=scale_of(scale, q),
        normalize_qk=use_qk_l2norm_in_kernel,
        gate_in_kernel=use_gate_in_kernel,
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout, state_v_first, transpose_state_layout),
        batch_invariant=batch_invariant,
    )
    if isinstance(v, torch.Tensor) and v.dim() == 4:
        g = v.new_zeros(v.shape[:3], dtype=torch.float32) if g is None else g
        beta = v.new_ones(v.shape[:3], dtype=torch.float32) if beta is None else beta
    call = SequenceCall(
        q, k, v, g, beta, options, A_log, dt_bias, initial_state=initial_state,  # type: ignore[arg-type]
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, allocate=allocator(out_init),
    )  # fmt: skip
    return run_sequence(OPERATOR, "recurrent", call, backend, validate)


def gated_delta_rule_decode(
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
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run 1 to 16 tokens a row against a pool of states, updating the pool in place; inference only.

    A row whose ``read_index`` is outside [0, S) is padding: nothing is read or written and its output is 0. A row
    whose ``write_index`` is outside computes its output and keeps no state. Only named slots change.

    With ``drafts`` it is a speculative step: a row's tokens may be rejected later, so they leave no state. The step
    first advances the state by what was accepted of the row's last drafts, stores it, and computes the outputs of its
    tokens from there; what they were goes to the other half of the slot's drafts, for the step that learns how many
    were accepted (clause P7).

    Args:
        q: queries [N, T, H, K], T from 1 to 16, float32, bfloat16 or float16.
        k: keys [N, T, H, K].
        v: values [N, T, HV, V].
        g: log gates [N, T, HV]; raw with ``use_gate_in_kernel``.
        beta: write strengths [N, T, HV]; logits with ``use_beta_sigmoid_in_kernel``.
        pool: states [S, HV, K, V] (k_first) or [S, HV, V, K] (v_first), float32, bfloat16 or float16, any slot and
            head stride that is a multiple of 16 bytes, inner matrix contiguous.
        read_index: slot each row starts from [N], int32 or int64.
        write_index: None writes back in place; [N] the slot that keeps the row's last state; [N, T] the slot that
            keeps the state after each token. Outside [0, S) a state is not kept. No slot may be written twice, nor
            be read by another row.
        num_tokens: tokens of each row that count [N], 0 to T; the others give o = 0 and do nothing.
        has_initial_state: bool [N]; False starts the row from zero, whatever the slot holds.
        drafts: memory of the tokens that may be rejected: k [S, 2, D, H, K], v [S, 2, D, HV, V], g and beta
            [S, 2, D, HV], each of its own argument's dtype, D at least T, any slot stride that is a multiple of 16
            bytes. A row's drafts lie at its write slot; ``write_index`` is then None or [N].
        draft_half: which half of its slot's drafts each row replays [N], 0 or 1; anything else replays none. The row's
            tokens go to the other half, to half 0 where none is replayed.
        accepted: how many tokens of its last drafts each slot keeps [S], 0 to D.
        state_layout: "k_first" (None) or "v_first".
        out: [N, T, HV, V] in v's dtype, contiguous, filled and returned; None allocates it.
        scale: factor on the output; None means K ** -0.5.
        use_qk_l2norm_in_kernel: divide q and k by sqrt(sum(x ** 2) + 1e-6).
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``.
        A_log: [HV]; needed with ``use_gate_in_kernel``.
        dt_bias: [HV] or None.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: refuse a backend that does not promise clause I2.
        validate: "values", "shapes" or None.
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
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout),
        batch_invariant=batch_invariant,
    )
    call = DecodeCall(
        q, k, v, g, beta, options, A_log, dt_bias, pool=pool, read_index=read_index,
        write_index=write_index, num_tokens=num_tokens, has_initial_state=has_initial_state, out=out,
        drafts=drafts, draft_half=draft_half, accepted=accepted, allocate=allocator(out_init),
    )  # fmt: skip
    return run_decode(OPERATOR, call, backend, validate)


def gated_delta_rule_prefill(
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
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    chunk_size: int = 64,
    backend: str | Backend | None = None,
    batch_invariant: bool = False,
    validate: Validate | None = None,
    out_init: Init | None = None,
) -> torch.Tensor:
    """Run whole sequences against a pool of states, updating the pool in place; inference only.

    Slot indices mean what they mean in ``gated_delta_rule_decode``.

    Args:
        q: queries [B, T, H, K], float32, bfloat16 or float16.
        k: keys [B, T, H, K].
        v: values [B, T, HV, V].
        g: log gates [B, T, HV]; raw with ``use_gate_in_kernel``.
        beta: write strengths [B, T, HV]; logits with ``use_beta_sigmoid_in_kernel``.
        pool: states [S, HV, K, V] (k_first) or [S, HV, V, K] (v_first), as in ``gated_delta_rule_decode``.
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
        use_gate_in_kernel: the log gate is ``-exp(A_log) * softplus(g + dt_bias)``.
        A_log: [HV]; needed with ``use_gate_in_kernel``.
        dt_bias: [HV] or None.
        use_beta_sigmoid_in_kernel: apply the sigmoid to beta.
        allow_neg_eigval: use 2 * sigmoid(beta); needs ``use_beta_sigmoid_in_kernel``.
        chunk_size: 16, 32 or 64 tokens.
        backend: a backend's name or object; None takes the first that can make the call.
        batch_invariant: a sequence's results do not depend on its neighbours, bitwise (clause I2).
        validate: "values", "shapes" or None.
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
        beta_sigmoid=use_beta_sigmoid_in_kernel,
        neg_eigval=allow_neg_eigval,
        layout=layout_of(state_layout),
        chunk_size=chunk_size,
        batch_invariant=batch_invariant,
    )
    call = PrefillCall(
        q, k, v, g, beta, options, A_log, dt_bias, pool=pool, read_index=read_index,
        write_index=write_index, has_initial_state=has_initial_state, cu_seqlens=cu_seqlens,
        checkpoint_every=checkpoint_every, checkpoint_index=checkpoint_index, allocate=allocator(out_init),
    )  # fmt: skip
    return run_prefill(OPERATOR, call, backend, validate)
