"""The probe ``ragged`` passes a right backend and catches rounded-up extents and literal chunk sizes."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.verify.case import Case
from deltaproof.verify.probes.ragged import FEW, LENGTHS, PROBE
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

CHUNK = Case("chunk", T=17, K=3, V=5, H=1, HV=2)


class WholeChunks(TorchBackend):
    """Takes each batch row's length as rounded up to 16: rows behind the last are those of the next batch row."""

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        T = call.q.shape[1]
        rounded = -(-T // 16) * 16
        more = {}
        for name in ("q", "k", "v", "g", "beta"):
            x = getattr(call, name)
            inner = x.stride(1)
            more[name] = x.as_strided((x.shape[0], rounded, *x.shape[2:]), (T * inner, *x.stride()[1:]))
        o, final = super().chunk(call.with_(**more))
        return o[:, :T].contiguous(), final


class NanLanes(TorchBackend):
    """Loads one lane of k too many where K is no power of two, and multiplies it by zero."""

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        K = call.k.shape[-1]
        if K & (K - 1):
            memory = torch.empty(0, dtype=call.k.dtype).set_(call.k.untyped_storage())
            past = memory[call.k.storage_offset() + call.k.numel()]
            call = call.with_(k=call.k + past * 0)
        return super().recurrent(call)


class LiteralChunk(TorchBackend):
    """Counts checkpoints in chunks of 64 whatever the call says."""

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        if call.checkpoint_every is not None:
            call = call.with_(checkpoint_every=call.checkpoint_every * 64 // call.options.chunk_size)
        return super().prefill(call)


class AllTokens(TorchBackend):
    """Does not know rows of fewer tokens."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call.with_(num_tokens=None))


class NoEmptyGrid(TorchBackend):
    """Fails where there is nothing to do, as a launch of zero programs does."""

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        if call.q.shape[0] * call.q.shape[1] == 0:
            raise RuntimeError("invalid argument: a grid of 0 programs")
        return super().chunk(call)


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        if case.K * case.V < 1000:
            assert_pass(check(TorchBackend(), PROBE, case))


@forms(PROBE)
def test_lengths_and_sizes_are_covered(form: str) -> None:
    cases = full(PROBE, form)
    lengths = {case.T for case in cases}
    assert set(FEW if form == "decode" else (0, *LENGTHS)) <= lengths
    assert {(1, 1), (3, 5), (72, 136), (255, 256)} <= {(case.K, case.V) for case in cases}
    assert any(case.B == 0 for case in cases)
    assert form == "decode" or any(case.seqlens == () for case in cases)
    assert len({case.id for case in cases}) == len(cases)


def test_a_chunk_that_is_not_masked_is_caught() -> None:
    assert_pass(check(WholeChunks(), PROBE, CHUNK.but(T=16)))
    assert_fail(check(WholeChunks(), PROBE, CHUNK), "S2", "unmasked-load")


def test_a_lane_masked_by_a_product_is_caught() -> None:
    case = Case("recurrent", T=2, K=3, V=5)
    assert_pass(check(NanLanes(), PROBE, case.but(K=16)))
    assert_fail(check(NanLanes(), PROBE, case), "S2", "unmasked-load")


def test_a_literal_chunk_size_is_caught() -> None:
    (case,) = (case for case in smoke(PROBE, "prefill") if case.checkpoints)
    found = check(LiteralChunk(), PROBE, case)
    assert_fail(found, found.clause, "ignored-tile-parameter")


def test_a_row_of_fewer_tokens_is_watched() -> None:
    (case,) = (case for case in smoke(PROBE, "decode") if case.num_tokens)
    assert_fail(check(AllTokens(), PROBE, case), "S2", "unmasked-load")


def test_an_empty_call_must_be_made() -> None:
    for case in smoke(PROBE, "chunk"):
        if case.label.startswith("no-") and case.label != "no-sequences":
            assert_fail(check(NoEmptyGrid(), PROBE, case), "S2", "unmasked-load")


def test_a_backend_may_declare_that_it_takes_no_empty_call() -> None:
    backend = NoEmptyGrid()
    backend.unsupported = {**TorchBackend.unsupported, "empty": "a grid needs a program"}
    found = check(backend, PROBE, CHUNK.but(T=0))
    assert found.status.value == "unsupported" and "a grid needs a program" in str(found.reason)
