"""Hazards HZ7xx to HZ9xx: tiles and caches of compiled kernels, tests that cannot see, block diffusion."""

from __future__ import annotations

from deltaproof.hazards.hazard import CULA, FLA, FLASHINFER, FLASHQLA, SGLANG, TILEOPS, TRITON, Hazard, Story

BUILD_HAZARDS = (
    Hazard(
        name="ignored-tile-parameter",
        code="HZ701",
        severity="high",
        what="A literal tile or chunk size stands where the caller passes one.",
        why="""
            As long as every caller passes the same number nothing shows. The first other value cuts chunks in two
            ways within one computation, and the numbers are wrong or the shapes disagree.
        """,
        avoid="Thread one parameter through every helper, without defaults in the inner ones, and test a second value.",
        clauses=("S0", "T3"),
        probes=("values", "ragged"),
        rows=14,
        stories=(
            Story.pull(
                FLASHQLA,
                12,
                "A helper called without the chunk size fell back to 64, while all other operands used the caller's.",
            ),
            Story.pull(
                FLASHINFER,
                3494,
                """A load helper had the tile of one operand built in and served another as well; square
                configurations hid it.""",
            ),
        ),
        also_seen=("fla #876", "fla #935"),
    ),
    Hazard(
        name="incomplete-cache-key",
        code="HZ702",
        severity="critical",
        what="""
            An autotune or JIT cache is keyed on less than was baked in: strides, scale, head counts, dtype, device;
            or on an `id()` or address that is used again.
        """,
        why="""
            The first call of a process decides. A later call with another stride or head count gets a kernel
            compiled for the first one, and reads the wrong addresses without an error. A test that makes one call a
            process cannot see it.
        """,
        avoid="""
            Derive the key from everything the compiled code closes over. Never key on an address or `id()` whose
            owner may die. Test two configurations in one process, in both orders.
        """,
        clauses=("M3", "P5", "I1"),
        probes=(
            "strides",
            "values",
            "compile",
            "causality",
            "graph",
            "invariance",
            "repeatability",
            "varlen",
            "conv_values",
        ),
        rows=17,
        stories=(
            Story.pull(
                FLASHINFER,
                3908,
                """Head counts were runtime arguments but baked into the compiled layouts, and absent from the key:
                a process that mixed 32 and 64 heads got garbage on about half of the outputs.""",
            ),
            Story.pull(
                FLASHINFER,
                3649,
                """""The key held the pool size and its first stride only; two pools with other inner strides shared
                a kernel."""
                "",
            ),
            Story.pull(
                FLASHINFER,
                3720,
                """Casts were cached by storage address. The allocator reuses addresses, and a new tensor silently
                got the values of an old one.""",
            ),
            Story.pull(CULA, 43, "The gate dtype was not in the key: fp32 and then bf16 gates ran the wrong kernel."),
            Story.pull(
                TILEOPS,
                1867,
                """Instances were keyed by `id()`, which Python hands out again; a new op inherited the shapes of a
                dead one.""",
            ),
        ),
    ),
    Hazard(
        name="autotuned-in-place",
        code="HZ703",
        severity="critical",
        what="An autotuned kernel updates its input in place, and nothing restores it between trial runs.",
        why="""
            The tuner runs the kernel many times on the first call, each run on the output of the last. The first
            step of a new shape is wrong, and every later one is right.
        """,
        avoid="""
            List every tensor that is updated in place as one to restore, or do not tune such kernels by running
            them.
        """,
        clauses=("M2", "P2", "I1"),
        probes=("repeatability", "inputs_unchanged", "conv_rows"),
        rows=1,
        stories=(
            Story.commit(
                FLA,
                "ca89d2017f8047e3bdd45eaf3deee8332ce9d60e",
                """A kernel that shifts the convolution cache in place was autotuned without restoring it, so the
                first call shifted the state dozens of times.""",
            ),
        ),
    ),
    Hazard(
        name="resource-limit",
        code="HZ704",
        severity="high",
        what="""
            A configuration needs more shared memory or registers than a card has, or is miscompiled on one
            architecture.
        """,
        why="""
            It fails to launch, accesses memory it must not, or gives wrong numbers, on that card only. An autotuner
            may pick it, so the outcome also depends on timing.
        """,
        avoid="""
            Keep configurations in a table by size, dtype and architecture, each verified there, at sizes that are no
            power of two too. Count every buffer in the estimate of shared memory.
        """,
        clauses=("S2", "N2", "I2"),
        probes=("values", "gradients", "invariance"),
        rows=10,
        stories=(
            Story.pull(
                FLA,
                256,
                "Eight warps gave wrong results on one architecture for V = 64, and the tuner could pick them.",
            ),
            Story.pull(
                FLA,
                751,
                """The test for shared memory was written without the call, so it was always true and the fallback
                for small cards could not be reached.""",
            ),
            Story.pull(
                FLA,
                1109,
                "One candidate made an illegal memory access on one architecture and ended the process while tuning.",
            ),
            Story.pull(
                TRITON,
                11366,
                """Warpgroup matmuls on tiles of 32 read shared memory out of bounds on Hopper with Triton 3.7.1.
                We met the like with 3.6.0 on an H200, with four warps and more. A load in the matmuls' loop that is
                not pipelined (one stage, or rows that are no multiple of 16 bytes): compute-sanitizer says `Invalid
                __shared__ read`, values are off by 0.7 at K = 33, and K = 129 is an illegal access. A loaded tile
                narrower than 64 columns: with bf16, K = 32 and V = 16 outputs are off by 90 %. Two warps, which take
                the older instruction, compute the same calls right.""",
            ),
        ),
        also_seen=("fla #640", "fla #988"),
    ),
)

