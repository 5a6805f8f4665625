"""The scores of Kimi delta attention's chunks as the kernel for Hopper makes them, against the oracle.

``test_triton_interpreted.py`` runs this file in an interpreter of Gluon; on a GPU of compute capability 9.0 the other
files run that kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common import gluon_interpreter
from deltaproof.ops.common.triton_language import INTERPRETED
from deltaproof.ops.kda import triton_chunk
from deltaproof.ops.kda.hopper_scores import hopper_scores_kernel
from deltaproof.ops.kda.triton_backend import TritonBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, probes
from deltaproof.verify.target import Target

assert INTERPRETED
gluon_interpreter.switch_on()
CONTEXT = Context(Target(TritonBackend(), operator("kda"), "test", face=False), seed=0, device="cpu")
BOUNDED: dict[str, Any] = {"gate_in_kernel": True, "lower_bound": -5.0, "beta_sigmoid": True}

CASES = {
    "log gates": {},
    "heads of 128, a lower bound and every option": {
        "K": 128,
        "V": 32,
        "layout": "v_first",
        "neg_eigval": True,
        **BOUNDED,
    },
    "a gate without a bound": {"gate_in_kernel": True},
    "without A_log and dt_bias": {"gate_in_kernel": True, "A_log": False, "dt_bias": False, "lower_bound": -5.0},
    "gates of two bytes, not normalised": {"gate_dtype": "bfloat16", "normalize": False},
    "one token": {"T": 1},
    "a pack with empty sequences and a tail": {"seqlens": (0, 65, 0, 3), "tail": 2, **BOUNDED},
    "heads in groups": {"H": 2, "HV": 4, "V": 16},
    "gates at -1e4 and at 0 in turn": {"gates": "alternating"},
}


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch):
    """Take the kernel for Hopper where its sizes and dtypes are met; fail where it is not launched."""
    launched = []
    launch = gluon_interpreter.launch

    def counted(kernel: Any, *rest: Any) -> None:
        launched.append(kernel)
        launch(kernel, *rest)

    monkeypatch.setattr(gluon_interpreter, "launch", counted)
    monkeypatch.setattr(triton_chunk, "_on_hopper", lambda chunks: True)
    yield
    assert launched and all(kernel is hopper_scores_kernel for kernel in launched)


def made(**changes: Any) -> Case:
    """Return a case of two chunks."""
    sizes = {"B": 1, "T": 75, "H": 1, "HV": 2, "K": 64, "V": 16, "dtype": "bfloat16", "chunk_size": 64}
    return Case("chunk", **sizes | changes)


@pytest.mark.parametrize("about", CASES)
def test_it_agrees_with_the_oracle(about):
    check = execute(CONTEXT, probes()["values"], made(**CASES[about]))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"
    assert check.ratio is not None and check.ratio > 0


@pytest.mark.parametrize("changes", [{}, BOUNDED], ids=["log gates", "bounded"])
def test_gradients_are_made_of_what_it_keeps(changes):
    check = execute(CONTEXT, probes()["gradients"], made(HV=1, **changes))
    assert check.status is Status.PASS, f"{check.message} {check.location} {check.reason}"


def test_tokens_that_are_appended_change_no_bit_before_them():
    call = CONTEXT.call(made(T=80, HV=1))
    whole, _ = TritonBackend().chunk(call)
    for T in (1, 15, 16, 33, 64, 70):
        shorter = {name: getattr(call, name)[:, :T] for name in ("q", "k", "v", "g", "beta")}
        o, _ = TritonBackend().chunk(call.with_(**shorter))
        assert torch.equal(o, whole[:, :T]), T
