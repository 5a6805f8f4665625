"""The probe ``splitting`` passes a right backend and catches states that do not carry."""

from __future__ import annotations

import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.probes.splitting import PARTNERS, PROBE, WRITES
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
CHUNK = Case("chunk", label="cuts-16", T=20, K=8, V=12, B=1, chunk_size=16)
RECURRENT = Case("recurrent", label="cuts-2", T=5, K=8, V=12, B=1)
DECODE = Case("decode", label="cuts-1-2", T=3, K=8, V=12)


class LastChunkDropped(TorchBackend):
    """Hands over the state after the last whole chunk."""

    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        size = call.options.chunk_size
        whole = call.q.shape[1] // size * size
        if whole in (0, call.q.shape[1]):
            return o, final
        tokens = {name: getattr(call, name)[:, :whole] for name in ("q", "k", "v", "g", "beta")}
        return o, super().chunk(call.with_(**tokens))[1]


class Appended(TorchBackend):
    """Adds the new state to the one that was in the slot."""

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        before = call.pool.clone()
        o = super().prefill(call)
        slots = call.read_index.long()
        call.pool[slots] += before[slots]
        return o


class LastTokenSkipped(TorchBackend):
    """Keeps the state from before the last token where there are several."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = TorchBackend.decode(self, call.with_(pool=call.pool.clone()))
        T = call.q.shape[1]
        if T > 1 and call.write_index is None:
            tokens = {name: getattr(call, name)[:, : T - 1] for name in ("q", "k", "v", "g", "beta")}
            call = call.with_(**tokens)
        TorchBackend.decode(self, call)
        return o


class EveryWriteTheLast(TorchBackend):
    """Stores the last state wherever a token's state is to be kept."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        if call.write_index is not None and call.write_index.dim() == 2:
            for slots in call.write_index.tolist():
                for slot in slots:
                    if 0 <= slot < call.pool.shape[0] and slots[-1] >= 0:
                        call.pool[slot] = call.pool[slots[-1]].clone()
        return o


class OtherScale(TorchBackend):
    """Has a recurrent form of another function than its other forms."""

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        return o * 1.001, final


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))


def test_every_pair_of_forms_is_compared() -> None:
    pairs = [frozenset((form, partner)) for form in PARTNERS for partner in PARTNERS[form]]
    assert len(pairs) == len(set(pairs)) == 6


@forms(PROBE)
def test_cuts_stand_everywhere(form: str) -> None:
    cases = [case for case in full(PROBE, form) if case.label.startswith("cuts")]
    cuts = {(int(cut), case.T, case.chunk_size) for case in cases for cut in case.label.split("-")[1:]}
    assert any(0 < cut < T for cut, T, _ in cuts)
    if form != "decode":
        assert any(cut == 0 for cut, _, _ in cuts) and any(cut == T for cut, T, _ in cuts)
        assert any(cut and cut % size == 0 for cut, _, size in cuts) or form == "recurrent"
    assert len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form))


def test_a_state_from_before_the_last_partial_chunk_is_caught() -> None:
    assert_fail(check(LastChunkDropped(), PROBE, CHUNK), "T3", "appended-cache")
    assert_pass(check(LastChunkDropped(), PROBE, CHUNK.but(T=32)))


def test_an_appended_state_is_caught() -> None:
    assert_fail(check(Appended(), PROBE, CHUNK.but(form="prefill")), "T3", "appended-cache")


def test_a_state_from_before_the_last_token_is_caught() -> None:
    assert_fail(check(LastTokenSkipped(), PROBE, DECODE), "T3", "appended-cache")


def test_states_after_each_token_are_told_apart() -> None:
    case = DECODE.but(label=WRITES, read=(1, 4), write=((2, 3, 5), (6, 0, -1)))
    assert_pass(check(TorchBackend(), PROBE, case))
    assert_fail(check(EveryWriteTheLast(), PROBE, case), "T3", "appended-cache")


def test_forms_that_disagree_are_caught() -> None:
    for case in (CHUNK.but(label="with-recurrent"), RECURRENT.but(label="with-decode")):
        assert_pass(check(TorchBackend(), PROBE, case))
        assert_fail(check(OtherScale(), PROBE, case), "T3", None)


def test_a_form_without_a_partner_is_counted() -> None:
    class Alone(TorchBackend):
        recurrent = None  # type: ignore[assignment]

    found = check(Alone(), PROBE, CHUNK.but(label="with-recurrent"))
    assert found.status is Status.UNSUPPORTED and "recurrent" in str(found.reason)


def test_a_state_that_is_not_finite_is_the_backends_failure() -> None:
    class Broken(TorchBackend):
        def recurrent(self, call: SequenceCall) -> Result:
            o, final = super().recurrent(call)
            return o, None if final is None else final * float("nan")

    assert check(Broken(), PROBE, RECURRENT).status is Status.FAIL
    assert check(Broken(), PROBE, CHUNK.but(label="with-recurrent")).status is Status.FAIL
