"""The probe ``chunk_states`` passes a right backend and catches states at the wrong place, or of the wrong tokens."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.common.calls import SequenceCall
from deltaproof.ops.kda.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.chunk_states import PROBE
from deltaproof.verify.target import Target
from tests.verify.probes.probing import assert_fail, assert_pass, smoke

KDA = operator("kda")
CASES = list(PROBE.cases(Plan(KDA, "chunk", "smoke", "cpu")))
DENSE, PACKED, FROM_ZERO = CASES

Result = tuple[torch.Tensor, torch.Tensor | None]


def check(backend: TorchBackend, case: Case) -> Check:
    return execute(Context(Target(backend, KDA, "test", face=False), seed=0, device="cpu"), PROBE, case)


class Later(TorchBackend):
    """Stores the state after a chunk where the one before it belongs."""

    def chunk(self, call: SequenceCall) -> Result:
        result = super().chunk(call)
        if call.chunk_states is not None:
            call.chunk_states.copy_(call.chunk_states.roll(-1, dims=1))
        return result


class Unwritten(TorchBackend):
    """Stores no state where a sequence starts."""

    def chunk(self, call: SequenceCall) -> Result:
        first = None if call.chunk_states is None else call.chunk_states[:, 0].clone()
        result = super().chunk(call)
        if first is not None:
            call.chunk_states[:, 0] = first
        return result


class Beside(TorchBackend):
    """Writes a number ahead of the states."""

    def chunk(self, call: SequenceCall) -> Result:
        if call.chunk_states is not None:
            x = call.chunk_states
            x.as_strided((1,), (1,), x.storage_offset() - 1).fill_(7.0)
        return super().chunk(call)


class OtherOutput(TorchBackend):
    """Computes another output when states are asked for."""

    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        return (o if call.chunk_states is None else o * 1.0625), final


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_right_backend_passes(case: Case) -> None:
    assert_pass(check(TorchBackend(), case))


@pytest.mark.parametrize(
    ("backend", "clause", "hazard"),
    [
        (Later, "T3", "unwritten-output"),
        (Unwritten, "T3", "unwritten-output"),
        (Beside, "M1", "missing-base-offset"),
        (OtherOutput, "T3", None),
    ],
)
def test_a_wrong_backend_fails(backend: type[TorchBackend], clause: str, hazard: str | None) -> None:
    for case in (DENSE, PACKED):
        assert_fail(check(backend(), case), clause, hazard)


def test_operators_without_such_states_are_not_asked() -> None:
    assert smoke(PROBE, "chunk") == []
