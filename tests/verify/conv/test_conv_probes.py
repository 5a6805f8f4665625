"""The convolution's probes pass the right backend and catch every way to break it, naming the clause."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.causal_conv1d.calls import ConvCall, ConvDecodeCall, ConvPrefillCall
from deltaproof.ops.causal_conv1d.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.conv.case import ConvCase
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan, Probe, probes, probes_of
from deltaproof.verify.target import Target

OPERATOR = operator("causal_conv1d")
PROBES = probes_of(OPERATOR)


def check(backend: TorchBackend, probe: Probe, case: ConvCase) -> Check:
    target = Target(backend, OPERATOR, "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), probe, case)  # type: ignore[arg-type]


def cases(probe: str, form: str) -> list[ConvCase]:
    return list(PROBES[probe].cases(Plan(OPERATOR, form, "smoke", "cpu")))  # type: ignore[arg-type]


class Changed(TorchBackend):
    """Changes what the right backend is told."""

    def change(self, call: ConvCall) -> ConvCall:
        return call

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        changed = self.change(call)
        assert isinstance(changed, ConvDecodeCall)
        return super().decode(changed)

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        changed = self.change(call)
        assert isinstance(changed, ConvPrefillCall)
        return super().prefill(changed)


class ClampedToFirst(Changed):
    """An index below the pool is clamped to slot 0."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(read_index=call.read_index.clamp(min=0), write_index=call.writes.clamp(min=0))
        return found


class WrappedToLast(Changed):
    """An index of -1 is Python's, the last slot."""

    def change(self, call: ConvCall) -> ConvCall:
        slots = call.pool.shape[0]
        wrapped = [torch.where(x < 0, x + slots, x) for x in (call.read_index, call.writes)]
        found: ConvCall = call.with_(read_index=wrapped[0], write_index=wrapped[1])
        return found


class NarrowIndex(Changed):
    """Indices are cut to 32 bits."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(
            read_index=call.read_index.to(torch.int32), write_index=call.writes.to(torch.int32)
        )
        return found


class FreshIgnored(Changed):
    """A fresh row goes on from what its slot held."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(has_initial_state=None)
        return found


class ReadSlotUpdated(Changed):
    """The window goes back to the slot that was read."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(write_index=None)
        return found


class WeightsReversed(Changed):
    """The first weight meets the present token."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(weight=call.weight.flip(1))
        return found


class CountIgnored(Changed):
    """Every row of decode has all its tokens."""

    def change(self, call: ConvCall) -> ConvCall:
        found: ConvCall = call.with_(num_tokens=None)
        return found


class TailLeft(TorchBackend):
    """Tokens behind the last sequence are not written."""

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        y = super().prefill(call)
        if call.cu_seqlens is not None:
            y[0, int(call.cu_seqlens[-1]) :] = torch.nan
        return y


class WindowLate(TorchBackend):
    """The window that is kept ends a token before the last."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        y = super().decode(call)
        for slot in call.writes.tolist():
            if 0 <= slot < call.pool.shape[0]:
                dim = 1 if call.options.layout.value == "channels_first" else 0
                call.pool[slot] = call.pool[slot].roll(1, dim)
        return y


class PaddingWrites(TorchBackend):
    """A padding row writes where its write index points."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        y = super().decode(call)
        for read, write in zip(call.read_index.tolist(), call.writes.tolist(), strict=True):
            slots = call.pool.shape[0]
            if not 0 <= read < slots and 0 <= write < slots:
                call.pool[write] = 0
        return y


class Neighbour(TorchBackend):
    """A row's result depends on how many rows there are."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        return super().decode(call) + 1e-7 * (call.x.shape[0] > 1)

    def prefill(self, call: ConvPrefillCall) -> torch.Tensor:
        return super().prefill(call) + 1e-7 * (call.x.shape[0] > 1)


class InputWritten(TorchBackend):
    """The input is overwritten by the output."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        y = super().decode(call)
        call.x.copy_(y)
        return y


class HalfWritten(TorchBackend):
    """The last channel is left as the memory came."""

    def decode(self, call: ConvDecodeCall) -> torch.Tensor:
        y = super().decode(call)
        out = call.allocate(y.shape, dtype=y.dtype, device=y.device)
        out[..., :-1] = y[..., :-1]
        return out


def test_the_operators_have_probes_of_their_own() -> None:
    assert set(PROBES) == {"conv_values", "conv_slots", "conv_rows", "conv_large_offsets"}
    assert not set(PROBES) & set(probes_of(operator("gated_delta_rule")))
    assert set(probes()) == set(PROBES) | set(probes_of(operator("gated_delta_rule")))


@pytest.mark.parametrize("form", OPERATOR.forms)
@pytest.mark.parametrize("probe", PROBES)
def test_the_right_backend_passes(probe: str, form: str) -> None:
    for case in cases(probe, form):
        found = check(TorchBackend(), PROBES[probe], case)
        assert found.status is Status.PASS, f"{case.id}: {found.message} {found.location}"


@pytest.mark.parametrize(
    ("backend", "probe", "form", "clause"),
    [
        (ClampedToFirst, "conv_slots", "decode", "P2"),
        (ClampedToFirst, "conv_slots", "prefill", "P2"),
        (WrappedToLast, "conv_slots", "decode", "P1"),
        (NarrowIndex, "conv_slots", "decode", "P2"),
        (NarrowIndex, "conv_slots", "prefill", "P2"),
        (FreshIgnored, "conv_slots", "decode", "P1"),
        (FreshIgnored, "conv_slots", "prefill", "P1"),
        (ReadSlotUpdated, "conv_slots", "decode", None),
        (PaddingWrites, "conv_slots", "decode", "P2"),
        (WeightsReversed, "conv_values", "decode", "N2"),
        (WeightsReversed, "conv_values", "prefill", "N2"),
        (CountIgnored, "conv_values", "decode", "N2"),
        (TailLeft, "conv_values", "prefill", "N2"),
        (WindowLate, "conv_values", "decode", "N2"),
        (Neighbour, "conv_rows", "decode", "I2"),
        (Neighbour, "conv_rows", "prefill", "I2"),
        (InputWritten, "conv_rows", "decode", "M2"),
        (HalfWritten, "conv_rows", "decode", "M1"),
    ],
)
def test_a_broken_one_fails_by_the_clause(backend: type, probe: str, form: str, clause: str | None) -> None:
    found = [check(backend(), PROBES[probe], case) for case in cases(probe, form)]
    failed = [item for item in found if item.status is Status.FAIL]
    assert failed, "no case saw it"
    assert {item.status for item in found} <= {Status.PASS, Status.FAIL}
    assert clause is None or clause in {item.clause for item in failed}
    assert all(item.repeat and item.case in item.repeat.replace("'", "") for item in failed)
