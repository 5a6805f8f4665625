"""The kernels for Hopper against the oracle, and that nothing depends on what it must not.

``test_triton_interpreted.py`` runs this file: on the CPU in an interpreter of Gluon, on a GPU as it is.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from deltaproof.ops.common import gluon_interpreter
from deltaproof.ops.common.allocation import forced_init, poison_
from deltaproof.ops.common.hopper_stitch import stitch_kernel
from deltaproof.ops.common.hopper_tables import WalkTable, stitch_rows
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.gated_delta_rule.hopper_backend import HopperBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.execute import execute
from deltaproof.verify.observation import compare
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target
from tests.ops.hopper_calls import (
    assert_appended_tokens_change_no_bit,
    assert_rows_behind_reach_nothing,
    launched,
    made,
)

DEVICE = "cpu" if INTERPRETED else "cuda"
CONTEXT = Context(Target(HopperBackend(), operator("gated_delta_rule"), "test", face=False), seed=0, device=DEVICE)
IN_KERNEL: dict[str, Any] = {"gate_in_kernel": True, "beta_sigmoid": True, "neg_eigval": True}
POOL: dict[str, Any] = {"B": 2, "slots": 7, "read": (3, 1)}

CASES = {
    ("values", "chunk"): {
        "two chunks": {},
        "heads of 128 and every option": {"K": 128, "V": 128, "layout": "v_first", **IN_KERNEL},
        "float16": {"dtype": "float16", "layout": "v_first"},
        "one token": {"T": 1},
        "a whole chunk": {"T": 64, "B": 2},
        "many chunks of slow gates": {"T": 400, "HV": 1, "gates": "slow"},
        "chunks that forget beside chunks that do not": {"T": 330, "gates": "mixed"},
        "a pack with empty sequences and a tail": {"seqlens": (0, 65, 0, 3, 128), "tail": 5, "gate_in_kernel": True},
        "a pack with a long tail": {"seqlens": (65, 3), "tail": 150},
        "heads in odd groups": {"H": 2, "HV": 6, "K": 128, "V": 128},
        "a head each": {"H": 4, "HV": 4, "K": 128, "seqlens": (3, 0, 70)},
        "a head each of an odd number": {"H": 3, "HV": 3},
        "neither state": {"initial_state": False, "final_state": False},
        "a state of two bytes": {"state_dtype": "bfloat16", "layout": "v_first"},
    },
    ("values", "prefill"): {
        "a pool": POOL,
        "a pack whose last row is padding, and a tail": {"slots": 7, "read": (3, -1), "seqlens": (70, 140), "tail": 70},
        "checkpoints": {**POOL, "T": 150, "checkpoint_every": 64, "checkpoints": ((4, 5), (6, -1)), **IN_KERNEL},
    },
    ("correlated_keys", "chunk"): {"keys that are almost one": {"keys": "correlated"}},
    ("extreme_gates", "chunk"): {
        "gates at -1e4 and at 0": {"gates": "mixed"},
        "gates that overflow": {"gates": "overflow", "gate_in_kernel": True},
    },
    ("gradients", "chunk"): {"gradients, from what the forward kept": {"K": 64, "T": 70, "layout": "v_first"}},
}
NAMED = [
    pytest.param(probe, form, changes, block, split, id=f"{about}, blocks of {block}{', split' if split else ''}")
    for (probe, form), cases in CASES.items()
    for about, changes in cases.items()
    for block in (64, 128)
    for split in (0, 1)
    if changes.get("V", 64) % block == 0
]


@pytest.mark.parametrize(("probe", "form", "changes", "block", "split"), NAMED)
def test_it_agrees_with_the_oracle(probe, form, changes, block, split, monkeypatch):
    launched(monkeypatch, WalkTable(block, split))
    check = execute(CONTEXT, probes()[probe], made(form, **changes))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


def test_the_split_depends_on_the_number_of_sequences_and_not_on_their_lengths():
    assert WalkTable.of(128, 8, 1).split == WalkTable.of(128, 8, 5).split == 32
    assert WalkTable.of(128, 8, 6).split == WalkTable.of(128, 64, 1).split == 0
    assert WalkTable.of(128, 32, 1).split == WalkTable.of(64, 64, 1).split == 64


def test_programs_between_segments_have_more_rows_where_heads_are_many():
    assert stitch_rows(128, 16) == stitch_rows(64, 32) == 16
    assert stitch_rows(128, 17) == stitch_rows(64, 64) == 32


@pytest.mark.parametrize("split", [1, 2])
def test_tokens_that_are_appended_change_no_bit_before_them(split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call = CONTEXT.call(made("chunk", T=330))
    assert_appended_tokens_change_no_bit(HopperBackend(), call, (1, 64, 65, 128, 200, 256))


@pytest.mark.parametrize("split", [1, 2])
def test_a_first_segment_leaves_its_state_to_the_bit(split, monkeypatch):
    call = CONTEXT.call(made("chunk", T=64 * split + 20))
    found = []
    for how in (0, split):
        launched(monkeypatch, WalkTable(64, how))
        found.append(HopperBackend().chunk(call))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["chunk", "prefill"])
@pytest.mark.parametrize(("invariant", "counts"), [(True, {1}), (False, {3})], ids=["batch invariant", "not"])
def test_how_a_batch_is_split_is_asked_of_one_sequence_where_it_must_not_matter(form, invariant, counts, monkeypatch):
    asked = []
    table = WalkTable.of

    def noted(V: int, HV: int, sequences: int) -> WalkTable:
        asked.append(sequences)
        return table(V, HV, sequences)

    monkeypatch.setattr(WalkTable, "of", staticmethod(noted))
    rows = {"slots": 7, "read": (3, 1, 5)} if form == "prefill" else {}
    call: Any = CONTEXT.call(made(form, B=3, T=5, **rows))
    getattr(HopperBackend(), form)(call.with_(options=replace(call.options, batch_invariant=invariant)))
    assert set(asked) == counts


@pytest.mark.parametrize("bounds", [[0, 500, 0, 500, 0, 500], [0, -5, 2**31 - 1, 10, 533, 0], [533, 0, 400, 7, 500, 9]])
def test_a_corrupt_pack_reaches_no_memory_but_its_own(bounds, monkeypatch):
    launched(monkeypatch, WalkTable(64, 2))
    call = CONTEXT.call(made("chunk", seqlens=(100,) * 5, tail=33))
    o, final = HopperBackend().chunk(call.with_(cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=DEVICE)))
    assert o.shape == call.v.shape and final.shape == call.initial_state.shape


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("K", [64, 128])
@pytest.mark.parametrize("cut", [1, 63, 64, 65])
def test_rows_behind_a_sequence_reach_nothing_of_it_in_a_pack(cut, K, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call = CONTEXT.call(made("chunk", seqlens=(cut, 70, 64 + cut), tail=40, HV=1, K=K, V=K))
    assert_rows_behind_reach_nothing(HopperBackend(), call, cut)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("cut", [1, 63, 64, 65])
def test_rows_behind_a_sequence_reach_nothing_of_it_in_a_batch(cut, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call = CONTEXT.call(made("chunk", B=3, T=cut))
    clean, final = HopperBackend().chunk(call)
    poisoned = {name: getattr(call, name).clone() for name in ("q", "k", "v")}
    for x in poisoned.values():
        x[1] = float("nan")
    o, state = HopperBackend().chunk(call.with_(**poisoned))
    assert o[1].isnan().all() and state[1].isnan().any()
    assert torch.equal(o[[0, 2]], clean[[0, 2]]) and torch.equal(state[[0, 2]], final[[0, 2]])


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("form", ["chunk", "prefill"])
def test_programs_may_run_in_any_order(form, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    rows = {"slots": 9, "read": (3, 1, -1, 5, 7)} if form == "prefill" else {}
    found = []
    for order in (range, lambda programs: range(programs - 1, -1, -1)):
        monkeypatch.setattr(gluon_interpreter, "order", order)
        # in place: the slot that a sequence begins with is the one that it leaves its state in
        call: Any = CONTEXT.call(made(form, seqlens=(1, 63, 65, 130, 70), tail=3, **rows))
        found.append(HopperBackend().chunk(call) if form == "chunk" else (HopperBackend().prefill(call), call.pool))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("T", [0, 1])
def test_a_call_without_tokens_leaves_its_states(T):
    call: Any = CONTEXT.call(made("chunk", T=1))
    empty = {name: getattr(call, name)[:, :T] for name in ("q", "k", "v", "g", "beta")}
    o, final = HopperBackend().chunk(call.with_(**empty))
    assert o.shape[1] == T
    assert torch.equal(final, call.initial_state) == (T == 0)


def noted(call: Any, fill: float | None = None) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return what a call gives, and all that it allocated, which held ``fill`` before, or poison."""
    buffers: list[torch.Tensor] = []

    def first(buffer: torch.Tensor) -> None:
        buffers.append(poison_(buffer) if fill is None else buffer.fill_(fill))

    with forced_init(first):
        o, final = HopperBackend().chunk(call)
    return o, final, buffers


