"""Hazards HZ2xx and HZ3xx: memory nobody wrote, and states that are misread or misplaced."""

from __future__ import annotations

from deltaproof.hazards.hazard import FLA, FLASHINFER, FLASHQLA, TILELANG, TILEOPS, Hazard, Story

CONTENT_HAZARDS = (
    Hazard(
        name="unwritten-output",
        code="HZ201",
        severity="critical",
        what="Memory from `torch.empty` has rows that the kernel skips, and somebody reads them later.",
        why="""
            The rows hold what the allocator left there: NaN, or plausible numbers of an earlier call. Skipped rows
            come from early returns, masks, empty sequences, padding and grids that turn out too small. A fresh
            process often gets zeros, so tests pass.
        """,
        avoid="""
            Define every element: store zeros where the kernel skips, or allocate zeros where rows may stay
            unwritten. Let an empty sequence copy its initial state before it returns. Declare each buffer's initial
            content.
        """,
        clauses=("M1", "S4"),
        probes=("poison", "varlen", "conv_values", "conv_rows", "chunk_states"),
        rows=19,
        stories=(
            Story.commit(
                FLA,
                "bc3b101dcb713ddc5bd8924b66754eb68b5ccf89",
                """An early return for empty sequences leaves their final state uninitialised in the recurrent KDA
                kernel and in its copy. Still standing in this version.""",
            ),
            Story.pull(
                FLA,
                967,
                """A rotary kernel skipped rows with a negative position, in an output from `empty_like`:
                left-padded batches passed garbage on to attention.""",
            ),
            Story.pull(
                FLASHINFER,
                4219,
                """A kernel skipped rows with a negative slot in an uninitialised staging buffer, which was then
                copied whole over the caller's output.""",
            ),
            Story.pull(
                FLASHQLA,
                36,
                """Clearing of the padding chunk started too late when the last sequence filled its chunk, so
                nothing was cleared and the returned gate gradient carried garbage.""",
            ),
        ),
        also_seen=("sglang #30974",),
    ),
    Hazard(
        name="mask-by-multiply",
        code="HZ202",
        severity="high",
        what="""
            Garbage, infinity or NaN is multiplied by zero where it should be deselected; or exp comes before the
            mask.
        """,
        why="""
            Zero times infinity is NaN, and so is zero times NaN. Rows past the end have gate 0, so the difference
            to a strongly negative reference is large and positive, and its exp overflows before the mask is
            applied.
        """,
        avoid="""
            Select with `where`, and mask the exponent before exp, not the result after it. Give masked lanes a
            value that every later step can take.
        """,
        clauses=("M1", "N1"),
        probes=("poison", "extreme_gates", "ragged", "causality", "conv_slots"),
        rows=8,
        stories=(
            Story.pull(
                TILELANG,
                2461,
                """lse and Delta of padding rows were never stored. The backward evaluated exp2 of them and
                multiplied by zero, so a NaN left in memory reached dK.""",
            ),
            Story.pull(
                FLA,
                694,
                """Rows past T loaded g as 0; with a strongly negative cumulative gate the exp overflowed, and zero
                times infinity poisoned the tile.""",
            ),
            Story.pull(
                FLA, 99, "Gate differences went through exp before the causal mask, and the upper half overflowed."
            ),
        ),
    ),
)

