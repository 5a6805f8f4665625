"""The probe ``large_offsets`` passes 64-bit offsets, catches 32-bit ones, and says where memory is missing."""

from __future__ import annotations

import mmap

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.large_offsets import PROBE
from deltaproof.verify.target import Target


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str, tier: str = "smoke") -> list[Case]:
    return list(PROBE.cases(Plan(operator("gated_delta_rule"), form, tier, "cpu")))


def narrowed(x: torch.Tensor) -> torch.Tensor:
    """Return the view a kernel sees that cuts the offset of a dimension's third entry to 32 bits."""
    strides = [step if step < 2**31 else (2 * step) % 2**32 // 2 for step in x.stride()]
    return x.as_strided(x.shape, strides, x.storage_offset())


class Narrow(TorchBackend):
    """Computes offsets in 32 bits."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call.with_(pool=narrowed(call.pool)))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(call.with_(pool=narrowed(call.pool)))

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().chunk(call.with_(q=narrowed(call.q)))


class NarrowStore(TorchBackend):
    """Stores a state a second time at a 32-bit offset."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        narrowed(call.pool)[2] = call.pool[2]
        return o


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_64_bit_offsets_pass(form):
    for case in cases(form):
        result = check(TorchBackend(), case)
        assert result.status is Status.PASS, result.message


def test_the_full_tier_spreads_batch_rows():
    (dense, _) = cases("chunk", "full")
    assert check(TorchBackend(), dense).status is Status.PASS
    result = check(Narrow(), dense)
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P5", "narrow-offset")
    assert result.location.row == 2


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_32_bit_offsets_fail(form):
    for case in cases(form):
        result = check(Narrow(), case)
        assert (result.status, result.hazard) == (Status.FAIL, "narrow-offset")
        assert result.clause in ("P5", "P2")


def test_a_store_into_another_slot_is_named():
    result = check(NarrowStore(), cases("decode")[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P2", "narrow-offset")
    assert result.location.slot == 0


def test_memory_that_cannot_be_had_is_skipped_with_the_reason(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    result = check(TorchBackend(), cases("decode")[0])
    assert result.status is Status.SKIPPED
    assert "8.6 GB of lazily committed address space: cannot allocate memory" in result.reason