@pytest.mark.parametrize("split", [0, 1])
def test_what_a_backward_pass_needs_is_kept_for_one_alone(split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call: Any = CONTEXT.call(made("chunk", T=130))
    o, final, buffers = noted(call)
    folded, other = (x for x in buffers if x.shape == (3, 2, 32, 96))
    assert not any(x.shape in ((1, 130, 2), (3, 2, 64, 64)) for x in buffers)
    kept, kept_final, buffers = noted(call.with_(q=call.q.clone().requires_grad_()))
    (inverse,) = (x for x in buffers if x.shape == (3, 2, 64, 64))
    (attention,) = (x for x in buffers if x.shape == (3, 2, 32, 96))
    assert sum(x.shape == (1, 130, 2) for x in buffers) == 2
    assert torch.equal(o, kept) and torch.equal(final, kept_final)
    # rows of the inverse: the late ones, and beside them what is not 0 of the early ones
    assert torch.equal(folded, torch.cat([inverse[:, :, 32:], inverse[:, :, :32, :32]], 3))
    assert not inverse[:, :, :32, 32:].any() and torch.equal(attention, other)


def assert_near(found: torch.Tensor, other: torch.Tensor, most: float) -> None:
    error = float((found - other).float().norm() / other.float().norm())
    assert error < most, error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("K", "room"), [(64, True), (128, False)])