STATE_HAZARDS = (
    Hazard(
        name="unchecked-state-layout",
        code="HZ301",
        severity="critical",
        what="A state is read under a [K, V] or [V, K] flag, and nobody checks its shape, strides and dtype.",
        why="""
            With K = V a state in the other order is accepted and transposed without a word. With different sizes it
            is read out of place. States cross libraries that disagree on the order, so this meets users, not only
            developers.
        """,
        avoid="""
            Check the full shape against the layout, and the dtype against what the path supports. Where K = V,
            carry the layout with the state and compare it. Test with K != V and a state that is not symmetric.
        """,
        clauses=("T1", "E1"),
        probes=("layouts", "conv_values", "chunk_states"),
        rows=6,
        stories=(
            Story.pull(
                FLA,
                776,
                """The review noted that entry points check at most the leading dimension of the initial state; four
                of them still do in the version we read (August 2026).""",
            ),
            Story.pull(
                FLASHINFER,
                4523,
                "FP8 states passed the eligibility check of a context-parallel kernel that does not support them.",
            ),
        ),
    ),
    Hazard(
        name="padding-slot-address",
        code="HZ302",
        severity="critical",
        what="""
            A padding or negative slot index is used raw, clamped to a live slot, or wrapped by Python's `[-1]`; or
            there is no upper bound.
        """,
        why="""
            Used raw, -1 reads and overwrites the memory before the pool. Clamped, a padded row updates slot 0,
            which may belong to a live request. Wrapped, it overwrites the last slot. Padding is what graph capture
            adds to fill a batch, so it appears under load and not in tests.
        """,
        avoid="""
            Skip the load and the store for any index outside [0, slots), and store 0 as the output. A clamp is not
            a guard: it only moves the write. Test -1 and `slots` with every slot live.
        """,
        clauses=("P1", "P2"),
        probes=("slots", "graph", "leases", "drafts", "conv_drafts", "conv_slots"),
        rows=19,
        stories=(
            Story.pull(
                FLASHINFER,
                2810,
                """bf16 decode used the slot index unguarded, so a padded row of -1 read and overwrote memory just
                before the pool: sglang saw accuracy loss and crashes. The fix redirected negative slots to slot 0,
                which is still read, updated and stored.""",
            ),
            Story.pull(
                FLASHINFER,
                5042,
                """A dense decode path gathered the pool and copied it back by Python indexing; the documented
                padding value -1 wrapped to the last slot and overwrote it. Still standing when read.""",
            ),
            Story.pull(
                TILEOPS,
                1512,
                """Padding tokens and the end of a padded chunk both had sequence id -1, matched each other, and
                were accumulated into the state.""",
            ),
        ),
        also_seen=(
            "sglang #20791",
            "sglang #23353",
            "sglang #27905",
            "flashinfer #2905",
            "vllm #39064",
            "vllm-gaudi #1431",
            "megatron-lm #6711",
        ),
    ),
    Hazard(
        name="aliased-slot",
        code="HZ303",
        severity="critical",
        what="Two rows of one step write the same slot; or a slot is reused before its last writer is done.",
        why="""
            One of the two states is lost, or the slot holds a mix of both. A holder of an old state may see the new
            one. Which of them wins is a matter of timing.
        """,
        avoid="""
            Refuse a slot named twice where the values can be checked. Hand slots out with a generation, and give
            one back only after its last writer has finished.
        """,
        clauses=("P3", "T2"),
        probes=("slots", "inputs_unchanged", "leases", "drafts", "conv_drafts", "conv_slots"),
        rows=1,
        stories=(
            Story(
                FLA,
                "HEAD",
                "The store of a state after each token, in the recurrent KDA kernel: standing in the version we read.",
            ),
            Story.commit(
                FLA,
                "39172ad1e9d9a58dbe9b51e88943b475ec907a5a",
                """A cache update copied new states into tensors it had handed out before, so whoever held an
                earlier state saw the new one.""",
            ),
        ),
        also_seen=("vllm #56196", "vllm #42792", "tensorrt-llm #13103"),
    ),
    Hazard(
        name="appended-cache",
        code="HZ304",
        severity="critical",
        what="""
            A cache is appended to, kept or not rolled back where it must be overwritten: denoising loops, rejected
            drafts, reuse without zeroing.
        """,
        why="""
            The next step reads the state of a rejected token, of an earlier pass over the same block, or of the
            request that had the slot before. Output stays fluent and is wrong.
        """,
        avoid="""
            Say a fresh sequence explicitly, and start it from zero whatever the slot holds. Keep the state after
            each draft token, and go on from the last accepted one. Overwrite windows; do not grow them.
        """,
        clauses=("P1", "P4", "T3"),
        probes=("slots", "splitting", "leases", "drafts", "conv_drafts", "conv_slots", "conv_rows"),
        rows=5,
        stories=(
            Story.pull(
                FLA,
                910,
                """`reset()` of a layer cache did nothing, so a reused cache kept the state of the former prompt; a
                sliding-window cache grew instead of keeping its window.""",
            ),
            Story.pull(
                FLA,
                748,
                """One counter of seen tokens, advanced by layer 0 only, gave other layers a wrong position within a
                step.""",
            ),
        ),
        also_seen=(
            "sglang #24954",
            "sglang #30986",
            "vllm #39273",
            "vllm #53919",
            "sglang #24717",
            "sglang #38622",
            "vllm #50272",
            "xllm #1291",
            "fla #1141",
        ),
    ),
)
