"""The walk through the pool: a right backend holds for thousands of steps, and every planted fault ends it."""

from __future__ import annotations

import pytest
import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.causal_conv1d.torch_backend import TorchBackend as ConvBackend
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.ops.registry import operator
from deltaproof.state import Lease, StepPlan
from deltaproof.state.pool import StatePool
from deltaproof.verify.mutants.slots import ClampedToFirst, FreshFromSlot, RawNegative, WrappedToLast
from deltaproof.verify.observation import Observation
from deltaproof.verify.serving.requests import Sizes
from deltaproof.verify.serving.walk import Walk
from deltaproof.verify.target import Target

V_FIRST = StateLayout.V_FIRST
SIZES = [
    Sizes(),
    Sizes(capacity=3, layout=V_FIRST),
    Sizes(capacity=12, gate_in_kernel=True),
    Sizes(state_dtype=torch.bfloat16, layout=V_FIRST),
    Sizes(K=5, V=8, H=2, HV=4, dtype=torch.bfloat16),
]


def walk(backend: object, sizes: Sizes = SIZES[0], seed: int = 0, conv: object | None = None) -> Walk:
    target = Target(backend, operator("gated_delta_rule"), "test", face=False)  # type: ignore[arg-type]
    return Walk(target, sizes, seed, "cpu", exact_rows=False, conv=conv)


def last(found: Walk, steps: int) -> Observation:
    *_, seen = found.run(steps)
    return seen


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_thousand_steps_of_a_right_backend_hold(sizes: Sizes) -> None:
    found = walk(TorchBackend(), sizes, seed=SIZES.index(sizes), conv=ConvBackend())
    seen = last(found, 1000)
    assert seen.ok, seen.message
    assert found.calls > 300 and found.named > 40, "most steps call a kernel, and many requests come"


def test_a_walk_is_the_same_for_the_same_seed() -> None:
    def told(seed: int) -> tuple[int, int]:
        found = walk(TorchBackend(), seed=seed)
        last(found, 60)
        return found.calls, found.named

    assert told(3) == told(3)
    assert len({told(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("backend", "clause"),
    [(RawNegative, "P2"), (WrappedToLast, "P2"), (ClampedToFirst, "P2"), (FreshFromSlot, "P1")],
)
def test_a_backend_that_misuses_an_index_is_seen_within_a_few_steps(backend: type, clause: str) -> None:
    seen = last(walk(backend()), 30)
    assert (seen.ok, seen.clause) == (False, clause), seen.message


def fault_clear_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new request goes on from what the slot held."""
    monkeypatch.setattr(Lease, "has_initial_state", property(lambda self: True))


def fault_snapshot_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer goes on in the slot of its snapshot."""
    real = StatePool._snapshot

    def shared(self, lease, position):
        slot, generation = lease.slot, lease.generation
        kept = real(self, lease, position)
        if lease.slot != slot:
            lease.slot, lease.generation = slot, generation
        return kept

    monkeypatch.setattr(StatePool, "_snapshot", shared)


def fault_slot_freed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is handed out while its holder lives."""
    real = StatePool._take

    def take(self):
        slot = real(self)
        self._free.append(slot)
        return slot

    monkeypatch.setattr(StatePool, "_take", take)


def fault_old_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is replayed with the indices of an earlier step."""
    real = StepPlan._send
    sent = []

    def send(self):
        sent.append(None)
        if len(sent) < 12 or len(sent) % 7:
            real(self)

    monkeypatch.setattr(StepPlan, "_send", send)


@pytest.mark.parametrize("fault", [fault_clear_lost, fault_snapshot_shared, fault_slot_freed_early, fault_old_step])
def test_a_fault_of_the_pool_itself_is_seen(fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last(walk(TorchBackend()), 200).ok
    fault(monkeypatch)
    assert not last(walk(TorchBackend()), 200).ok


class OldWindow(ConvBackend):
    """A row goes on from what its slot held, fresh or not."""

    def decode(self, call):
        return super().decode(call.with_(has_initial_state=None))


class LateWindow(ConvBackend):
    """A hit's window is written where it was read."""

    def decode(self, call):
        return super().decode(call.with_(write_index=call.read_index))


@pytest.mark.parametrize("conv", [OldWindow, LateWindow])
def test_a_window_that_goes_wrong_is_seen_beside_a_right_state(conv) -> None:
    seen = last(walk(TorchBackend(), conv=conv()), 200)
    assert not seen.ok and ("window" in seen.message or "y:" in seen.message), seen.message


def test_a_wrong_value_is_held_to_the_oracle() -> None:
    class Wrong(TorchBackend):
        def decode(self, call):
            return super().decode(call) * 1.01

    seen = last(walk(Wrong()), 300)
    assert (seen.ok, seen.clause) == (False, "N2"), seen.message
    assert "the oracle" in seen.message