TEST_HAZARDS = (
    Hazard(
        name="square-state-test",
        code="HZ801",
        severity="medium",
        what="A layout test uses K = V, so it cannot see a transposition of shapes.",
        why="Every mix-up of K and V strides or tiles gives legal addresses in a square matrix.",
        avoid="""
            Parametrise with K != V in both directions; where K = V must be tested, use an asymmetric state and
            compare values.
        """,
        clauses=("T1",),
        rows=3,
        stories=(
            Story.pull(FLA, 776, "The layout tests of GDN and KDA use one size for K and V, as the review noted."),
            Story.pull(
                FLASHINFER,
                3494,
                """State and chunk size were both 128 in the test, so a helper that used the wrong operand's tile
                passed.""",
            ),
        ),
    ),
    Hazard(
        name="zero-state-test",
        code="HZ802",
        severity="medium",
        what="A state test starts from a zero state or from none.",
        why="""
            A zero state is the same in every layout, at every address and after every decay, so the load path is
            not tested.
        """,
        avoid="Start from a random, asymmetric state, and compare the final state as well as the output.",
        clauses=("T1", "T2"),
        rows=1,
        stories=(
            Story.pull(
                FLA,
                776,
                """The finding of the review came back in a later operator, gdn2: its layout test passes no initial
                state, so the load that depends on the layout never runs.""",
            ),
        ),
    ),
    Hazard(
        name="forward-only-test",
        code="HZ803",
        severity="medium",
        what="A differentiable operator is tested in the forward only.",
        why="The backward is the larger half of the code, with masks, offsets and options of its own.",
        avoid="Test every gradient against a reference for each path the forward tests cover.",
        clauses=("G1",),
        stories=(
            Story.pull(FLA, 776, "Named in the review: a differentiable operator whose tests run the forward alone."),
        ),
    ),
)

DIFFUSION_HAZARDS = (
    Hazard(
        name="causal-mask-in-block-diffusion",
        code="HZ901",
        severity="critical",
        what="A triangular mask stands where a block-diffusion model needs `block(q) >= block(k)`.",
        why="""
            Tokens of a block that is denoised together must see each other. With a triangular mask each sees only
            those before it; the model still answers, worse.
        """,
        avoid="""
            Build the mask from block numbers, and test that a change of a later token in the block changes an
            earlier one.
        """,
        clauses=(),
        stories=(Story.pull(SGLANG, 26453, "Attention was causal inside the block; #39739 is about the same."),),
        also_seen=("pull requests for diffusion language models in vllm",),
    ),
    Hazard(
        name="commit-before-forward",
        code="HZ902",
        severity="critical",
        what="""
            Keys and values of a denoised block are committed though the last forward did not run on the final
            tokens.
        """,
        why="The cache then holds the block as it was one step earlier, and every later block reads it.",
        avoid="Run a forward on the final tokens before committing, or commit only what came from them.",
        clauses=(),
        stories=(Story.pull(SGLANG, 31773, "The review counted 2 of 41 blocks committed that way."),),
    ),
)
