"""Reviewed reasons of the convolution's kernels; see ``equivalent``."""

from __future__ import annotations

from collections.abc import Iterator

from deltaproof.verify.source_mutants.reviewed import (
    COLUMN_DROPPED,
    FITS,
    ONE_THREAD,
    PROMOTED,
    TOO_LARGE,
    TWICE,
    WIDE_ALREADY,
    Equivalent,
)

FILE = "causal_conv1d/triton_kernels"
KEEP, DECODE = f"{FILE}:_keep", f"{FILE}:conv_decode_kernel"
OUTPUTS, WINDOWS = f"{FILE}:conv_outputs_kernel", f"{FILE}:conv_windows_kernel"
CHOSEN = "where takes the other side there; only a memory checker sees the read"
UNUSED = "a padding row uses nothing of what is read; only a memory checker sees the read"
ALONE = COLUMN_DROPPED.format("every channel is computed by itself and stored under a mask")
FOUND = "the halving has found its sequence, or there is none; what it reads then decides nothing"
TAIL = "a token of no sequence gives 0 whatever is read for it; only a memory checker sees the read"


def _widened() -> Iterator[Equivalent]:
    bias = "tl.load(bias + c_at, mask=c_in, other=0.0)"
    weight = "tl.load(weight + c_at * W + j, mask=c_in, other=0.0)"
    for place, loads in (
        (KEEP, ("now", "tl.load(pool + old, mask=inner & (place < 0)[:, None] & used, other=0.0)")),
        (
            DECODE,
            (
                bias, weight, "tl.load(pool + old, mask=c_in & used & (back < 0), other=0.0)",
                "tl.load(x + (row * T + back) * C + c_at, mask=c_in & (back >= 0), other=0.0)",
            ),
        ),
        (
            OUTPUTS,
            (
                bias, weight, "tl.load(pool + old, mask=(used & (back < 0))[:, None] & c_in[None, :], other=0.0)",
                "tl.load(x + new, mask=(live & (back >= 0))[:, None] & c_in[None, :], other=0.0)",
            ),
        ),
    ):  # fmt: skip
        for loaded in loads:
            yield Equivalent(place, PROMOTED, "drop-upcast", f"{loaded}.to(tl.float32)", loaded)


def _read_for_nothing() -> Iterator[Equivalent]:
    for place in (DECODE, OUTPUTS):
        for loaded in ("bias + c_at", "weight + c_at * W + j"):
            yield Equivalent(place, ALONE, "drop-load-mask", f"tl.load({loaded}, mask=c_in, other=0.0)")
    for before, after, why in (
        ("inner & (place < 0)[:, None]", "(place < 0)[:, None]", ALONE),
        ("inner & (place < 0)[:, None]", "inner", CHOSEN),
        ("inner & (place >= 0)[:, None]", "(place >= 0)[:, None]", ALONE),
        ("inner & (place >= 0)[:, None]", "inner", CHOSEN),
        ("inner & (place >= 0)[:, None] & live", "inner & (place >= 0)[:, None]", UNUSED),
    ):
        yield Equivalent(KEEP, why, "drop-mask-term", before, after)
    yield Equivalent(KEEP, CHOSEN, "shift-bound", "place < 0", within="past = tl.load")
    yield Equivalent(KEEP, CHOSEN, "drop-load-mask", within="now = tl.load")
    for before, after, why in (
        ("c_in & used", "used", ALONE),
        ("c_in & used & (back < 0)", "c_in & used", CHOSEN),
        ("c_in & (back >= 0)", "back >= 0", ALONE),
        ("c_in & (back >= 0)", "c_in", CHOSEN),
    ):
        yield Equivalent(DECODE, why, "drop-mask-term", before, after)
    for before, after, why in (
        ("(used & (back < 0))[:, None] & c_in[None, :]", "(used & (back < 0))[:, None]", ALONE),
        ("used & (back < 0)", "used", CHOSEN),
        ("(live & (back >= 0))[:, None] & c_in[None, :]", "(live & (back >= 0))[:, None]", ALONE),
        ("(live & (back >= 0))[:, None] & c_in[None, :]", "c_in[None, :]", CHOSEN),
        ("live & (back >= 0)", "back >= 0", UNUSED),
        ("live & (back >= 0)", "live", CHOSEN),
    ):
        yield Equivalent(OUTPUTS, why, "drop-mask-term", before, after)
    for place in (DECODE, OUTPUTS):
        yield Equivalent(place, CHOSEN, "shift-bound", "back < 0", within="past = tl.load")
        yield Equivalent(place, CHOSEN, "drop-load-mask", within="now = tl.load")
    for place, index in ((DECODE, "row"), (OUTPUTS, "owner"), (WINDOWS, "n")):
        flag = f"tl.load(has_initial_state + {index}).to(tl.int32) != 0"
        yield Equivalent(place, UNUSED, "drop-mask-term", f"used & ({flag})", flag)


