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
from deltaproof.verify.observation import Skipped
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes import _long_pack
from deltaproof.verify.probes.large_offsets import PROBE, SPAN, STEP, WIDE_STEP
from deltaproof.verify.target import Target


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str, tier: str = "smoke") -> list[Case]:
    return list(PROBE.cases(Plan(operator("gated_delta_rule"), form, tier, "cpu")))


def narrowed(x: torch.Tensor) -> torch.Tensor:
    """Return the view a kernel sees that cuts the offset of a dimension's last entry to 32 bits."""
    last = [max(size - 1, 1) for size in x.shape]
    strides = [step * n % 2**32 // n for step, n in zip(x.stride(), last, strict=True)]
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
        narrowed(call.pool)[-1] = call.pool[-1]
        return o


class WideArguments(TorchBackend):
    """Widens a stride that needs 64 bits, as a compiler does, and multiplies one that fits into 32 in 32."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        fits = all(step < 2**31 for step in call.pool.stride())
        return super().decode(call.with_(pool=narrowed(call.pool)) if fits else call)


class Forgets(TorchBackend):
    """Gives nothing for tokens from one on, or the gradients of nothing."""

    def __init__(self, token: int, gradients: bool = False) -> None:
        self.token, self.gradients = token, gradients

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().chunk(call)
        keep = (torch.arange(o.shape[1]) < self.token)[None, :, None, None]
        forgotten = torch.where(keep, o, 0)
        return (
            forgotten.detach() + (o - o.detach()) if not self.gradients else o.detach() + forgotten - forgotten.detach()
        ), final


class Spills(TorchBackend):
    """Adds something to a token of the zeros in front."""

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        o, final = super().recurrent(call)
        o[:, 3] += 1e-9
        return o, final


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_64_bit_offsets_pass(form):
    for case in cases(form):
        result = check(TorchBackend(), case)
        assert result.status is Status.PASS, result.message


def test_strides_that_fit_into_32_bits_and_strides_that_do_not_are_covered():
    for form in ("decode", "prefill"):
        assert {case.label for case in cases(form)} == {"slot-stride", "head-stride", "wide-slot-stride"}
    assert STEP < 2**31 < WIDE_STEP
    assert 4 * STEP == 2 * WIDE_STEP == SPAN == 2**32 + 128
    # indices of 64 bits would widen the product; a write after each token and a checkpoint have offsets of their own
    narrow = [case for case in cases("decode") if case.index_dtype == "int32"]
    assert {isinstance(case.write[0], tuple) for case in narrow} == {True, False}
    assert any(case.checkpoints for case in cases("prefill") if case.index_dtype == "int32")


def test_a_product_of_two_32_bit_numbers_is_caught():
    for case in cases("decode"):
        status = check(WideArguments(), case).status
        assert status is (Status.PASS if case.label.startswith("wide") else Status.FAIL), case.id


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


@pytest.fixture
def few_tokens(monkeypatch) -> dict[str, Case]:
    """Return the long packs, shortened to 90 tokens, by label."""
    monkeypatch.setattr(_long_pack, "LENGTH", 7)
    found = _long_pack.cases("chunk")
    return {case.label: case.but(T=90, H=min(case.H, 2), HV=2, K=case.K // 16 + 3, V=9) for case in found}


class TestALongPack:
    def test_is_of_a_gpu_and_goes_beyond_32_bits(self):
        plan = Plan(operator("gated_delta_rule"), "chunk", "full", "cuda")
        long = [case for case in PROBE.cases(plan) if case.label in _long_pack.LABELS]
        assert {case.label for case in long} == set(_long_pack.LABELS)
        for case in long:
            zeros = case.T - sum(_long_pack.LAST["chunk"]) - _long_pack.TAIL
            assert zeros * case.HV * max(case.K, case.V) > 2**31
        assert not {case.label for case in cases("chunk", "full")} & set(_long_pack.LABELS)

    def test_passes_a_right_backend(self, few_tokens):
        for case in few_tokens.values():
            for form in ("chunk", "recurrent"):
                result = check(TorchBackend(), case.but(form=form))
                assert result.status is Status.PASS, result.message
                assert result.ratio > 0

    def test_shows_outputs_that_are_lost_far_out(self, few_tokens):
        result = check(Forgets(80), few_tokens["long-values"])
        assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P5", "narrow-offset")
        assert "o: error" in result.message and "23 tokens on" in result.message
        assert check(Forgets(90), few_tokens["long-values"]).status is Status.PASS

    def test_shows_gradients_that_are_lost_far_out(self, few_tokens):
        result = check(Forgets(80, gradients=True), few_tokens["long-keys-backward"])
        assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P5", "narrow-offset")
        assert "gradient of" in result.message
        assert check(Forgets(80, gradients=True), few_tokens["long-keys"]).status is Status.PASS

    def test_shows_what_lands_among_the_zeros(self, few_tokens):
        result = check(Spills(), few_tokens["long-values"].but(form="recurrent"))
        assert (result.status, result.clause) == (Status.FAIL, "P5")
        assert "o: 18 elements of sequences of zeros are not 0" in result.message

    def test_that_does_not_fit_is_skipped_with_the_reason(self, few_tokens, monkeypatch):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 2 * 10**9))
        case = next(iter(_long_pack.cases("chunk")))
        with pytest.raises(Skipped, match="needs 52 GB of GPU memory, 1 GB are free"):
            _long_pack._require_memory(
                case, Context(Target(TorchBackend(), operator("gated_delta_rule"), "", False), 0, "cuda")
            )


def test_memory_that_cannot_be_had_is_skipped_with_the_reason(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    result = check(TorchBackend(), cases("decode")[0])
    assert result.status is Status.SKIPPED
    assert "8.6 GB of lazily committed address space: cannot allocate memory" in result.reason