def test_transitions_lie_where_outputs_will_if_there_is_room(K, room, dtype, monkeypatch):
    call = CONTEXT.call(made("chunk", T=384, K=K, dtype=dtype, gates="slow"))
    launched(monkeypatch, WalkTable(64, 0))
    o, final = HopperBackend().chunk(call)
    launched(monkeypatch, WalkTable(64, 2))
    split, split_final, buffers = noted(call)
    assert ((3, 2, 2, K, K) in [tuple(x.shape) for x in buffers]) != room
    most = 0.01 if dtype == "bfloat16" else 0.0015
    assert_near(split, o, most)
    assert_near(split_final, final, most)


@pytest.mark.parametrize(
    ("T", "lengths"), [(128, {}), (128, {"seqlens": (60, 68)}), (129, {}), (129, {"seqlens": (9, 120)})]
)
def test_nothing_is_made_between_segments_where_sequences_can_have_but_one(T, lengths, monkeypatch):
    call = CONTEXT.call(made("chunk", T=T, **lengths))
    launched(monkeypatch, WalkTable(64, 0))
    o, final = HopperBackend().chunk(call)
    launched(monkeypatch, WalkTable(64, 2))
    split, split_final, buffers = noted(call)
    # whether segments carry a state
    assert any(x.dtype == torch.int32 and x.dim() == 2 for x in buffers) == (T > 128)
    assert T > 128 or (torch.equal(split, o) and torch.equal(split_final, final))


@pytest.mark.parametrize(("dtype", "copies"), [("bfloat16", 0), ("float16", 2)])
def test_normalised_queries_and_keys_are_copied_for_float16_alone(dtype, copies):
    call: Any = CONTEXT.call(made("chunk", T=70, dtype=dtype, normalize=True))
    _, _, buffers = noted(call)
    assert sum(x.shape == call.q.shape for x in buffers) == copies


FORGETFUL = ((-70, 0), (-60, 1), (-80, 0), (-60, 1), (-1e4, 0))
"""Of each segment but the last: the sum of a head's log gates, and whether it carries a state. Other heads' do."""


def forgetful(split: int, segments: int = 6) -> Any:
    """Return a call whose second head's gates are ``FORGETFUL``, and whose first head's are slow."""
    call: Any = CONTEXT.call(made("chunk", T=64 * split * (segments - 1) + 20))
    g = torch.full_like(call.g, -0.002)
    tokens = g[0, :, 1]
    size = 64 * split
    for i, (total, _) in enumerate(FORGETFUL[: segments - 1]):
        last = tokens[i * size : (i + 1) * size]
        if i in (0, 1):
            last[-64:] = total / 64
        elif i == 2:  # two chunks forget together what none does
            last[:] = total / size
        elif i == 3:  # what is in between is not the least sum
            last[-64:-32], last[-32:] = 10 / 32, (total - 10) / 32
        else:  # a token's log gate is clamped
            last[-50] = total
    return call.with_(g=g)


@pytest.mark.parametrize("split", [1, 2])
def test_a_segment_carries_no_state_that_its_gates_let_vanish(split, monkeypatch):
    call = forgetful(split)
    launched(monkeypatch, WalkTable(64, 0))
    whole = HopperBackend().chunk(call)
    launched(monkeypatch, WalkTable(64, split))
    o, final, buffers = noted(call)
    (carried,) = (x for x in buffers if x.dtype == torch.int32)
    assert carried[:-1].tolist() == [[1, carries] for _, carries in FORGETFUL]
    for found, other in zip((o, final), whole, strict=True):
        error = (found - other).float().norm(dim=-1) / other.float().norm(dim=-1)
        assert float(error.max()) < 0.02, error.max()
    on_cpu = {x.name: getattr(call, x.name) for x in fields(call)}
    on_cpu = {name: x.cpu() for name, x in on_cpu.items() if isinstance(x, torch.Tensor)}
    expected = CONTEXT.reference.sequence(call.with_(**on_cpu), chunked=True)
    for found, name in ((o, "o"), (final, "final_state")):
        assert compare(found, expected[name], chunk_size=64 if name == "o" else None).ok, name
    again = noted(call, fill=0)
    assert torch.equal(o, again[0]) and torch.equal(final, again[1])
    for T in (64 * split, 64 * split + 1, 192 * split, 320 * split):
        shorter = {name: getattr(call, name)[:, :T] for name in ("q", "k", "v", "g", "beta")}
        assert torch.equal(HopperBackend().chunk(call.with_(**shorter))[0], o[:, :T]), T


