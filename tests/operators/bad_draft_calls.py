"""The bad speculative calls of decode: the drafts' memory, the halves and the counts."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import Drafts
from tests.operators.bad_calls import DECODE, HV, INTS, B, Call, Change, H, K, Row, S, T, V, a_tensor, cast, cut, to

D = 4
ONE = (DECODE,)
SHAPES = {"k": (H, K), "v": (HV, V), "g": (HV,), "beta": (HV,)}


def speculative(c: Call) -> Call:
    """Return the arguments that make a decode a speculative step: row 0 takes in two drafts of slot 1."""
    parts = (torch.zeros(S, 2, D, *shape) for shape in SHAPES.values())
    halves, counts = torch.tensor([0, -1]), torch.tensor([99, 2, 0, 0, 99, 0])
    return {"drafts": Drafts(*parts), "draft_half": halves, "accepted": counts}


def part(name: str, change: Change) -> Change:
    """Change one part of the drafts, which ``change`` is given under its name."""
    return lambda c: {"drafts": c["drafts"]._replace(**change({name: getattr(c["drafts"], name)}))}


def beyond(count: int, slot: int) -> Change:
    return lambda c: {"accepted": c["accepted"].clone().index_fill_(0, torch.tensor([slot]), count)}


def late(c: Call) -> Call:
    memory = torch.zeros(1 + c["g"].numel())
    return {"g": memory[1:].view(c["g"].shape)}


def same_memory(c: Call) -> Call:
    """Drafts of v in the memory of the pool: both have S slots, and heads of K * V elements."""
    memory = torch.zeros(S, 2, D, HV, V)
    return {"pool": memory.view(S, 2 * D * HV * V)[:, : HV * K * V].view(S, HV, K, V), "drafts": c["drafts"]._replace(
        v=memory)}  # fmt: skip


ROWS = [
    Row(ONE, "draft_half", "None without drafts", "Tensor", to(draft_half=torch.tensor([0, 1]))),
    Row(ONE, "accepted", "None without drafts", "Tensor", to(accepted=torch.zeros(S, dtype=torch.int32))),
    Row(ONE, "drafts", "Drafts(k, v, g, beta) or None", "list", to(drafts=[1.0]), speculative),
    Row(
        ONE, "write_index", "shape [N] with drafts", "shape [N, T]",
        to(write_index=torch.tensor([[0, 2, -1], [3, 5, S]])), speculative,
    ),
    Row(ONE, "drafts.k", f"a tensor [{S}, 2, D, {H}, {K}]", "NoneType", part("k", to(k=None)), speculative),
    Row(ONE, "drafts.k", f"shape [{S}, 2, D, {H}, {K}]", f"{[S, 2, D, H, 2]}",
        part("k", cut("k", ..., slice(2))), speculative),
    Row(ONE, "drafts.v", f"shape [{S}, 2, {D}, {HV}, {V}]", f"{[S, 2, 3, HV, V]}",
        part("v", cut("v", slice(None), slice(None), slice(3))), speculative),
    Row(ONE, "drafts.g", "float32", "bfloat16", part("g", cast("g", torch.bfloat16)), speculative),
    Row(
        ONE, "drafts.k", f"room for T = {T} tokens", "D = 2",
        lambda c: {"drafts": Drafts(*(x[:, :, :2].contiguous() for x in c["drafts"]))}, speculative,
    ),
    Row(ONE, "drafts.beta", "contiguous slots", "strides",
        part("beta", lambda c: {"beta": torch.zeros(S, 2, HV, D).mT}), speculative),
    Row(ONE, "drafts.g", "slots that do not overlap", "a slot stride of 16 elements",
        part("g", lambda c: {"g": torch.zeros(500).as_strided((S, 2, D, HV), (16, 16, 4, 1))}), speculative),
    Row(ONE, "drafts.g", "a slot stride that is a multiple of 16 bytes", "132 bytes",
        part("g", lambda c: {"g": torch.zeros(500).as_strided((S, 2, D, HV), (33, 16, 4, 1))}), speculative),
    Row(ONE, "drafts.g", "memory aligned to 16 bytes", "address % 16 = 4", part("g", late), speculative),
    Row(ONE, "drafts.v", "a tensor without gradient", "requires_grad=True",
        part("v", lambda c: {"v": c["v"].clone().requires_grad_()}), speculative),
    Row(ONE, "drafts.v", "memory of its own", "memory of pool", same_memory, speculative),
    *a_tensor(ONE, "draft_half", f"[{B}]", INTS, speculative),
    *a_tensor(ONE, "accepted", f"[{S}]", INTS, speculative),
    Row(ONE, "accepted", f"values from 0 to D = {D}", "5", beyond(5, 1), speculative),
    Row(ONE, "accepted", f"values from 0 to D = {D}", "-1", beyond(-1, 1), speculative),
]  # fmt: skip
