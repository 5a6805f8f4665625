"""The probe ``slots`` passes a right backend and catches every way to misuse an index, naming clause and slot."""

from __future__ import annotations

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, PrefillCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.slots import PROBE, SLOTS
from deltaproof.verify.target import Target

PoolCall = DecodeCall | PrefillCall
FORMS = ("decode", "prefill")


def check(backend: TorchBackend, case: Case) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), PROBE, case)


def cases(form: str, label: str) -> list[Case]:
    plan = Plan(operator("gated_delta_rule"), form, "smoke", "cpu")
    return [case for case in PROBE.cases(plan) if case.label == label]


def first(form: str, label: str, **fields: object) -> Case:
    """Return the first case of a label whose fields hold these values."""
    wanted = (c for c in cases(form, label) if all(getattr(c, name) == value for name, value in fields.items()))
    return next(wanted)


class Indices(TorchBackend):
    """Changes what the right backend is told."""

    def change(self, call: PoolCall) -> PoolCall:
        raise NotImplementedError

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(self.change(call))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(self.change(call))


class Raw(Indices):
    """Uses every index as an address: one slot before the pool belongs to it too."""

    def change(self, call: PoolCall) -> PoolCall:
        pool = call.pool
        step = pool.stride(0)
        wider = pool.as_strided((pool.shape[0] + 2, *pool.shape[1:]), pool.stride(), pool.storage_offset() - step)
        write = None if call.write_index is None else call.write_index + 1
        return call.with_(pool=wider, read_index=call.read_index + 1, write_index=write)


