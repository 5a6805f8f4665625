"""Hazards HZ1xx: reading and writing the wrong address."""

from __future__ import annotations

from deltaproof.hazards.hazard import CULA, FLA, FLASHINFER, TILELANG, TILEOPS, Hazard, Story

MEMORY_HAZARDS = (
    Hazard(
        name="unmasked-load",
        code="HZ101",
        severity="critical",
        what="""
            A block load whose extent is rounded up (next power of two, tile tail, partial chunk) has no mask, or a
            mask that misses a dimension its sibling loads have.
        """,
        why="""
            The lanes that were added read the next head, the next sequence or memory past the tensor. What they
            find enters a sum, or is multiplied by a masked zero. A finite neighbour gives wrong numbers without a
            sign; an infinity or NaN times zero gives NaN. Sizes that are powers of two and lengths that fill the
            last chunk hide it.
        """,
        avoid="""
            Mask every axis that is rounded up, with a defined fill value, on every load of the kernel. Join the
            conditions with "and". Compare each load with its siblings: a new tensor gets the masks of the others.
        """,
        clauses=("M1", "S2", "S4"),
        probes=("ragged", "redzones", "poison", "varlen", "conv_slots"),
        rows=38,
        stories=(
            Story.pull(
                FLA,
                1135,
                """The recurrent KDA kernel loaded its gate over K rounded up to a power of two, with no mask, while
                q, k and v had one. A review (#776) had pointed it out five months before the fix.""",
            ),
            Story.pull(
                FLA,
                1143,
                """A gather of per-level scales was masked by causality only, so rows past the end of a sequence
                were read from the next one. The diagonal part of the backward had the same half mask.""",
            ),
            Story.pull(
                FLASHINFER,
                3479,
                """The mask of the last block joined its two conditions with "or": padded rows survived wherever the
                column was valid, and the next sequence leaked into the inverse and the state.""",
            ),
            Story.pull(
                CULA,
                35,
                """Rows of k past the end were cleared only for packed input; the tail chunk of a fixed-length batch
                was accumulated into the state.""",
            ),
        ),
        also_seen=("fla #1103",),
    ),
    Hazard(
        name="unmasked-store",
        code="HZ102",
        severity="critical",
        what="A block store or atomic whose extent is rounded up has no mask, or a mask that misses a dimension.",
        why="""
            The lanes that were added write into the next row, the next sequence or past the buffer. The damage
            shows up in another tensor, often much later.
        """,
        avoid="""
            Give the store every condition the loads have. A second condition (first step, first split) is joined to
            the bounds, not put in their place. Atomics need the same mask as stores.
        """,
        clauses=("M1", "P2", "S4"),
        probes=("redzones", "ragged"),
        rows=15,
        stories=(
            Story.pull(
                FLA,
                1103,
                """An elementwise kernel rounded its grid up to the block size and passed no mask to loads or
                stores; counts that the block does not divide wrote past the buffer.""",
            ),
            Story.commit(
                FLA,
                "a9dac8b17b57e50353ff72959a75907b6803157e",
                """The atomic adds of dv and dk were masked, but the one of the gate gradient beside them always
                wrote a full chunk of rows.""",
            ),
            Story.pull(
                TILELANG,
                345,
                """The scale of every row in a tile was stored, including rows that belong to padding or to the next
                group.""",
            ),
        ),
    ),
    Hazard(
        name="narrow-offset",
        code="HZ103",
        severity="critical",
        what="""
            Pointer arithmetic in 32 bits: a program id, a `cu_seqlens` entry or a slot index is multiplied by a
            stride before it is widened.
        """,
        why="""
            Past 2**31 elements the product wraps, and the kernel reads or writes memory that has nothing to do with
            the row. Pools and long packed batches reach that size; unit tests do not. Widening the finished product
            is too late.
        """,
        avoid="""
            Widen a factor before the multiplication, for every index that meets a stride. Check it against the code
            after each rewrite: a comment that claims the cast is not the cast.
        """,
        clauses=("P5", "M1"),
        probes=("large_offsets", "slots", "conv_large_offsets", "conv_slots"),
        rows=41,
        stories=(
            Story.pull(
                FLASHINFER,
                4572,
                """A 64-bit cast made in #3230 was lost when #3502 rewrote the kernel. The comment above the line
                still explained why the cast is needed.""",
            ),
            Story.pull(
                FLA, 692, "The offset was formed in 32 bits and cast to 64 afterwards, when it had wrapped already."
            ),
            Story.pull(
                FLASHINFER,
                3392,
                """An earlier fix had widened explicit strides only; the path for compact tensors still multiplied
                row and width in 32 bits.""",
            ),
        ),
        also_seen=("fla #1082", "fla #783", "sglang #33665"),
    ),
    Hazard(
        name="oversized-grid-axis",
        code="HZ104",
        severity="high",
        what="Sequences times heads, chunks or tokens are placed on grid axis y or z, whose limit is 65535.",
        why="""
            The launch fails, or is rejected as an invalid argument, as soon as a batch holds enough short sequences
            or a sequence enough tokens. Small tests never get there.
        """,
        avoid="Put the product that grows with the input on axis 0, and keep y and z for small, bounded counts.",
        clauses=("S2", "S4"),
        rows=12,
        stories=(
            Story.pull(
                FLA,
                1077,
                """Sequences times value heads sat on the second axis in forward, backward and the intra-card split:
                many packed sequences made the launch fail.""",
            ),
            Story.pull(FLA, 528, "One program a token on axis y failed from 65536 tokens on."),
        ),
        also_seen=("fla #1097",),
    ),
    Hazard(
        name="missing-base-offset",
        code="HZ105",
        severity="critical",
        what="""
            One pointer is not advanced by batch, head, sequence or split as its siblings are; or by H where HV is
            meant; or by a T that the local length has overwritten.
        """,
        why="""
            Every program then uses the data of head 0 or of the first sequence, or two programs share one area.
            With one head, one sequence or one split the result is right, so simple tests pass.
        """,
        avoid="""
            Advance all pointers in one place, and compare them line by line. Keep the total length and the local
            length under two names. Test with H > 1, HV > H, N > 1 and different data in each.
        """,
        clauses=("S1", "S4", "D1"),
        probes=("values", "gradients", "varlen", "conv_values", "chunk_states"),
        rows=26,
        stories=(
            Story.pull(
                FLA,
                781,
                """In the context-parallel backward, q, k, w and do were advanced to their sequence and head; the
                gate was always read from head 0 of the first sequence.""",
            ),
            Story.pull(
                FLA,
                1031,
                """The output pointer ignored the split over V: every split wrote the first tile, and the rest of
                the output stayed unwritten.""",
            ),
            Story.pull(
                FLA,
                707,
                """The stride between splits of dk was computed from T after T had been replaced by the length of
                the current sequence.""",
            ),
        ),
    ),
    Hazard(
        name="assumed-contiguous",
        code="HZ106",
        severity="critical",
        what="""
            Strides are computed for a tensor that nobody checks; or a buffer that must be updated in place goes
            through `.contiguous()` or `.reshape()`.
        """,
        why="""
            A sliced or transposed tensor is walked as if it were dense, and gives wrong numbers. A copy made in
            passing is correct to read, but an update goes to the copy: the caller's pool keeps the old state, and
            gigabytes are copied a call.
        """,
        avoid="""
            Pass strides, or copy inputs in one place before the launch. Never copy what is updated in place: take
            its strides or refuse it.
        """,
        clauses=("M3", "P5"),
        probes=("strides", "slots", "layouts", "conv_rows", "conv_slots"),
        rows=11,
        stories=(
            Story.pull(
                FLASHINFER,
                3268,
                """A page-strided pool was flattened with `reshape`, which cloned it: each call copied gigabytes,
                and the state update went to the temporary.""",
            ),
            Story.pull(
                FLA, 871, "The incoming gradient was read with dense strides although it may be a non-contiguous view."
            ),
        ),
        also_seen=("fla #1139", "fla #627"),
    ),
    Hazard(
        name="racing-store",
        code="HZ107",
        severity="critical",
        what="Programs along a split axis store to one address.",
        why="""
            The last writer wins, and which one that is changes from run to run. Where every program adds to what it
            read, updates are lost. Where all write the same value nothing shows, until one of them does not.
        """,
        avoid="""
            Let one program of the axis store what does not depend on it, or give each program its own buffer and
            reduce in a fixed order.
        """,
        clauses=("I1", "I2"),
        probes=("repeatability", "invariance", "conv_rows"),
        rows=12,
        stories=(
            Story.pull(
                FLA,
                1018,
                """Every program of the V axis stored a normaliser that does not depend on V. The values agreed, so
                it was a race without a symptom.""",
            ),
            Story.pull(
                FLA,
                360,
                """Each batch program loaded, added to and stored the shared gradients of w and u without atomics,
                and concurrent programs lost updates.""",
            ),
            Story.pull(
                TILEOPS,
                1730,
                """Blocks overwrote rows that neighbouring blocks still read; gradients varied as soon as the grid
                was larger than the card.""",
            ),
        ),
        also_seen=("fla #1033", "imp #1976"),
    ),
)
