"""The bad calls of decode and prefill: the pool's memory, the indices, who writes which slot, and gradients."""

from __future__ import annotations

import torch

from tests.operators.bad_calls import (
    DECODE,
    FLOATS,
    HERE,
    HV,
    INTS,
    POOL,
    PREFILL,
    B,
    Call,
    Change,
    H,
    K,
    Row,
    S,
    T,
    V,
    a_tensor,
    cast,
    cut,
    gated,
    meta,
    packed,
    plain,
    to,
    with_grad,
)  # fmt: skip

INNER = "a contiguous inner matrix (a pool is never copied)"
STRIDE = "a {} stride that is a multiple of 16 bytes"
SLOTS, HEADS = HV * 64, 64  # strides, in elements, with room for a head of K * V = 32


def strided(slot: int, head: int, offset: int = 0) -> Change:
    """Return a pool with these strides, in elements, in memory that starts ``offset`` elements late."""
    shape, strides = (S, HV, K, V), (slot, head, V, 1)
    return lambda c: {"pool": torch.zeros(offset + S * SLOTS).as_strided(shape, strides, offset)}


def inner_step(step: int) -> Change:
    """Return a pool whose rows lie right but whose columns are ``step`` elements apart."""
    return lambda c: {"pool": torch.zeros(S * SLOTS).as_strided((S, HV, K, V), (SLOTS, HEADS, V, step))}


def writes(*values: int | list[int]) -> Change:
    return to(write_index=torch.tensor(values))


def counts(*values: int) -> Change:
    return to(num_tokens=torch.tensor(values))


def kept(*values: list[int]) -> Change:
    return to(checkpoint_index=torch.tensor(values))


def of(tokens: int) -> Change:
    return lambda c: plain(DECODE, tokens)


def fresh(*values: bool) -> Change:
    return to(has_initial_state=torch.tensor(values))


def out(c: Call) -> Call:
    return {"out": torch.zeros(B, T, HV, V)}


def checkpoints(c: Call) -> Call:
    """Return prefill's arguments with two checkpoints a sequence, all slots different."""
    kept = {"checkpoint_every": 16, "checkpoint_index": torch.tensor([[0, 2], [3, 5]])}
    return plain(PREFILL, 32) | {"chunk_size": 16} | kept


def merged(*changes: Change) -> Change:
    return lambda c: {name: value for change in changes for name, value in change(c).items()}


EACH = ([0, 2, -1], [3, 5, S])  # a slot for the state after each token, or none
ROOMY = strided(SLOTS, HEADS)

MEMORY = [
    *a_tensor(POOL, "pool", f"[S, {HV}, {K}, {V}]", FLOATS),
    Row(POOL, "pool", f"shape [S, {HV}, {K}, {V}]", f"shape {[S, H, K, V]}", cut("pool", slice(None), slice(H))),
    Row(POOL, "pool", FLOATS, "float64", cast("pool", torch.float64)),
    Row(POOL, "pool", f"shape [S, {HV}, {V}, {K}] in layout v_first", "the other layout", to(state_layout="v_first")),
    Row(
        POOL, "pool", f"shape [S, {HV}, {K}, {V}] in layout k_first", f"shape {[S, HV, V, K]}, the other layout",
        lambda c: {"pool": c["pool"].mT.contiguous()},
    ),
    Row(
        POOL, "pool", INNER, f"strides {(HV * K * V, K * V, 1, K)}",
        lambda c: {"pool": c["pool"].mT.contiguous().mT},
    ),
    Row(
        POOL, "pool", INNER, f"strides {(2 * HV * K * V, 2 * K * V, 16, 1)}",
        lambda c: {"pool": torch.zeros(S, HV, K, 2 * V)[..., :V]},
    ),
    Row(POOL, "pool", INNER, f"strides {(SLOTS, HEADS, V, 2)}", inner_step(2), inner_step(1)),
    Row(POOL, "pool", "memory aligned to 16 bytes", "address % 16 = 4", strided(SLOTS, HEADS, 1), ROOMY),
    Row(POOL, "pool", STRIDE.format("slot"), "1016 bytes", strided(SLOTS - 2, 32), ROOMY),
    Row(POOL, "pool", STRIDE.format("head"), "132 bytes", strided(SLOTS, 33), ROOMY),
    Row(POOL, "pool", "slots that do not overlap", "a slot stride of 0 elements", strided(0, 32), ROOMY),
    Row(POOL, "pool", "heads that do not overlap", "a head stride of 16 elements", strided(SLOTS, 16), ROOMY),
    Row(
        POOL, "pool", "slots and heads that do not overlap", "strides of 32 and 32 elements",
        strided(32, 32), strided(32, 32 * S),
    ),
    Row(
        POOL, "pool", "slots and heads that do not overlap", "strides of 64 and 80 elements",
        strided(64, 80), strided(128, 160),
    ),
    Row(POOL, "pool", "a tensor without gradient", "requires_grad=True", with_grad("pool")),
    *[
        Row(POOL, name, "no gradient: pool forms are for inference", "requires_grad=True", with_grad(name), gated)
        for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias")
    ],
]  # fmt: skip

