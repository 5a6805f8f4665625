"""Reviewed reasons that hold in the interpreter only: what a GPU, or its memory, would show; see ``equivalent``."""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.verify.source_mutants.reviewed import MORE_BITS, ONE_THREAD, TOO_LARGE, TOO_LONG, Equivalent

INPUTS, PLACES = "common/triton_inputs", "common/triton_places"
PREPARE = "gated_delta_rule/triton_prepare"
GRADIENTS = "gated_delta_rule/triton_gradients"
RECURRENCE, SPECULATION = "common/triton_recurrence:recurrence_kernel", "common/triton_speculation:speculation_kernel"
RECURRENCE_BACKWARD = "common/triton_recurrence_backward:recurrence_backward_kernel"


def _interpreted() -> Iterator[Equivalent]:
    """Yield what the interpreter alone cannot show."""
    yield Equivalent(
        "common/triton_language:pieces", "the interpreter multiplies fp32 operands as they are", device="cpu",
        campaign="gated_delta_rule",
    )  # fmt: skip
    ahead = "the interpreter has no page addresses to find, so nothing is asked for ahead"
    yield Equivalent("common/triton_recurrence:ask_ahead", ahead, device="cpu")
    yield Equivalent(RECURRENCE, ahead, within="ask_ahead(", device="cpu")
    yield Equivalent(RECURRENCE, ahead, within="inside = head * source_head", device="cpu")
    yield Equivalent(RECURRENCE_BACKWARD, ONE_THREAD, "drop-barrier", device="cpu")
    zeroed = "block[:, None] < block[None, :]"
    yield Equivalent(
        f"{PREPARE}:prepare_kernel", f"the blocks on the diagonal are stored afterwards; {ONE_THREAD}", "shift-bound",
        zeroed, device="cpu",
    )  # fmt: skip
    shared = f"programs share what each writes before it reads; {ONE_THREAD}"
    place = "(first // SEGMENT + n) * HV"
    for operator, before, after in (
        ("drop-offset", f"kept += {place} * V * K", ""),
        ("drop-stride", place, ""),
        ("drop-stride", f"{place} * V", ""),
        ("drop-stride", f"{place} * V * K", ""),
        ("drop-offset", "first // SEGMENT + n", ""),
        ("drop-offset", "head * V + v_at[:, None]", "v_at[:, None]"),
        ("drop-offset", "before += n * SEGMENT * HV * V * K", ""),
        ("drop-stride", "n * SEGMENT", ""),
        ("drop-stride", "n * SEGMENT * HV", ""),
        ("drop-stride", "n * SEGMENT * HV * V", ""),
        ("drop-stride", "n * SEGMENT * HV * V * K", ""),
    ):
        yield Equivalent(RECURRENCE_BACKWARD, shared, operator, before, after, device="cpu")
    for place, line, what in (
        (RECURRENCE_BACKWARD, "count =", "kept states"),
        (f"{INPUTS}:gate_gradients_kernel", "rows =", "partial gradients"),
        (f"{INPUTS}:head_gradients_kernel", "rows =", "partial gradients"),
    ):
        for operator, before, after in (
            ("drop-offset", "tl.zeros([], tl.int64) + T", "T"),
            ("narrow-zero", "tl.int64", "tl.int32"),
        ):
            yield Equivalent(place, TOO_LARGE.format(what), operator, before, after, line, "cpu")
    for place, what in (
        (f"{GRADIENTS}:score_gradients_kernel", "chunk matrices"),
        (f"{GRADIENTS}:key_gradients_kernel", "chunk matrices"),
        (f"{PREPARE}:prepare_kernel", "chunk matrices"),
        (f"{INPUTS}:gate_gradients_kernel", "partial gradients"),
        (f"{INPUTS}:head_gradients_kernel", "partial gradients"),
        (f"{PLACES}:zero_tail_kernel", "outputs"),
        (RECURRENCE_BACKWARD, "kept states"),
        (SPECULATION, "states"),
    ):
        yield Equivalent(place, TOO_LARGE.format(what), "drop-widening", "tl.program_id(0).to(tl.int64)", device="cpu")
    slot = "tl.load(read_index + row).to(tl.int64)"
    yield Equivalent(SPECULATION, TOO_LARGE.format("the pool"), "drop-widening", slot, device="cpu")
    yield Equivalent(
        f"{PLACES}:sequence_bounds", TOO_LARGE.format("tokens"), "drop-widening",
        "tl.load(cu_seqlens + n).to(tl.int64)", device="cpu",
    )  # fmt: skip
    for before, after in (("chunk_sequence + total + start", "chunk_sequence + total"), ("start + at", "at")):
        yield Equivalent(f"{PLACES}:chunk_table_kernel", TOO_LONG, "drop-offset", before, after, device="cpu")
    for line in ("kept +=", "before +="):
        yield Equivalent(RECURRENCE_BACKWARD, shared, "swap-heads", "HV", "H", line, "cpu")
    yield Equivalent(
        f"{PREPARE}:prepare_kernel", f"the other blocks are stored afterwards; {ONE_THREAD}", "drop-store-mask",
        "tl.store(out + c_at[:, None] * C + c_at[None, :], zeros, mask=block[:, None] < block[None, :])", device="cpu",
    )  # fmt: skip
    for place, given in (
        (RECURRENCE, "x_g"),
        ("common/triton_token:gate_at", "tl.load(A_log + head)"),
        (SPECULATION, "x_g"),
        (SPECULATION, "x_beta"),
        (SPECULATION, "tl.load(draft_g + write_slot * draft_g_slot + token * HV + head)"),
        (SPECULATION, "tl.load(draft_beta + write_slot * draft_beta_slot + token * HV + head)"),
    ):
        yield Equivalent(place, MORE_BITS, "drop-upcast", f"{given}.to(tl.float32)", given, device="cpu")
    for loaded in ("source", "d_final"):
        yield Equivalent(
            RECURRENCE_BACKWARD, "the interpreter lets a loop change a variable's type; the first product widens it",
            "drop-upcast", f"tl.load({loaded} + at, mask=inner, other=0.0).to(tl.float32)", device="cpu",
        )  # fmt: skip


INTERPRETED = tuple(_interpreted())
