"""The probe ``graph``: its logic, with a stand-in for the GPU; on a GPU the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from deltaproof.contracts.conventions import Conventions, Padding
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.reports.model import Check, Status
from deltaproof.verify.case import Case
from deltaproof.verify.execute import execute
from deltaproof.verify.probe import Context, Plan
from deltaproof.verify.probes.graph import MEMORY, PROBE, REPLAY, STREAM, SYNC, Graph
from deltaproof.verify.target import Outputs, Target


class StandIn:
    """A GPU on the CPU: a replay makes the captured call again and puts the result where the first one was."""

    def __init__(self, *, late: bool = False) -> None:
        self.late, self.taken = late, 0

    def capture(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        outputs = function()

        def replay() -> Outputs:
            again = function()
            outputs.o.copy_(again.o)
            if outputs.final_state is not None and again.final_state is not None:
                outputs.final_state.copy_(again.final_state)
            return outputs

        return replay

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError("called a synchronizing CUDA operation")

        with pytest.MonkeyPatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "nonzero", "cpu"):
                patch.setattr(torch.Tensor, name, refuse)
            yield

    def behind(self, producer: Callable[[], None], function: Callable[[], Outputs]) -> Outputs:
        if self.late:
            # what a kernel on another stream than the caller's sees
            outputs = function()
            producer()
            return outputs
        producer()
        return function()

    def allocations(self) -> int:
        return self.taken

    def synchronize(self) -> None:
        pass


def check(backend: TorchBackend, case: Case, device: StandIn | None = None) -> Check:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)
    return execute(Context(target, seed=0, device="cpu"), Graph(device or StandIn()), case)


def cases(form: str, label: str) -> list[Case]:
    plan = Plan(operator("gated_delta_rule"), form, "smoke", "cuda")
    return [case for case in PROBE.cases(plan) if case.label == label]


class SyncFree(TorchBackend):
    """Claims what the torch backend does not, for the stand-in sees no allocation and no plan."""

    unsupported: Mapping[str, str] = {"I2": TorchBackend.unsupported["I2"]}


class Keeper(SyncFree):
    """Keeps something about each buffer it sees, and the buffer, so that no other one gets its address."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def kept(self, buffer: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.known.setdefault(buffer.data_ptr(), (buffer, value))[1]


class BakedIndices(Keeper):
    """Reads the indices of a buffer once and keeps them."""

    def baked(self, index: torch.Tensor) -> torch.Tensor:
        return self.kept(index, index.clone())

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(replace(call, read_index=self.baked(call.read_index)))

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        return super().prefill(replace(call, read_index=self.baked(call.read_index)))


class BakedPadding(Keeper):
    """Decides at the first call which rows are padding."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        live = self.kept(call.read_index, call.read_index >= 0)
        index = torch.where(live, call.read_index.clamp(min=0), -1)
        return super().decode(replace(call, read_index=index))


class Waits(SyncFree):
    """Reads the largest index on the host."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        assert int(call.read_index.max()) < call.pool.shape[0] + 4
        return super().decode(call)


class KeepsTheFirst(Keeper):
    """Uses the first queries that it saw in a buffer for ever."""

    def chunk(self, call: SequenceCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().chunk(replace(call, q=self.kept(call.q, call.q.clone())))


@pytest.mark.parametrize("form", ["decode", "prefill", "chunk"])
@pytest.mark.parametrize("label", [REPLAY, SYNC, STREAM])
def test_a_backend_that_leaves_indices_on_the_device_passes(form, label):
    for case in cases(form, label):
        if label == SYNC and case.seqlens is not None:
            continue  # the rows of a pack are planned on the host
        result = check(SyncFree(), case)
        assert result.status is Status.PASS, (case.id, result.message)


@pytest.mark.parametrize(("form", "count"), [("decode", 3), ("prefill", 3)])
def test_indices_baked_in_at_capture_fail(form, count):
    for case in cases(form, REPLAY)[:count]:
        result = check(BakedIndices(), case)
        assert (result.status, result.clause) == (Status.FAIL, "P6")
        assert "replay" in result.message and "read_index" in result.message


def test_padding_decided_at_capture_fails_and_names_the_hazard():
    result = check(BakedPadding(), cases("decode", REPLAY)[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P6", "padding-slot-address")
    assert "-1" in result.message


def test_tokens_kept_from_the_capture_fail():
    result = check(KeepsTheFirst(), cases("chunk", REPLAY)[0])
    assert (result.status, result.clause, result.hazard) == (Status.FAIL, "P6", "incomplete-cache-key")


def test_a_call_that_cannot_be_captured_fails_with_the_reason():
    class Refuses(StandIn):
        def capture(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
            raise RuntimeError("operation not permitted when stream is capturing")

    result = check(SyncFree(), cases("decode", REPLAY)[0], Refuses())
    assert (result.status, result.clause) == (Status.FAIL, "P6")
    assert "could not be captured" in result.message and "not permitted" in result.message


def test_a_wait_for_the_device_fails():
    result = check(Waits(), cases("decode", SYNC)[0])
    assert (result.status, result.clause) == (Status.FAIL, "P6")
    assert "synchronizing" in result.message


def test_a_plan_made_on_the_host_fails_unless_it_is_declared():
    pack = next(case for case in cases("prefill", SYNC) if case.seqlens is not None)
    assert check(SyncFree(), pack).status is Status.FAIL
    declared = check(TorchBackend(), pack)
    assert declared.status is Status.UNSUPPORTED
    assert declared.reason is not None and declared.reason.startswith("sync_free_varlen: ")


def test_inputs_read_before_they_are_there_fail():
    result = check(SyncFree(), cases("decode", STREAM)[0], StandIn(late=True))
    assert (result.status, result.clause) == (Status.FAIL, "P6")
    assert "side stream" in result.message


def test_memory_taken_by_a_warm_decode_fails_unless_it_is_declared():
    device = StandIn()

    class Takes(SyncFree):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            device.taken += 2
            return super().decode(call)

    case = cases("decode", MEMORY)[0]
    result = check(Takes(), case, device)
    assert (result.status, result.clause, result.value, result.expected) == (Status.FAIL, "P6", "2", "0")
    assert check(SyncFree(), case).status is Status.PASS
    assert check(TorchBackend(), case, device).status is Status.UNSUPPORTED


def test_a_backend_without_graphs_is_counted_as_such_and_still_held_to_the_rest():
    class NoGraph(SyncFree):
        unsupported: Mapping[str, str] = {"graph": "compiles at every call"}

    result = check(NoGraph(), cases("decode", REPLAY)[0])
    assert (result.status, result.reason) == (Status.UNSUPPORTED, "graph: compiles at every call")
    assert check(NoGraph(), cases("decode", SYNC)[0]).status is Status.PASS


def test_a_backend_without_padding_is_replayed_without_it():
    class Raw(SyncFree):
        conventions = Conventions(padding=Padding.NONE)

    assert check(Raw(), cases("decode", REPLAY)[0]).status is Status.PASS


def test_it_needs_a_gpu():
    assert PROBE.cuda_only


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("label", [REPLAY, SYNC, STREAM, MEMORY])
def test_on_a_gpu_the_torch_backend_does_what_it_declares(label):
    target = Target(TorchBackend(), operator("gated_delta_rule"), "test", face=False)
    for case in cases("decode", label):
        result = execute(Context(target, seed=0, device="cuda"), PROBE, case)
        expected = Status.UNSUPPORTED if label == MEMORY else Status.PASS
        assert result.status is expected, (case.id, result.message)