INDICES = [
    *a_tensor(POOL, "read_index", f"[{B}]", INTS),
    Row(POOL, "read_index", f"shape [{B}]", "shape [1]", cut("read_index", slice(1))),
    Row(POOL, "read_index", INTS, "float32", cast("read_index", torch.float32)),
    Row(POOL, "read_index", INTS, "int16", cast("read_index", torch.int16)),
    Row((PREFILL,), "read_index", "shape [3]", "shape [2]", to(cu_seqlens=torch.tensor([0, 2, 3, 5])), packed),
    *a_tensor(POOL, "has_initial_state", f"[{B}]", "bool", fresh(True, False)),
    Row(POOL, "has_initial_state", "bool", "int64", cast("has_initial_state", torch.int64), fresh(True, False)),
    Row(POOL, "has_initial_state", f"shape [{B}]", "shape [3]", fresh(True, True, True), fresh(True, True)),
    *a_tensor(POOL, "write_index", f"[{B}]", INTS, writes(0, 5)),
    Row(POOL, "write_index", f"shape [{B}]", "shape [3]", writes(0, 5, 2), writes(0, 5)),
    Row(POOL, "write_index", INTS, "uint8", cast("write_index", torch.uint8), writes(0, 5)),
    Row((DECODE,), "write_index", f"shape {[B, T]}", f"shape {[B, 2]}", writes([0, 1], [2, 3]), writes(*EACH)),
    Row((PREFILL,), "write_index", f"shape [{B}]", f"shape {[B, T]}", writes(*EACH), writes(0, 5)),
    Row((DECODE,), "q", "T from 1 to 16 tokens a row", "T = 0", of(0), of(1)),
    Row((DECODE,), "q", "T from 1 to 16 tokens a row", "T = 17", of(17), of(16)),
    *a_tensor((DECODE,), "num_tokens", f"[{B}]", INTS, counts(0, T)),
    Row((DECODE,), "num_tokens", f"shape [{B}]", "shape [1]", counts(1), counts(0, T)),
    Row((DECODE,), "num_tokens", INTS, "bool", cast("num_tokens", torch.bool), counts(0, T)),
    Row((DECODE,), "num_tokens", f"values from 0 to T = {T}", "-1", counts(0, -1), counts(0, T)),
    Row((DECODE,), "num_tokens", f"values from 0 to T = {T}", "4", counts(4, T), counts(0, T)),
    *a_tensor((DECODE,), "out", f"[{B}, {T}, {HV}, {V}]", "float32", out),
    Row((DECODE,), "out", f"shape {[B, T, HV, V]}", f"shape {[B, T, HV, K]}", cut("out", ..., slice(K)), out),
    Row((DECODE,), "out", "float32", "bfloat16", cast("out", torch.bfloat16), out),
    Row(
        (DECODE,), "out", "a contiguous tensor", f"strides {(V, B * V, B * T * V, 1)}",
        lambda c: {"out": torch.zeros(HV, T, B, V).transpose(0, 2)}, out,
    ),
    Row((DECODE,), "out", "memory of its own", "memory of v", lambda c: {"out": c["v"]}, out),
]  # fmt: skip

