"""The probe ``invariance`` passes a backend that computes sequences one by one, and catches whoever looks around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.invariance import BACKWARD, BATCH, PACK, PROBE, RAGGED
from deltaproof.verify.target import Target

TOKENS = ("q", "k", "v", "g", "beta")


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str, label: str | None = None) -> list[Case]:
    plan = Plan(operator("gated_delta_rule"), form, "smoke", "cpu")
    return [case for case in PROBE.cases(plan) if label in (None, case.label)]


class OneByOne(TorchBackend):
    """Makes a call of its own for each sequence, so that no matmul knows of any other."""

    unsupported: Mapping[str, str] = {}

    def one(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute one sequence; the faults below go in here."""
        o, state = getattr(TorchBackend, form)(self, call)
        return o, state

    def sequences(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        # split and not slices: their gradients are joined, and not added up, which would lose the sign of a zero
        B, T = call.q.shape[:2]
        sizes, dim = [1] * B, 0
        if call.cu_seqlens is not None:
            bounds = call.cu_seqlens.tolist()
            sizes, dim = [b - a for a, b in pairwise(bounds)], 1
        tail = [T - sum(sizes)] if dim else []
        pieces = {name: getattr(call, name).split([*sizes, *tail], dim) for name in TOKENS}
        assert call.initial_state is not None
        states = call.initial_state.split(1)
        outputs, finals = [], []
        for n in range(len(sizes)):
            lone = {name: pieces[name][n].clone() for name in TOKENS}
            o, final = self.one(form, replace(call, **lone, initial_state=states[n], cu_seqlens=None))
            outputs.append(o)
            finals.append(final)
        if tail:
            outputs.append(call.v.new_zeros(1, *tail, *call.v.shape[2:]))
        return torch.cat(outputs, dim), torch.cat(finals)

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.sequences("chunk", call)

    def recurrent(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.sequences("recurrent", call)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        rows = []
        for n in range(call.q.shape[0]):
            row = {name: getattr(call, name)[n : n + 1].clone() for name in (*TOKENS, "read_index")}
            counts = None if call.num_tokens is None else call.num_tokens[n : n + 1]
            rows.append(super().decode(replace(call, **row, num_tokens=counts)))
        return torch.cat(rows)

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        slots = call.read_index.long()
        states = call.pool[slots]
        sequence = SequenceCall(
            **{name: getattr(call, name) for name in (*TOKENS, "options", "A_log", "dt_bias", "cu_seqlens")},
            initial_state=states,
            output_final_state=True,
        )
        with torch.no_grad():
            o, final = self.sequences("chunk", sequence)
        call.pool[slots] = final
        return o


class SplitByBatch(OneByOne):
    """Chooses the size of a chunk by the number of sequences, whatever batch_invariant says."""

    def sequences(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        size = 32 if call.sequences > 2 else 64
        return super().sequences(form, replace(call, options=replace(call.options, chunk_size=size)))


class Leaks(OneByOne):
    """Lets a trace of its first neighbour into every sequence."""

    def sequences(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        o, final = super().sequences(form, call)
        return o, final + 1e-6 * final[:1]


class SharedGradient(OneByOne):
    """Right forward; the gradient of k picks up a rounding that depends on the number of sequences."""

    def sequences(self, form: str, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor]:
        shaken = call.k * 1.0
        if shaken.requires_grad:
            factor = 1.0 + 2.0**-22 * call.sequences
            shaken.register_hook(lambda grad: grad * factor)
        return super().sequences(form, replace(call, k=shaken))


class SpillingRow(OneByOne):
    """Decode lets the row beside it have its say."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        return o + 1e-6 * o.roll(1, 0)


@pytest.mark.parametrize("form", ["chunk", "recurrent", "decode", "prefill"])
def test_a_backend_that_computes_sequences_one_by_one_passes(form):
    for case in cases(form):
        result = check(OneByOne(), case)
        assert result.status is Status.PASS, (case.id, result.message)


@pytest.mark.parametrize("form", ["chunk", "decode"])
def test_the_torch_backend_declares_it_unsupported_with_a_reason(form):
    result = check(TorchBackend(), cases(form)[0])
    assert result.status is Status.UNSUPPORTED
    assert result.reason is not None and result.reason.startswith("I2: built on library matmuls")


@pytest.mark.parametrize(
    ("backend", "form", "label", "tensor"),
    [
        (SplitByBatch, "chunk", BATCH, "o"),
        (SplitByBatch, "chunk", PACK, "o"),
        (SplitByBatch, "prefill", PACK, "o"),
        (Leaks, "recurrent", BATCH, "final_state"),
        (Leaks, "recurrent", PACK, "final_state"),
        (SharedGradient, "chunk", BATCH + BACKWARD, "gradient of k"),
        (SharedGradient, "recurrent", PACK + BACKWARD, "gradient of k"),
        (SpillingRow, "decode", BATCH, "o"),
        (SpillingRow, "decode", RAGGED, "o"),
    ],
)
def test_a_backend_that_looks_at_the_neighbours_fails(backend, form, label, tensor):
    case = cases(form, label)[0]
    assert check(OneByOne(), case).status is Status.PASS
    result = check(backend(), case)
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "I2", "racing-store")
    assert result.location is not None and result.location.tensor == tensor


def test_results_that_are_nan_everywhere_fail_though_their_bits_agree():
    class Nan(OneByOne):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            return super().decode(call) * float("nan")

    result = check(Nan(), cases("decode")[0])
    assert (result.status, result.clause) == (Status.FAIL, "I2")
    assert "not finite" in result.message


def test_a_backend_without_a_backward_is_still_held_to_its_forward():
    class Forward(OneByOne):
        unsupported: Mapping[str, str] = {"backward": "inference only"}

    statuses = {case.label: check(Forward(), case).status for case in cases("chunk")}
    expected = {BATCH: Status.PASS, PACK: Status.PASS}
    assert statuses == {**expected, **{label + BACKWARD: Status.UNSUPPORTED for label in expected}}
