"""Kimi delta attention's walk over chunks for Hopper, against the oracle.

``test_triton_interpreted.py`` runs this file: on the CPU in an interpreter of Gluon, on a GPU as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.allocation import forced_init, poison_
from deltaproof.ops.common.hopper_tables import WalkTable
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.kda.hopper_backend import HopperBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target
from tests.ops.hopper_calls import (
    assert_appended_tokens_change_no_bit,
    assert_rows_behind_reach_nothing,
    launched,
    made,
)

DEVICE = "cpu" if INTERPRETED else "cuda"
CONTEXT = Context(Target(HopperBackend(), operator("kda"), "test", face=False), seed=0, device=DEVICE)
BOUNDED: dict[str, Any] = {"gate_in_kernel": True, "lower_bound": -5.0, "beta_sigmoid": True}

CASES = {
    "two chunks": ("chunk", {}),
    "heads of 128 and every option": ("chunk", {"K": 128, "V": 128, "layout": "v_first", "HV": 1, **BOUNDED}),
    "float16, wider values": ("chunk", {"dtype": "float16", "V": 128, "HV": 1}),
    "a pack with empty sequences and a tail": ("chunk", {"seqlens": (0, 65, 0, 3, 128), "tail": 5, **BOUNDED}),
    "heads in groups": ("chunk", {"H": 2, "HV": 4}),
    "gates at -1e4 and at 0 in turn": ("chunk", {"gates": "alternating"}),
    "a pool with checkpoints": (
        "prefill",
        {"B": 2, "slots": 7, "read": (3, -1), "T": 140, "checkpoint_every": 64, "checkpoints": ((4, 5), (6, 0))},
    ),
}


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("about", CASES)
def test_it_agrees_with_the_oracle(about, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    form, changes = CASES[about]
    check = execute(CONTEXT, probes()["values"], made(form, **changes))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


STATES = {
    "V first": {"layout": "v_first", "V": 128, "HV": 1},
    "K first, float16, heads in groups": {"dtype": "float16", "H": 2, "HV": 4},
    "a pack with empty sequences and a tail": {"seqlens": (0, 65, 0, 3, 128), "tail": 5, **BOUNDED},
    "a state of two bytes, and a batch": {"B": 2, "T": 150, "state_dtype": "bfloat16"},
}


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("about", STATES)
def test_states_before_chunks_are_the_oracles(about, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    check = execute(CONTEXT, probes()["chunk_states"], made("chunk", **STATES[about]))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


def test_tokens_that_are_appended_change_no_bit_before_them(monkeypatch):
    launched(monkeypatch, WalkTable(64, 1))
    call = CONTEXT.call(made("chunk", T=150, HV=1))
    assert_appended_tokens_change_no_bit(HopperBackend(), call, (1, 64, 100, 128))


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("cut", [1, 63, 64, 65])
def test_rows_behind_a_sequence_reach_nothing_of_it(cut, split, monkeypatch):
    launched(monkeypatch, WalkTable(64, split))
    call = CONTEXT.call(made("chunk", seqlens=(cut, 70, 64 + cut), tail=40, HV=1))
    assert_rows_behind_reach_nothing(HopperBackend(), call, cut)


def test_a_segment_forgets_only_what_no_channel_remembers(monkeypatch):
    call: Any = CONTEXT.call(made("chunk", T=4 * 64 + 20))
    g = torch.full_like(call.g, -1.2)
    g[..., 0, 7] = -0.005
    g[:, 64:128, 1, -1] = -0.9
    # two gates of a channel are enough
    g[:, 128:192, 1, 20], g[:, 150:152, 1, 20] = 0.0, -60.0
    call = call.with_(g=g)
    buffers: list[torch.Tensor] = []
    launched(monkeypatch, WalkTable(64, 0))
    whole = HopperBackend().chunk(call)
    launched(monkeypatch, WalkTable(64, 1))
    with forced_init(lambda buffer: buffers.append(poison_(buffer))):
        found = HopperBackend().chunk(call)
    carried = [x for x in buffers if x.shape == (5, 2) and x.dtype == torch.int32][-1]
    assert carried[:-1].tolist() == [[1, 0], [1, 1], [1, 0], [1, 0]]
    for one, other in zip(found, whole, strict=True):
        error = (one - other).float().norm(dim=-1) / other.float().norm(dim=-1)
        assert float(error.max()) < 0.02, error.max()
    # where nothing is carried, e^-76 of this would be seen
    other = call.with_(initial_state=torch.full_like(call.initial_state, 1e33))
    two = HopperBackend().chunk(other)[0]
    assert torch.equal(found[0][:, 64:, 1], two[:, 64:, 1])
    assert not torch.equal(found[0][:, 64:, 0], two[:, 64:, 0])


def test_chunks_of_a_long_segment_forget_together(monkeypatch):
    launched(monkeypatch, WalkTable(64, 64))
    call: Any = CONTEXT.call(made("chunk", T=2 * 4096 + 1))
    g = torch.zeros_like(call.g)
    g[:, :4096] = -65 / 4096
    g[:, :4096, 1, 5] = -63 / 4096
    buffers: list[torch.Tensor] = []
    with forced_init(lambda x: buffers.append(poison_(x))):
        _, final = HopperBackend().chunk(call.with_(g=g))
    (carried,) = (x for x in buffers if x.shape == (3, 2))
    assert carried[:-1].tolist() == [[0, 1], [1, 1]]
    assert final.isfinite().all()
