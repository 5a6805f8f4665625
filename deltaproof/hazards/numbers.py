"""Hazards HZ4xx to HZ6xx: gradients and options, ranks, arithmetic."""

from __future__ import annotations

from deltaproof.hazards.hazard import FLA, FLASHINFER, FLASHQLA, TILEOPS, VLLM, Hazard, Story

GRADIENT_HAZARDS = (
    Hazard(
        name="gradient-arity",
        code="HZ401",
        severity="medium",
        what="A backward returns another number of gradients than the forward takes inputs.",
        why="""
            Autograd raises at the first backward. It is found late where the tests are forward only, and it appears
            when an input is added to the forward and the backward is forgotten.
        """,
        avoid="""
            Return one value for each input of the forward, None where there is no gradient, and run a backward in
            the tests.
        """,
        clauses=("G1",),
        probes=("gradients",),
        rows=4,
        stories=(
            Story.pull(
                FLA, 921, "A helper returned a pair of gradients, and the caller returned that pair for both inputs."
            ),
            Story.commit(
                FLA,
                "fae210c0ca25370631ae1386f0c297d60033231f",
                "An input was added to the forward; the backward went on returning six gradients for seven inputs.",
            ),
            Story.pull(
                FLA,
                776,
                "The review claimed this hazard here, and the claim was false: count before you report.",
            ),
        ),
    ),
    Hazard(
        name="unthreaded-option",
        code="HZ402",
        severity="critical",
        what="An option is honoured on one path and dropped on its sibling: the backward, a wrapper, another backend.",
        why="""
            The call succeeds and computes another function: packed documents leak into each other, normalisation
            stays on, a shard runs as a sequence of its own. `**kwargs` and copied branches are where options get
            lost.
        """,
        avoid="""
            Name every option, and pass the set as one object. An option that a path does not support raises there.
            Run every option through every path in the tests.
        """,
        clauses=("S0", "S4", "D1"),
        probes=("values", "gradients", "varlen", "compile", "conv_values"),
        rows=6,
        stories=(
            Story.pull(
                FLA,
                1004,
                """A wrapper took any keyword and forwarded a fixed list: `cp_context` was lost, and each rank ran its
                shard as an independent sequence.""",
            ),
            Story.pull(
                FLA,
                1088,
                """One branch set `cu_seqlens` to None and rebuilt it from an attention mask only; packed input ran
                as one long sequence.""",
            ),
            Story.pull(
                FLASHINFER,
                3720,
                "A wrapper accepted `use_qk_l2norm_in_kernel=False`, and the kernel normalised all the same.",
            ),
        ),
        also_seen=("fla #842", "fla #427", "mamba 8ffd905c", "sgl-kernel-npu #449", "vllm-gaudi #1484"),
    ),
    Hazard(
        name="wrong-gradient",
        code="HZ403",
        severity="critical",
        what="A gradient lacks a term, or is reduced over the wrong rows, as in a partial last chunk.",
        why="""
            Training goes on and converges to something worse. The error is in one term, one branch or one row, so a
            norm over the whole gradient hides it.
        """,
        avoid="""
            Compare every gradient with a float64 vector-Jacobian product, element by element, for every branch, for
            lengths that do not fill the last chunk, and with a gradient of the final state.
        """,
        clauses=("G1", "G2", "G3"),
        probes=("gradients",),
        rows=13,
        stories=(
            Story.pull(
                FLA,
                1143,
                """The gradient of a chunk's last decay was added to the last row of the tile. In a partial chunk
                that row lies outside the sequence, and the term was lost.""",
            ),
            Story.pull(
                FLA, 875, "A normaliser was built by an op that records no gradient, so dk lacked its contribution."
            ),
            Story.pull(
                FLA, 863, "The branch without a gate never set its term of the gradient of k, and lost a term for beta."
            ),
        ),
    ),
)