def _narrow() -> Iterator[Equivalent]:
    for place, line in ((DECODE, "steps ="), (OUTPUTS, "length ="), (WINDOWS, "length =")):
        for zeros in ("tl.zeros([], tl.int64)", "tl.zeros([BT], tl.int64)"):
            if (zeros == "tl.zeros([BT], tl.int64)") == (place == OUTPUTS):
                yield Equivalent(place, FITS, "drop-offset", f"{zeros} + T", "T", line)
        yield Equivalent(place, FITS, "narrow-zero", within=line)
    for line, before, after in (
        ("tokens = tl.zeros([], tl.int64) + T", "tl.zeros([], tl.int64) + T", "T"),
        ("tokens = (tl.zeros", "tl.zeros([], tl.int64) + N", "N"),
    ):
        yield Equivalent(OUTPUTS, FITS, "drop-offset", before, after, line)
        yield Equivalent(OUTPUTS, FITS, "narrow-zero", within=line)
    yield Equivalent(OUTPUTS, "the number of sequences fits into 32 bits", "narrow-zero", within="low =")
    yield Equivalent(OUTPUTS, "the first where makes a block of the number", "drop-offset", "low + N", "N")
    for place in (DECODE, OUTPUTS, WINDOWS):
        yield Equivalent(
            place, TOO_LARGE.format("inputs"), "drop-widening", "tl.program_id(0).to(tl.int64)", device="cpu"
        )
    yield Equivalent(DECODE, WIDE_ALREADY, "drop-widening", "tl.load(num_tokens + row).to(tl.int64)")
    yield Equivalent(OUTPUTS, WIDE_ALREADY, "drop-widening", within="behind =")


def _searched() -> Iterator[Equivalent]:
    yield Equivalent(OUTPUTS, FOUND, "drop-limit", "tl.minimum(middle + 1, N)", "middle + 1")
    yield Equivalent(OUTPUTS, FOUND, "drop-limit", "tl.minimum(middle + 1, high)", "middle + 1")
    yield Equivalent(OUTPUTS, TAIL, "drop-limit", "tl.minimum(low, N - 1)", "low")
    yield Equivalent(OUTPUTS, TAIL, "drop-limit", "tl.minimum(token // T, N - 1)", "token // T")
    yield Equivalent(OUTPUTS, TAIL, "drop-offset", "N - 1", "N")
    order = "the first sequence that ends behind a token begins at or before it, where bounds are in order"
    yield Equivalent(
        OUTPUTS, TWICE.format(order), "drop-mask-term", "(read_slot >= 0) & (read_slot < slots) & (place >= 0)"
    )
    yield Equivalent(
        OUTPUTS, TWICE.format("the store has this mask too"), "drop-mask-term",
        "(read_slot >= 0) & (read_slot < slots) & (place >= 0) & (place < length) & t_in",
    )  # fmt: skip
    yield Equivalent(KEEP, ONE_THREAD, "drop-barrier", device="cpu")


CONVOLUTION: tuple[Equivalent, ...] = (*_widened(), *_read_for_nothing(), *_narrow(), *_searched())
