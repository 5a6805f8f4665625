"""Mutants that change nothing, or nothing that the contract promises: looked at by hand, each with its reason.

They count as survivors, and are printed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from deltaproof.verify.source_mutants.equivalent_conv import CONVOLUTION
from deltaproof.verify.source_mutants.equivalent_interpreted import INTERPRETED
from deltaproof.verify.source_mutants.generate import SourceMutant
from deltaproof.verify.source_mutants.reviewed import (
    BELOW_SIGHT,
    COLUMN_DROPPED,
    FITS,
    INTERPRETED_ONLY,
    NO_ROW,
    PROMOTED,
    ROW_DROPPED,
    TWICE,
    WIDE_ALREADY,
    Equivalent,
)

INPUTS, PLACES = "common/triton_inputs", "common/triton_places"
INVERSE, PREPARE = "common/triton_inverse", "gated_delta_rule/triton_prepare"
RECURRENCE = "common/triton_recurrence:recurrence_kernel"
SPECULATION = "common/triton_speculation:speculation_kernel"
TOKEN = "common/triton_token:token_at"
RECURRENCE_BACKWARD = "common/triton_recurrence_backward:recurrence_backward_kernel"
GRADIENTS, OUTPUTS = "gated_delta_rule/triton_gradients", "gated_delta_rule/triton_outputs"
STATES, TRANSFORM = "common/triton_states", "common/triton_transform:transform_kernel"
VALUE = "tl.load(v + (token * HV + head) * V + v_at, mask=v_in, other=0.0)"


def _widened() -> Iterator[Equivalent]:
    """Yield casts to fp32 that Triton makes by itself, because an operand beside them is fp32."""
    for place, loaded in (
        (f"{INPUTS}:log_gate", "tl.load(dt_bias + head)"),
        (f"{INPUTS}:head_gradients_kernel", "tl.load(parts + place, mask=inside, other=0.0)"),
        (f"{INPUTS}:gate_gradients_kernel", "tl.load(dt_bias + head, mask=head < HV, other=0.0)"),
        (RECURRENCE, "x_v"),
        (SPECULATION, "x_v"),
        (SPECULATION, "b_v"),
        ("common/triton_token:gate_at", "tl.load(dt_bias + head)"),
        (RECURRENCE_BACKWARD, VALUE),
        (RECURRENCE_BACKWARD, "tl.load(v + value, mask=v_in, other=0.0)"),
        (RECURRENCE_BACKWARD, "tl.load(do + value, mask=v_in, other=0.0)"),
        (f"{GRADIENTS}:key_gradients_kernel", "S"),
        (f"{GRADIENTS}:key_gradients_kernel", "dS"),
        (f"{GRADIENTS}:key_gradients_kernel", "b_q"),
        (f"{GRADIENTS}:key_gradients_kernel", "b_k"),
        (TRANSFORM, "b_k"),
        (f"{STATES}:states_kernel", "b_u"),
        (f"{STATES}:reverse_states_kernel", "tl.load(states + tile, mask=inner & (chunks > 1), other=0.0)"),
        (f"{STATES}:reverse_states_kernel", "tl.load(source + at, mask=inner & (chunks == 1), other=0.0)"),
        (f"{STATES}:reverse_states_kernel", "b_de"),
        (f"{STATES}:reverse_states_kernel", "b_do"),
    ):
        yield Equivalent(place, PROMOTED, "drop-upcast", f"{loaded}.to(tl.float32)", loaded)
    rows = "stored(b_k * k_length, low)"
    place = "kda/triton_gradients:channel_key_gradients_kernel"
    yield Equivalent(place, PROMOTED, "drop-upcast", f"{rows}.to(tl.float32)", rows)


def _wide() -> Iterator[Equivalent]:
    """Yield casts to 64 bits beside which nothing stays narrow."""
    for place, loaded in (
        (f"{INPUTS}:token_rows", "tl.load(cu_seqlens + N)"),
        (f"{PLACES}:sequence_bounds", "tl.load(cu_seqlens + n + 1)"),
        (f"{PLACES}:zero_tail_kernel", "tl.load(cu_seqlens + N)"),
        (f"{PLACES}:sequence_place", "tl.load(chunk_offsets + n + 1)"),
        (RECURRENCE, "tl.load(num_tokens + row)"),
        (SPECULATION, "tl.load(num_tokens + row)"),
    ):
        yield Equivalent(place, WIDE_ALREADY, "drop-widening", f"{loaded}.to(tl.int64)", loaded)
    place = f"{PLACES}:chunk_place"
    yield Equivalent(place, WIDE_ALREADY, "drop-widening", "(chunk - tl.load(chunk_offsets + n)).to(tl.int64)")
    yield Equivalent(place, WIDE_ALREADY, "drop-widening", "tl.minimum(T - inside, C).to(tl.int64)")
    slot = "a slot that is only compared with the number of slots"
    yield Equivalent(f"{OUTPUTS}:outputs_kernel", slot, "drop-widening", "tl.load(read_index + n).to(tl.int64)")
    half = "a half is 0 or 1, and every offset that it enters has a 64-bit operand besides"
    yield Equivalent(SPECULATION, half, "drop-widening", "tl.load(draft_half + row).to(tl.int64)")
    counted = "a count is cut to D, and only a loop's end"
    accepted = "tl.load(accepted + write_slot, mask=replays, other=0)"
    yield Equivalent(SPECULATION, counted, "drop-widening", f"{accepted}.to(tl.int64)", accepted)
    none = "a loop to a number below 0 does nothing"
    yield Equivalent(SPECULATION, none, "drop-limit", "tl.maximum(count, 0)", "count")
    for place, line in (
        (f"{PLACES}:sequence_place", "length ="),
        (RECURRENCE, "count ="),
        (SPECULATION, "steps ="),
    ):
        yield Equivalent(place, FITS, "narrow-zero", within=line)
        yield Equivalent(place, FITS, "drop-offset", "tl.zeros([], tl.int64) + T", "T", line)


def _dropped() -> Iterator[Equivalent]:
    """Yield loads whose mask keeps out what nobody uses."""
    gate = "tl.load(G + token * HV + head, mask=inside, other=0.0)"
    strength = "tl.load(strength + token * HV + head, mask=inside, other=0.0)"
    decay = "chunk_decay takes no such row"
    chosen = "are replaced where this is used"
    for place, loaded, why in (
        (f"{INPUTS}:log_gate", "tl.load(g + at, mask=inside, other=0.0)", chosen),
        (f"{INPUTS}:write_strength", "tl.load(beta + at, mask=inside, other=0.0)", chosen),
        (f"{OUTPUTS}:outputs_kernel", gate, f"{decay}, and no product adds up such rows"),
        (f"{GRADIENTS}:local_gradients_kernel", gate, decay),
        (
            f"{GRADIENTS}:local_gradients_kernel",
            strength,
            "each is a row of its own, which the mask of the store drops",
        ),
        (f"{GRADIENTS}:score_gradients_kernel", "tl.load(G + gate, mask=inside, other=0.0)", decay),
        (
            f"{GRADIENTS}:key_gradients_kernel",
            "tl.load(G + gate, mask=inside, other=0.0)",
            "where drops them before rows are added up",
        ),
        (f"{STATES}:states_kernel", gate, chosen),
        (f"{STATES}:states_kernel", strength, chosen),
        (f"{STATES}:reverse_states_kernel", strength, chosen),
    ):
        yield Equivalent(place, ROW_DROPPED.format(why), "drop-load-mask", loaded)
    alone = "every column is computed by itself and stored under a mask"
    draft = "tl.load(draft_v + write_slot * draft_v_slot + (token * HV + head) * V + v_at, mask=v_in, other=0.0)"
    value = "(v_at < V) & there"
    yield Equivalent(TOKEN, COLUMN_DROPPED.format(alone), "drop-mask-term", value, "there")
    yield Equivalent(TOKEN, COLUMN_DROPPED.format(alone), "shift-bound", "v_at < V")
    behind = "the token behind the last is read and not used; only a memory checker sees the read"
    for operator, before, after in (
        ("drop-mask-term", value, "v_at < V"),
        ("drop-mask-term", "(k_at < K) & there", "k_at < K"),
        ("drop-load-mask", "tl.load(g + token * HV + head, mask=there, other=0.0)", ""),
        ("drop-load-mask", "tl.load(beta + token * HV + head, mask=there, other=0.0)", ""),
    ):
        yield Equivalent(TOKEN, behind, operator, before, after)
    for place, loaded in (
        (RECURRENCE_BACKWARD, VALUE),
        (SPECULATION, VALUE),
        (SPECULATION, draft),
        (f"{INPUTS}:gate_gradients_kernel", "tl.load(dt_bias + head, mask=head < HV, other=0.0)"),
        (f"{INPUTS}:gate_gradients_kernel", "tl.load(A_log + head, mask=head < HV, other=0.0)"),
    ):
        yield Equivalent(place, COLUMN_DROPPED.format(alone), "drop-load-mask", loaded)
    for line in ("inside = used", "x += tl.load(dt_bias", "rate = -tl.exp(tl.load(A_log"):
        yield Equivalent(
            f"{INPUTS}:gate_gradients_kernel", COLUMN_DROPPED.format(alone), "shift-bound", "head < HV", within=line
        )
    stored = "each is a row of its own, which the mask of the store drops"
    yield Equivalent(
        f"{OUTPUTS}:outputs_kernel", ROW_DROPPED.format(stored), "drop-mask-term",
        "inside[:, None] & k_in[None, :]", "k_in[None, :]", "b_q = tl.load(q",
    )  # fmt: skip
    yield Equivalent(
        f"{STATES}:reverse_states_kernel",
        "an empty sequence has no chunk that takes the value; only a memory checker sees the read",
        "shift-bound", "chunks > 0",
    )  # fmt: skip
    for rest in ("1", "t"):
        yield Equivalent(
            RECURRENCE, "the token behind the last is read and not taken; only a memory checker sees the read",
            "drop-addend", "t + 1", rest,
        )  # fmt: skip
    yield Equivalent(
        RECURRENCE_BACKWARD, "one segment more has no tokens; only a memory checker sees the read",
        "drop-offset", "count + SEGMENT - 1", "count + SEGMENT",
    )  # fmt: skip
    yield Equivalent(
        f"{OUTPUTS}:outputs_kernel", COLUMN_DROPPED.format(alone), "drop-mask-term",
        "k_in[:, None] & v_in[None, :]", "k_in[:, None]",
    )  # fmt: skip
    errors = "b_e = tl.load(errors"
    yield Equivalent(
        f"{OUTPUTS}:outputs_kernel", COLUMN_DROPPED.format(alone), "drop-mask-term",
        "inside[:, None] & v_in[None, :]", "inside[:, None]", errors,
    )  # fmt: skip


def _said_twice() -> Iterator[Equivalent]:
    """Yield conditions that another one repeats."""
    lower = "at[:, None] > at[None, :]"
    place = f"{PREPARE}:_lower"
    taken = TWICE.format("invert_16 takes only what lies below the diagonal")
    yield Equivalent(place, taken, "shift-bound", lower)
    yield Equivalent(place, taken, "drop-select", "tl.where(lower, a * tl.exp(tl.where(lower, difference, 0.0)), 0.0)")
    overflow = "what overflows above the diagonal is infinite, and the outer condition takes nothing from there"
    yield Equivalent(place, overflow, "drop-select", "tl.where(lower, difference, 0.0)")
    yield Equivalent(
        f"{OUTPUTS}:chunk_decay", overflow, "drop-select", "tl.where(lower, b_G[:, None] - b_G[None, :], 0.0)"
    )
    place = f"{INVERSE}:invert_16"
    given = TWICE.format("the caller's block is zero elsewhere")
    yield Equivalent(place, given, "shift-bound", lower)
    yield Equivalent(place, given, "drop-select", f"tl.where({lower}, -a, 0.0)")
    zero = "a row is zero from its diagonal on, so the rows from there on are multiplied by zero"
    yield Equivalent(place, zero, "shift-bound", "at[:, None] < i")
    yield Equivalent(place, zero, "drop-select", "tl.where(at[:, None] < i, inverse, 0.0)")


def _out_of_sight() -> Iterator[Equivalent]:
    """Yield what adds nothing, or less than any bound lets through."""
    alike = "every program that has it stores the same"
    yield Equivalent(SPECULATION, alike, "drop-mask-term", "kept & (block == 0)", "kept")
    yield Equivalent(SPECULATION, alike, "drop-mask-term", "first & (head % (HV // H) == 0)", "first")
    for place, before, why in (
        (f"{GRADIENTS}:score_gradients_kernel", "tl.where(inside, tl.sum(both, 1) - tl.sum(both, 0), 0.0)", "decays"),
        (f"{GRADIENTS}:key_gradients_kernel", "tl.where(inside, tl.exp(end - b_G), 0.0)", "errors and gradients"),
        (f"{STATES}:reverse_states_kernel", "tl.where(inside, b_b * tl.exp(end - b_G), 0.0)", "strengths"),
    ):
        yield Equivalent(place, NO_ROW.format(f"their {why} are"), "drop-select", before)
    for count in (16, 32):
        whole = NO_ROW.format(f"a chunk of exactly {count} tokens has none behind them")
        yield Equivalent(f"{PREPARE}:prepare_kernel", whole, "shift-bound", f"count > {count}")
    yield Equivalent("common/triton_token:advanced", BELOW_SIGHT, "drop-clamp", "tl.maximum(b_g, MIN_LOG_GATE)")
    yield Equivalent(
        f"{INPUTS}:gate_gradients_kernel", BELOW_SIGHT, "drop-select", "tl.where(y >= MIN_LOG_GATE, d, 0.0)"
    )
    yield Equivalent(
        f"{PLACES}:chunk_table_kernel", "a number is stored in every place", "drop-addend",
        "tl.zeros([BLOCK], tl.int32) + n", "n",
    )  # fmt: skip


EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent("common/triton_language:stored", INTERPRETED_ONLY, device="cuda"),
    Equivalent("common/triton_language:dot", INTERPRETED_ONLY, "drop-upcast", device="cuda"),
    *_widened(),
    *_wide(),
    *_dropped(),
    *_said_twice(),
    *_out_of_sight(),
    *INTERPRETED,
    *CONVOLUTION,
)


def reason_of(mutant: SourceMutant, device: str, entries: Iterable[Equivalent] = EQUIVALENT) -> str:
    """Return why a mutant cannot be killed on a device, or an empty text."""
    met = (entry.reason for entry in entries if entry.meets(mutant) and entry.device in ("", device))
    return next(met, "")


def stale(
    mutants: Sequence[SourceMutant],
    killed: Iterable[SourceMutant],
    device: str,
    entries: Iterable[Equivalent] = EQUIVALENT,
) -> list[str]:
    """Return what is wrong with the entries: those that meet none of all mutants, or one that was killed."""
    dead = list(killed)
    found = []
    for entry in entries:
        if not any(entry.meets(mutant) for mutant in mutants):
            found.append(f"{entry}: no such mutant")
        elif entry.device in ("", device):
            found += [f"{entry}: {mutant.id} is killed" for mutant in dead if entry.meets(mutant)]
    return found
