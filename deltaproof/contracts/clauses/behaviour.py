"""Clauses M, G, I, N, D and E: memory, gradients, invariance, numbers, ranks and errors."""

from __future__ import annotations

from deltaproof.contracts.clauses.model import SEQUENCE_FORMS, Clause

MEMORY_CLAUSES = (
    Clause(
        code="M1",
        name="defined-memory",
        title="Every output element is written, and none depends on memory nobody defined.",
        text="""
            - Every element of every output is written.
            - No element depends on uninitialised memory, or on memory outside the arguments.
            - Every output and workspace comes from one allocation function. Each buffer declares its initial
              content there: empty, zeros or poison. Callers can set it with `out_init`, and `verify` forces it to
              poison.
        """,
        example="The same call with `out_init` set to zeros and to poison gives the same bits.",
    ),
    Clause(
        code="M2",
        name="inputs-unchanged",
        title="Inputs are unchanged.",
        text="""
            Every input tensor is bit-identical after the call. The slots a pool form is told to write are the only
            exception (P2), and an `out` tensor is an output.
        """,
    ),
    Clause(
        code="M3",
        name="strided-inputs",
        title="Non-contiguous inputs are honoured or copied, never misread.",
        text="""
            A transposed, sliced or expanded input gives the same result as its contiguous copy. A form may read
            through the strides or copy the input; it may not assume strides. Pools follow P5 instead.
        """,
    ),
)

GRADIENT_CLAUSES = (
    Clause(
        code="G1",
        name="gradients",
        title="Every differentiable input has a right gradient.",
        text="""
            Gradients are given for q, k, v, g (or its raw input), beta, initial_state, A_log and dt_bias, and are
            judged against the vector-Jacobian product of the float64 oracle.
        """,
        forms=SEQUENCE_FORMS,
    ),
    Clause(
        code="G2",
        name="final-state-gradient",
        title="A gradient that arrives at the final state is honoured.",
        text="""
            If a loss uses the final state, its gradient flows back through the state into every input, alone or
            added to the gradient of o.
        """,
        forms=SEQUENCE_FORMS,
    ),
    Clause(
        code="G3",
        name="gradients-everywhere",
        title="Gradients hold in both layouts, for packed sequences and for grouped values.",
        text="G1 and G2 hold in both state layouts (T1), with `cu_seqlens` (S4) and with HV > H (S1).",
        forms=SEQUENCE_FORMS,
    ),
)

INVARIANCE_CLAUSES = (
    Clause(
        code="I1",
        name="repeatable",
        title="The same call gives the same bits.",
        text="Two runs of one call, with the same inputs on the same machine, agree bit for bit.",
    ),
    Clause(
        code="I2",
        name="batch-invariant",
        title="A sequence's results do not depend on what else is in the batch.",
        text="""
            - A sequence's outputs, states and per-token gradients are bitwise the same alone, in any batch, at any
              place of a pack and with any neighbours.
            - It holds always in recurrent and decode; in chunk and prefill with `batch_invariant = True`. Without
              it, only the splitting of long sequences inside a card may look at the rest of the batch.
            - Configurations come from a table keyed by head sizes, head counts and dtype, never from timing, T or
              N. There are no float atomics.
            - A backend on top of library matmuls may declare this clause unsupported, with the reason.
        """,
    ),
    Clause(
        code="I3",
        name="causal",
        title="Later tokens change nothing before them.",
        text="""
            Outputs up to token t, and the states up to there, are bitwise unchanged when finite tokens after t are
            changed or appended.
        """,
    ),
)

NUMBER_CLAUSES = (
    Clause(
        code="N1",
        name="finite",
        title="Results are finite and right for extreme gates and degenerate keys.",
        text="""
            - Log gates down to -1e4 beside gates at 0 give finite, right results.
            - So do zero rows of q or k under normalisation.
            - So does every input with `beta * sum(k ** 2) <= 2`; beyond that, exact arithmetic diverges too.
            - A token's log gate may be clamped at -64 before it is summed.
        """,
    ),
    Clause(
        code="N2",
        name="error-bound",
        title="The error stays within a derived bound, judged where it is worst.",
        text="""
            The error against the float64 oracle stays within a bound derived from the oracle, the rounding of the
            dtype and the size of the cumulative gate. It is reported for the worst row, head and chunk, never as
            one global ratio.
        """,
    ),
)

RANK_CLAUSES = (
    Clause(
        code="D1",
        name="context-parallel",
        title="Context-parallel equals single-process.",
        text="A sequence shared out over ranks gives what one process gives for the whole of it.",
    ),
    Clause(
        code="D2",
        name="shared-randomness",
        title="What is drawn at random and must agree, agrees on every rank.",
        text="Where ranks need the same random numbers, every rank holds the same ones.",
    ),
)

ERROR_CLAUSES = (
    Clause(
        code="E1",
        name="clear-errors",
        title="Bad input raises ContractError before any kernel runs.",
        text="""
            - What shape, dtype, device, stride or host data shows to be wrong raises ContractError, a ValueError.
              It names the argument, what was expected and what came, before any kernel runs.
            - Values that live on the device are checked with `validate="values"`, which synchronises; `verify` and
              the tests use it. Values in CPU tensors are checked too.
            - Bad values that were not checked stay memory-safe: nothing outside the arguments is read or written.
        """,
        example="A pool of shape [8, 4, 64, 128] with V_FIRST and K = 64, V = 128 is refused, naming `pool`.",
    ),
)