ONCE = "each slot written by one row at most"
ALONE = "no row that reads a slot another row writes"

WRITERS = [
    Row(POOL, "read_index", ONCE, "slot 4 written 2 times", to(read_index=torch.tensor([4, 4]))),
    Row(POOL, "write_index", ONCE, "slot 5 written 2 times", writes(5, 5), writes(5, -1)),
    Row(POOL, "write_index", ONCE, "slot 0 written 2 times", writes(0, 0), writes(0, S)),
    Row((DECODE,), "write_index", ONCE, "slot 2 written 2 times", writes([0, 2, 2], [3, 5, -1]), writes(*EACH)),
    Row((DECODE,), "write_index", ONCE, "slot 2 written 3 times", writes([0, 2, 2], [3, 5, 2]), writes(*EACH)),
    Row(
        (DECODE,), "write_index", ONCE, "slot 2 written 2 times", counts(3, 1),
        merged(writes([0, 2, 2], [3, 5, 5]), counts(2, 1)),
    ),
    Row(POOL, "read_index", ALONE, "slot 4 read by row 1 and written by row 0", writes(4, 5), writes(0, 5)),
    Row(POOL, "read_index", ALONE, "slot 1 read by row 0 and written by row 1", writes(0, 1), writes(1, 0)),
    Row(
        POOL, "read_index", ALONE, "slot 4 read by row 1 and written by row 0",
        fresh(True, True), merged(writes(4, 5), fresh(True, False)),
    ),
    Row(
        (DECODE,), "read_index", ALONE, "slot 1 read by row 0 and written by row 1",
        writes([2, 3, 0], [5, 1, -1]), writes([2, 3, 1], [5, 4, -1]),
    ),
]  # fmt: skip

MANY = f"shape [{B}, M]"
EVERY = "a positive multiple of chunk_size = 16"
TOGETHER = "checkpoint_every and checkpoint_index together"

CHECKPOINTS = [
    Row((PREFILL,), "checkpoint_every", TOGETHER, "only checkpoint_every", to(checkpoint_index=None), checkpoints),
    Row((PREFILL,), "checkpoint_every", TOGETHER, "only checkpoint_index", to(checkpoint_every=None), checkpoints),
    Row((PREFILL,), "checkpoint_index", f"a tensor [{B}, M]", "list", to(checkpoint_index=[[0], [1]]), checkpoints),
    Row((PREFILL,), "checkpoint_index", MANY, f"shape [{B}]", cut("checkpoint_index", ..., 0), checkpoints),
    Row((PREFILL,), "checkpoint_index", MANY, "shape [1, 2]", cut("checkpoint_index", slice(1)), checkpoints),
    Row((PREFILL,), "checkpoint_index", INTS, "float16", cast("checkpoint_index", torch.float16), checkpoints),
    Row((PREFILL,), "checkpoint_index", HERE, "one on meta", meta("checkpoint_index"), checkpoints),
    *[
        Row((PREFILL,), "checkpoint_every", EVERY, str(every), to(checkpoint_every=every), checkpoints)
        for every in (0, -16, 24, 16.0)
    ],
    Row(
        (PREFILL,), "checkpoint_index", ONCE, "slot 2 written 2 times",
        kept([0, 2], [2, 5]), checkpoints,
    ),
    Row(
        (PREFILL,), "checkpoint_index", ONCE, "slot 1 written 2 times",
        kept([0, 1], [3, 5]), checkpoints,
    ),
    Row(
        (PREFILL,), "read_index", ALONE, "slot 1 read by row 0 and written by row 1",
        kept([0, 2], [3, 1]),
        merged(checkpoints, writes(-1, -1), kept([0, 2], [3, 5])),
    ),
]  # fmt: skip

ROWS = MEMORY + INDICES + WRITERS + CHECKPOINTS
