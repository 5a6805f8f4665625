"""Clauses S and T: the function, its arguments, and the state it carries."""

from __future__ import annotations

from deltaproof.contracts.clauses.model import Clause

FUNCTION_CLAUSES = (
    Clause(
        code="S0",
        name="function",
        title="The operator is the gated delta rule, token by token.",
        text="""
            For every token t of a sequence, with S the state seen as a K by V matrix:

            ```
            S'  = exp(g_t) * S_{t-1}
            S_t = S' + outer(k_t, beta_t * (v_t - transpose(S') @ k_t))
            o_t = scale * transpose(S_t) @ q_t
            ```

            - The gated delta rule (GDN) has one gate a head. Kimi delta attention (KDA) has one a channel:
              `exp(g_t)` is then a diagonal over K.
            - `scale` is K ** -0.5 unless it is given.
            - `g` is a log gate, and `g <= 0`.
            - If normalisation is asked for, q and k are each divided by `sqrt(sum(x ** 2) + 1e-6)` first.
            - Gate computed in the kernel, GDN: `g = -exp(A_log) * softplus(g_raw + dt_bias)`, with `A_log` and
              `dt_bias` of shape [HV].
            - Gate computed in the kernel, KDA: the same for each channel; or, with a `lower_bound` L,
              `g = L * sigmoid(exp(A_log) * (g_raw + dt_bias))`.
            - `allow_neg_eigval` means `2 * sigmoid(beta)` and needs the sigmoid in the kernel. A beta that is
              passed ready may lie in [0, 2].
        """,
        example="""
            K = V = 1, scale = 1, no initial state, q = k = 1. Token 1 has v = 3, beta = 1, g = 0: the state becomes
            3 and o = 3. Token 2 has v = 5, beta = 0.5, g = log(0.5): S' = 1.5, the state becomes
            1.5 + 0.5 * (5 - 1.5) = 3.25 and o = 3.25.
        """,
    ),
    Clause(
        code="S1",
        name="shapes",
        title="Shapes are fixed, and value heads are a multiple of query heads.",
        text="""
            - q and k are [B, T, H, K]; v is [B, T, HV, V]; beta is [B, T, HV].
            - g is [B, T, HV] (GDN) or [B, T, HV, K] (KDA).
            - HV is a multiple of H (grouped values). Value head `hv` reads q and k of head `hv // (HV // H)`.
            - HV < H is refused.
        """,
        example="H = 2 and HV = 6: value heads 0, 1 and 2 read query head 0; value heads 3, 4 and 5 read query head 1.",
    ),
    Clause(
        code="S2",
        name="sizes",
        title="K and V run from 1 to 256, in any combination; empty inputs are legal.",
        text="""
            K and V are each from 1 to 256. They may be equal or differ, and need not be powers of two. T = 0 and
            B = 0 are legal: o is then empty, and with T = 0 the final state is the initial state, or zero where none
            was given.
        """,
        example="""
            K = 96 and V = 40 is a legal call; a kernel that rounds K up to 128 must mask the lanes it added (M1).
        """,
    ),
    Clause(
        code="S3",
        name="dtypes",
        title="Half-precision inputs, float32 accumulation, and a fixed dtype for every result.",
        text="""
            - q, k and v are float16, bfloat16 or float32; g is float32, float16 or bfloat16.
            - o has the dtype of v.
            - A final state has the dtype of `initial_state`, or float32 where none was given.
            - decode and prefill store states in the dtype of the pool.
            - Accumulation is in float32.
        """,
    ),
    Clause(
        code="S4",
        name="packed-sequences",
        title="Packed sequences are cut by cu_seqlens; empty sequences and tail rows are defined.",
        text="""
            - `cu_seqlens` is int32 or int64 with N + 1 entries: the first is 0, they never decrease, and the last
              is at most T. B is then 1.
            - Each sequence starts from its own initial state and never sees its neighbours.
            - An empty sequence is legal, and its final state is its initial state.
            - Rows past `cu_seqlens[-1]` give o = 0 and zero gradients.
        """,
        forms=("chunk", "recurrent", "prefill"),
        example="""
            T = 8 and `cu_seqlens = [0, 3, 3, 6]`: three sequences of 3, 0 and 3 tokens. Sequence 1 returns its
            initial state, and rows 6 and 7 of o are 0.
        """,
    ),
)

STATE_CLAUSES = (
    Clause(
        code="T1",
        name="state-layout",
        title="The state's layout is chosen by the caller, carried with the state, and checked.",
        text="""
            - The layout is K_FIRST, [N, HV, K, V], or V_FIRST, [N, HV, V, K]. The caller chooses; the shape is
              checked against the choice.
            - Where K = V the layout of a raw tensor cannot be seen. So pools, snapshots and transfers carry their
              layout and check it, and docs and errors say so.
            - `verify` judges the layout by values, with a state that is neither zero nor symmetric, and with a
              non-contiguous transposed view.
        """,
        example="K = 64, V = 128, V_FIRST: an `initial_state` of shape [N, HV, 64, 128] raises ContractError.",
    ),
    Clause(
        code="T2",
        name="initial-state-kept",
        title="An initial_state is never modified.",
        text="""
            The tensor passed as `initial_state` is bit-identical after the call, and the final state shares no
            memory with it.
        """,
        forms=("chunk", "recurrent"),
    ),
    Clause(
        code="T3",
        name="splitting",
        title="Splitting a sequence and carrying the state gives what the whole gives.",
        text="""
            A sequence may be cut at any token: running the parts one after another, each from the final state of
            the one before, gives the outputs and the final state of the uncut run. The forms agree with
            each other: chunk, recurrent and decode, and prefill with chunk. All of it holds within the bound of N2.
        """,
        example="Prefill 100 tokens, then decode 28 one by one: within N2, the same as one call over 128 tokens.",
    ),
)