RANK_HAZARDS = (
    Hazard(
        name="rank-divergent-random",
        code="HZ501",
        severity="high",
        what="""
            Ranks draw numbers that they must share from generators that are not synchronised, or from a seed that
            depends on the rank.
        """,
        why="Each rank then goes on with another choice: results differ by rank, or a collective waits for ever.",
        avoid="Draw once and broadcast, or give every rank one explicit generator with one seed.",
        clauses=("D2",),
        also_seen=("samplers of diffusion language models that run without a seed under tensor parallelism",),
    ),
    Hazard(
        name="rank-dependent-collective",
        code="HZ502",
        severity="high",
        what="A collective is not reached by every rank, or not with the same partner.",
        why="The ranks that arrived wait for one that never comes.",
        avoid="""
            Decide from values that every rank has whether a collective runs. Translate ranks of a group to global
            ranks where the call expects those.
        """,
        clauses=("D1",),
        rows=1,
        stories=(
            Story.pull(
                FLASHINFER,
                3418,
                """A root rank counted inside its group was passed where a global rank is expected; in a sub-group
                the ranks waited for a sender outside it.""",
            ),
        ),
    ),
)

NUMERIC_HAZARDS = (
    Hazard(
        name="unguarded-division",
        code="HZ601",
        severity="high",
        what="A division, rsqrt or log where zero can happen.",
        why="""
            Padding rows, zero keys and empty chunks are zero exactly. The quotient is infinity or NaN, and spreads
            through the state to every later token.
        """,
        avoid="Put the epsilon on the quantity that can be zero, inside the root, and test with zero rows.",
        clauses=("N1", "S0"),
        probes=("extreme_gates", "correlated_keys"),
        rows=4,
        stories=(
            Story.pull(
                TILEOPS,
                715,
                """The epsilon was added to a constant that is never zero, while the norm of an all-zero row was the
                divisor.""",
            ),
        ),
    ),
    Hazard(
        name="unbounded-exp",
        code="HZ602",
        severity="high",
        what="exp of a positive argument without a bound; or infinity minus infinity.",
        why="""
            Decays are products of factors below one, but ratios of them taken in the wrong direction, or split into
            two factors, overflow. A clamp that avoids the infinity changes the result instead.
        """,
        avoid="""
            Form differences of log gates whose sign is known, and exponentiate only the causal half. Shift by an
            anchor inside the block rather than split the exponent.
        """,
        clauses=("N1",),
        probes=("extreme_gates", "causality"),
        rows=6,
        stories=(
            Story.pull(
                FLASHINFER,
                3481,
                """Gate ratios were exponentiated for all pairs of a block. Above the diagonal the argument is
                positive, so strong decay gave infinity and then NaN.""",
            ),
            Story.pull(
                TILEOPS,
                1465,
                """A decay was split into two exponentials, one of which was clamped to avoid overflow while the
                other underflowed: strong decays gave zero.""",
            ),
        ),
    ),
    Hazard(
        name="low-precision-accumulate",
        code="HZ603",
        severity="high",
        what="An accumulation, inverse or state is kept in bf16, fp16 or tf32 and loses the result.",
        why="""
            Rounding is repeated at every step, so the error grows with the length; terms that should cancel leave
            their rounding behind. Random, weakly correlated keys hide it; equal keys with beta = 1 show it.
        """,
        avoid="""
            Accumulate, invert and carry states in float32, and cast at the end. Judge the error against a float64
            oracle with a derived bound, at the worst place.
        """,
        clauses=("N2", "S3"),
        probes=("values", "correlated_keys", "gradients", "conv_values"),
        rows=7,
        stories=(
            Story.commit(
                FLASHQLA,
                "6e5d2ea1536f50485746caf7ff7fb4b846a85040",
                """A gate gradient is the row sum of a matrix minus its transpose. The transpose went through bf16,
                the matrix did not, and what should cancel became the result.""",
            ),
            Story.pull(
                FLA,
                740,
                """A running product of transition matrices was cast to the input dtype before every product, so the
                error grew with the number of chunks.""",
            ),
            Story.pull(VLLM, 53864, "The inverse of the key matrix, taken in bf16, diverges."),
        ),
        also_seen=("vllm #52887", "sglang #38039"),
    ),
)