class Mapped(Indices):
    """Maps every index into the pool."""

    def map(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        raise NotImplementedError

    def change(self, call: PoolCall) -> PoolCall:
        slots = call.pool.shape[0]
        write = None if call.write_index is None else self.map(call.write_index, slots)
        return call.with_(read_index=self.map(call.read_index, slots), write_index=write)


class ClampedToZero(Mapped):
    def map(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return index.clamp(min=0)


class Wrapped(Mapped):
    def map(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return torch.where((index < 0) & (index >= -slots), index + slots, index)


class NoUpperBound(Mapped):
    def map(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return index.clamp(max=slots - 1)


class CutTo32Bits(Mapped):
    def map(self, index: torch.Tensor, slots: int) -> torch.Tensor:
        return index.to(torch.int32)


class InPlaceAlways(Indices):
    """Keeps a state in its read slot where the write index names none."""

    def change(self, call: PoolCall) -> PoolCall:
        if call.write_index is None or call.write_index.dim() == 2:
            return call
        outside = (call.write_index < 0) | (call.write_index >= call.pool.shape[0])
        return call.with_(write_index=torch.where(outside, call.read_index, call.write_index))


class ReadSlotOverwritten(TorchBackend):
    """Stores the new state where it was read, too."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        if call.write_index is not None and call.write_index.dim() == 1:
            live = (call.write_index >= 0) & (call.write_index < call.pool.shape[0])
            call.pool[call.read_index[live].long()] = call.pool[call.write_index[live].long()]
        return o


class FreshIgnored(Indices):
    def change(self, call: PoolCall) -> PoolCall:
        return call.with_(has_initial_state=None)


class PaddingOutputLeft(TorchBackend):
    """Leaves a padding row's output as it came out of the arithmetic."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        padding = (call.read_index < 0) | (call.read_index >= call.pool.shape[0])
        return o.masked_fill(padding[:, None, None, None], 1e-30)


class WritesBeyondTheRow(Indices):
    """Counts tokens past a row's end."""

    def change(self, call: PoolCall) -> PoolCall:
        return call.with_(num_tokens=None)


class StridesComputed(Indices):
    """Takes a pool's memory for contiguous."""

    def change(self, call: PoolCall) -> PoolCall:
        heads, rows, columns = call.pool.shape[1:]
        strides = (heads * rows * columns, rows * columns, columns, 1)
        return call.with_(pool=call.pool.as_strided(call.pool.shape, strides))


class CheckpointTooEarly(TorchBackend):
    """Keeps a checkpoint although the sequence ends one token before it."""

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        before = call.pool.clone()
        o = super().prefill(call)
        if call.checkpoint_index is not None:
            short = int(call.checkpoint_index[0, 0])
            call.pool[short] = before[short] + 1
        return o


@pytest.mark.parametrize("form", FORMS)
def test_the_torch_backend_passes(form):
    for label in ("padding", "owner", "shared", "heads-outermost"):
        result = check(TorchBackend(), cases(form, label)[-1])
        assert result.status is Status.PASS, result.message


@pytest.mark.parametrize("form", FORMS)
def test_raw_padding_touches_the_memory_before_the_pool(form):
    result = check(Raw(), first(form, "padding", read=(2, -1, 5), dead_tokens=False))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P2", "padding-slot-address")
    assert result.location.slot == -1
    assert result.expected == "1.5" and result.value != "1.5"
    assert "indices outside the pool: -1" in result.message
    assert "--case" in result.repeat


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("backend", "read", "slot"),
    [
        (ClampedToZero(), (2, -1, 5), 0),
        (ClampedToZero(), (2, -SLOTS, 5), 0),
        (Wrapped(), (2, -1, 5), SLOTS - 1),
        (NoUpperBound(), (2, SLOTS, 5), SLOTS - 1),
        (NoUpperBound(), (2, 2**31 - 1, 5), SLOTS - 1),
    ],
)
def test_a_padding_index_that_lands_in_a_slot_is_named(form, backend, read, slot):
    result = check(backend, first(form, "padding", read=read, dead_tokens=False))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P2", "padding-slot-address")
    assert result.location.slot == slot
    assert result.value != result.expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("backend", "write"), [(ClampedToZero(), -1), (Wrapped(), -1), (NoUpperBound(), SLOTS)])
def test_a_write_outside_the_pool_is_not_kept(form, backend, write):
    result = check(backend, first(form, "write-outside", write=(3, write, 1)))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P2", "padding-slot-address")


@pytest.mark.parametrize("form", FORMS)
def test_a_state_without_a_place_must_not_stay_in_its_read_slot(form):
    result = check(InPlaceAlways(), first(form, "write-outside", write=(3, -1, 1)))
    assert (result.status, result.clause, result.location.slot) == (Status.FAIL, "P2", 4)


@pytest.mark.parametrize("form", FORMS)
def test_an_index_cut_to_32_bits_is_seen(form):
    result = check(CutTo32Bits(), cases(form, "64-bit")[0])
    assert (result.status, result.clause) == (Status.FAIL, "P2")
    assert result.location.slot in (1, 2, 3)


def test_an_overwritten_read_slot_breaks_p4():
    result = check(ReadSlotOverwritten(), cases("decode", "elsewhere")[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P4", "aliased-slot")
    assert result.location.slot in (0, 2, 4)


@pytest.mark.parametrize("form", FORMS)
def test_nan_of_a_slot_that_a_fresh_row_names_must_not_leak(form):
    result = check(FreshIgnored(), first(form, "fresh", read=(3, 4, 6)))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P1", "appended-cache")
    assert result.value == "nan"


def test_a_padding_row_that_returns_anything_but_zero_breaks_p1():
    result = check(PaddingOutputLeft(), first("decode", "padding", read=(2, -1, 5)))
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P1", "padding-slot-address")
    assert "row 1 is padding" in result.message and result.expected == "0"


def test_tokens_past_a_rows_end_must_not_count():
    ragged = first("decode", "owner", read=(4, 5, 6), num_tokens=(0, 2, 3), write=None)
    target = Target(WritesBeyondTheRow(), operator("gated_delta_rule"), "test", face=False)
    seen = [item for item in PROBE.run(ragged, Context(target, seed=0, device="cpu")) if not item.ok]
    values = {item.value for item in seen}
    assert "nan" in values and len(values) > 1, "both the stale and the NaN tokens must show"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", ["stride", "heads-outermost"])
def test_computed_strides_break_p5_or_touch_other_slots(form, label):
    for case in cases(form, label):
        result = check(StridesComputed(), case)
        assert result.status is Status.FAIL and result.clause in ("P2", "P5")


def test_a_checkpoint_of_a_sequence_that_is_too_short_must_not_be_kept():
    result = check(CheckpointTooEarly(), cases("prefill", "checkpoints")[0])
    assert (result.status, result.clause, result.location.slot) == (Status.FAIL, "P2", 3)