@pytest.mark.parametrize("split", [1, 2])
def test_what_a_segment_forgets_changes_no_bit_behind_it(split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call = forgetful(split, segments=3)
    before = 64 * (split - 1)
    v = call.v.clone()
    v[:, :before] += 1
    # e^-70 of it would be seen
    other = call.with_(v=v, initial_state=torch.full_like(call.initial_state, 1e30))
    one, two = (HopperBackend().chunk(x)[0][0, 64 * split :] for x in (call, other))
    assert torch.equal(one[:, 1], two[:, 1])
    assert not torch.equal(one[:, 0], two[:, 0])


@pytest.mark.parametrize("split", [32, 64])
def test_chunks_of_a_whole_segment_forget_together(split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    size = 64 * split
    call: Any = CONTEXT.call(made("chunk", T=3 * size + 1))
    g = torch.zeros_like(call.g)
    g[:, :size, 0], g[:, size : 2 * size, 0] = -65 / size, -63 / size
    g[:, 64:size, 1], g[:, size : size + 64, 1] = -65 / (size - 64), -65 / 64
    _, final, buffers = noted(call.with_(g=g))
    (carried,) = (x for x in buffers if x.dtype == torch.int32)
    assert carried[:-1].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert final.isfinite().all()


def test_a_transition_is_what_a_segment_makes_of_the_identity(monkeypatch):
    call: Any = CONTEXT.call(made("chunk", T=200, HV=1, layout="v_first", gates="slow"))
    launched(monkeypatch, WalkTable(64, 1))
    _, _, buffers = noted(call)
    (transitions,) = (x for x in buffers if x.shape[2:] == (2, 64, 64))
    assert transitions.dtype == torch.bfloat16
    launched(monkeypatch, WalkTable(64, 0))
    part = {name: getattr(call, name)[:, 64:128] for name in ("q", "k", "v", "g", "beta")}
    part["v"] = torch.zeros_like(part["v"])
    _, A = HopperBackend().chunk(call.with_(**part, initial_state=torch.eye(64, device=DEVICE)[None, None]))
    high, low = transitions[1, 0].float()
    assert float(((high + low - A[0, 0]) / A[0, 0]).abs().max()) < 2**-16
    assert (high != A[0, 0]).any()


@pytest.mark.parametrize("rows", [16, 32])
def test_states_between_segments_have_sixteen_bits(rows):
    HV, K, V, segments = 2, 64, 64, 7
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(segments, HV, V, K, generator=generator)
    A = torch.randn(segments, HV, K, K, generator=generator) / 8
    carried = torch.ones(segments, HV, dtype=torch.int32)
    # what is forgotten may be anything
    carried[3, 1], b[3, 1] = 0, float("nan")
    high = A.bfloat16()
    transitions = torch.stack([high, (A - high.float()).bfloat16()], 2)
    A = transitions.double().sum(2)
    # nobody may read the first, the last and those that carry nothing
    transitions[[0, -1]], transitions[3, 1] = float("nan"), float("nan")
    want = b.double()
    for i in range(1, segments - 1):
        want[i + 1] += torch.where(carried[i, :, None, None] != 0, want[i] @ A[i], 0.0)
    # b of segment i and the state behind it lie at i: nothing is kept of what is before the first
    starts = b[1:].clone().to(DEVICE)
    stitch_kernel[(HV * V // rows,)](
        starts, transitions.to(DEVICE), carried.to(DEVICE), starts, 64 * segments - 5, HV=HV, K=K, V=V, BV=rows,
        STAGES=3, SPLIT=1, VARLEN=False, num_warps=rows // 4,
    )  # fmt: skip
    found = torch.cat([b[:1], starts.cpu()])
    assert torch.equal(found[:2], b[:2]) and torch.equal(found[4, 1], b[4, 1])
    error = (found - want).norm(dim=-1) / want.norm(dim=-1)
    assert error[3, 1].isnan().all()
    error[3, 1] = 0
    assert float(error.max()) < 2**-15, error.max()
