"""The kernels for Hopper against the oracle, and that nothing depends on what it must not.

``test_triton_interpreted.py`` runs this file: on the CPU in an interpreter of Gluon, on a GPU as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deltaproof.ops.common.hopper_tables import WalkTable
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.gated_delta_rule.hopper_backend import HopperBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target

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
        "a pack with empty sequences and a tail": {"seqlens": (0, 65, 0, 3, 128), "tail": 5, "gate_in_kernel": True},
        "heads in groups": {"H": 2, "HV": 6, "K": 128, "V": 128},
        "neither state": {"initial_state": False, "final_state": False},
        "a state of two bytes": {"state_dtype": "bfloat16", "layout": "v_first"},
    },
    ("values", "prefill"): {
        "a pool": POOL,
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


def made(form: str, **changes: Any) -> Case:
    """Return a case of two chunks, with grouped heads."""
    return Case(
        form, **{"B": 1, "T": 75, "H": 1, "HV": 2, "K": 64, "V": 64, "dtype": "bfloat16", "chunk_size": 64} | changes
    )


def launched(monkeypatch: pytest.MonkeyPatch, table: WalkTable) -> None:
    """Have the walk launched like this."""
    monkeypatch.setattr(WalkTable, "of", classmethod(lambda cls, *_: table))


@pytest.mark.parametrize(("probe", "form", "changes", "block", "split"), NAMED)
def test_it_agrees_with_the_oracle(probe, form, changes, block, split, monkeypatch):
    launched(monkeypatch, WalkTable(block, 2, split))
    check = execute(CONTEXT, probes()[probe], made(form, **changes))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


@pytest.mark.parametrize("split", [0, 1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_how_many_chunks_are_loaded_ahead_changes_no_bit(stages, split, monkeypatch):
    call = CONTEXT.call(made("chunk", T=200))
    found = []
    for ahead in (2, stages):
        launched(monkeypatch, WalkTable(64, ahead, split))
        found.append(HopperBackend().chunk(call))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_split_depends_on_the_number_of_sequences_and_not_on_their_lengths():
    assert WalkTable.of(128, 8, 1).split == WalkTable.of(128, 8, 5).split == 32
    assert WalkTable.of(128, 8, 6).split == WalkTable.of(128, 64, 1).split == 0


@pytest.mark.parametrize("split", [1, 2])
def test_tokens_that_are_appended_change_no_bit_before_them(split, monkeypatch):
    launched(monkeypatch, WalkTable(64, 2, split))
    call = CONTEXT.call(made("chunk", T=330))
    whole, _ = HopperBackend().chunk(call)
    for T in (1, 64, 65, 128, 200, 256):
        shorter = {name: getattr(call, name)[:, :T] for name in ("q", "k", "v", "g", "beta")}
        o, _ = HopperBackend().chunk(call.with_(**shorter))
        assert torch.equal(o, whole[:, :T]), T


@pytest.mark.parametrize("split", [1, 2])
def test_a_first_segment_leaves_its_state_to_the_bit(split, monkeypatch):
    call = CONTEXT.call(made("chunk", T=64 * split + 20))
    found = []
    for how in (0, split):
        launched(monkeypatch, WalkTable(64, 2, how))
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
    launched(monkeypatch, WalkTable(64, 2, 2))
    call = CONTEXT.call(made("chunk", seqlens=(100,) * 5, tail=33))
    o, final = HopperBackend().chunk(call.with_(cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=DEVICE)))
    assert o.shape == call.v.shape and final.shape == call.initial_state.shape
