"""The probe ``varlen`` passes a right backend and catches packs that are cut, started or ended wrongly."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.probes.varlen import BACKWARD, CHANGED, PROBE
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

PACK = Case("recurrent", seqlens=(3, 0, 2), tail=3, K=8, V=12)
Result = tuple[torch.Tensor, torch.Tensor | None]


class FirstState(TorchBackend):
    """Starts every sequence from the first one's state."""

    def recurrent(self, call: SequenceCall) -> Result:
        if call.cu_seqlens is not None and call.initial_state is not None:
            call = call.with_(initial_state=call.initial_state[:1].expand(call.initial_state.shape))
        return super().recurrent(call)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        pool = call.pool.clone()
        if call.cu_seqlens is not None:
            pool[call.read_index.long()] = pool[call.read_index[:1].long()]
        o = super().prefill(call.with_(pool=pool))
        call.pool.copy_(pool)
        return o


class OnePack(TorchBackend):
    """Drops cu_seqlens: the pack is one long sequence."""

    def recurrent(self, call: SequenceCall) -> Result:
        if call.cu_seqlens is None or call.initial_state is None:
            return super().recurrent(call)
        end = int(call.cu_seqlens[-1])
        whole = call.cu_seqlens.new_tensor([0, end])
        o, final = super().recurrent(call.with_(cu_seqlens=whole, initial_state=call.initial_state[:1]))
        assert final is not None
        return o, final.expand(call.initial_state.shape).contiguous()


class TailUnwritten(TorchBackend):
    """Leaves the rows behind the last sequence as they were allocated."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        out = torch.empty_like(o)
        end = o.shape[1] if call.cu_seqlens is None else int(call.cu_seqlens[-1])
        out[:, :end] = o[:, :end]
        return out, final


class EmptyUnwritten(TorchBackend):
    """Returns early for an empty sequence: its final state is never stored."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        if call.cu_seqlens is None or final is None:
            return o, final
        stored = torch.empty_like(final)
        ran = call.cu_seqlens[1:] > call.cu_seqlens[:-1]
        stored[ran] = final[ran]
        return o, stored


class TailGradient(TorchBackend):
    """Normalises rows that no sequence has: their zero gradient meets what they hold."""

    def recurrent(self, call: SequenceCall) -> Result:
        q = call.q * torch.rsqrt((call.q * call.q).sum(-1, keepdim=True) + 1e-6)
        return super().recurrent(call.with_(q=q))


class WrongShape(TorchBackend):
    """Returns the covered rows only."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        return (o if call.cu_seqlens is None else o[:, : int(call.cu_seqlens[-1])]), final


class KeptIndices(TorchBackend):
    """Keeps what it worked out from cu_seqlens for as long as the caller passes the same tensor."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def bounds(self, given: torch.Tensor) -> torch.Tensor:
        return self.kept.setdefault(id(given), (given, given.clone()))[1]

    def chunk(self, call: SequenceCall) -> Result:
        return super().chunk(call.with_(cu_seqlens=self.bounds(call.cu_seqlens)))

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(call.with_(cu_seqlens=self.bounds(call.cu_seqlens)))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(call.with_(cu_seqlens=self.bounds(call.cu_seqlens)))


@forms(PROBE)
def test_bounds_that_change_in_place_are_read_again(form: str) -> None:
    (case,) = (case for case in smoke(PROBE, form) if case.label == CHANGED)
    assert -(-case.seqlens[0] // 64) + -(-case.seqlens[1] // 64) == (2 if form == "recurrent" else 3)
    assert_fail(check(KeptIndices(), PROBE, case), "S4", "incomplete-cache-key")
    assert_pass(check(KeptIndices(), PROBE, case.but(seqlens=(5, 5))))
    backend = KeptIndices()
    backend.unsupported = {"sync_free_varlen": "the bounds are read on the host"}
    assert_fail(check(backend, PROBE, case), "S4", "incomplete-cache-key")


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))


@forms(PROBE)
def test_empty_sequences_and_both_index_dtypes_are_covered(form: str) -> None:
    packs = [case for case in full(PROBE, form) if case.seqlens]
    assert {case.tail % 2 for case in packs} == {0, 1}
    assert any(case.seqlens[0] == 0 < sum(case.seqlens) for case in packs)
    assert any(case.seqlens[-1] == 0 < sum(case.seqlens) for case in packs)
    assert any(0 in case.seqlens[1:-1] and case.seqlens[0] and case.seqlens[-1] for case in packs)
    assert any(sum(case.seqlens) == 0 for case in packs)
    assert len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form))


def test_a_state_of_another_sequence_is_caught() -> None:
    assert_fail(check(FirstState(), PROBE, PACK), "S4", "missing-base-offset")
    assert_fail(check(FirstState(), PROBE, PACK.but(form="prefill")), "S4", "missing-base-offset")
    assert_pass(check(FirstState(), PROBE, PACK.but(seqlens=(5,))))


def test_dropped_bounds_are_caught() -> None:
    assert_fail(check(OnePack(), PROBE, PACK), "S4", "missing-base-offset")


def test_unwritten_tail_rows_are_caught() -> None:
    found = check(TailUnwritten(), PROBE, PACK)
    assert_fail(found, "S4", "unwritten-output")
    assert found.location is not None and found.location.token == 5 and found.value == "nan"
    assert_pass(check(TailUnwritten(), PROBE, PACK.but(tail=0)))


def test_an_unwritten_state_of_an_empty_sequence_is_caught() -> None:
    assert_fail(check(EmptyUnwritten(), PROBE, PACK), "S4", "unwritten-output")
    assert_pass(check(EmptyUnwritten(), PROBE, PACK.but(seqlens=(3, 2))))


def test_gradients_of_tail_rows_are_zero() -> None:
    case = PACK.but(label=BACKWARD)
    assert_pass(check(TorchBackend(), PROBE, case))
    assert_fail(check(TailGradient(), PROBE, case), "S4", "unwritten-output")


def test_a_wrong_shape_is_the_backends_failure() -> None:
    assert_fail(check(WrongShape(), PROBE, PACK), "S1", None)


def test_a_backend_without_backward_says_so() -> None:
    backend = TorchBackend()
    backend.unsupported = {"backward": "forward only"}
    assert check(backend, PROBE, PACK.but(label=BACKWARD)).status is Status.UNSUPPORTED
    assert_pass(check(backend, PROBE, PACK))
