"""The probe ``layouts`` passes a right backend and catches states read in the wrong order, or as the wrong bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.verify.case import Case
from deltaproof.verify.probes.layouts import INTEGERS, PROBE, TRANSPOSED, WRONG_SHAPE
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
SQUARE = Case("recurrent", label="equal", T=3, K=8, V=8, layout="v_first")
POOL = Case("decode", label="equal", T=2, K=8, V=8, layout="v_first")


class AlwaysKFirst(TorchBackend):
    """Reads and writes every state as [K, V] where the shape allows it."""

    def change(self, call: Any) -> Any:
        options = call.options
        if call.q.shape[-1] == call.v.shape[-1]:
            options = type(options)(**{**vars(options), "layout": StateLayout.K_FIRST})
        return call.with_(options=options)

    def recurrent(self, call: SequenceCall) -> Result:
        return super().recurrent(self.change(call))

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(self.change(call))


class BySize(TorchBackend):
    """Takes a state by its number of elements: whatever the shape, it is viewed as the one expected."""

    def recurrent(self, call: SequenceCall) -> Result:
        if call.initial_state is not None:
            *_, HV, K, V = call.dims
            shape = (call.sequences, HV, *call.options.layout.inner_shape(K, V))
            call = call.with_(initial_state=call.initial_state.contiguous().view(shape))
        return super().recurrent(call)


class Dense(TorchBackend):
    """Walks a state as if it were dense, whatever its strides."""

    def recurrent(self, call: SequenceCall) -> Result:
        state = call.initial_state
        if state is not None:
            memory = torch.empty(0, dtype=state.dtype).set_(state.untyped_storage())
            flat = memory[state.storage_offset() : state.storage_offset() + state.numel()]
            call = call.with_(initial_state=flat.view(state.shape))
        return super().recurrent(call)


class Bytes(TorchBackend):
    """Reads the bytes of any state as fp32."""

    def recurrent(self, call: SequenceCall) -> Result:
        state = call.initial_state
        if state is not None and state.dtype == torch.int32:
            call = call.with_(initial_state=state.view(torch.float32))
        return super().recurrent(call)

    def decode(self, call: DecodeCall) -> torch.Tensor:
        pool = call.pool
        return super().decode(call.with_(pool=pool.view(torch.float32)) if pool.dtype == torch.int32 else call)


class Picky(TorchBackend):
    """Refuses what is not contiguous, clearly."""

    def recurrent(self, call: SequenceCall) -> Result:
        if call.initial_state is not None and not call.initial_state.is_contiguous():
            raise ValueError("initial_state must be contiguous")
        return super().recurrent(call)


@pytest.mark.parametrize("face", [True, False])
@forms(PROBE)
def test_a_right_backend_passes(form: str, face: bool) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case, face=face))


@forms(PROBE)
def test_both_layouts_are_covered_with_equal_and_unequal_sizes(form: str) -> None:
    for cases in (smoke(PROBE, form), full(PROBE, form)):
        assert {(case.layout, case.K == case.V) for case in cases} == {
            (layout, equal) for layout in ("k_first", "v_first") for equal in (True, False)
        }
        assert {TRANSPOSED, WRONG_SHAPE, INTEGERS} <= {case.label for case in cases}
        assert len({case.id for case in cases}) == len(cases)


def test_a_square_state_in_the_wrong_order_is_caught() -> None:
    assert_fail(check(AlwaysKFirst(), PROBE, SQUARE), "T1", "unchecked-state-layout")
    assert_fail(check(AlwaysKFirst(), PROBE, POOL), "T1", "unchecked-state-layout")
    assert_pass(check(AlwaysKFirst(), PROBE, SQUARE.but(layout="k_first")))
    assert_pass(check(AlwaysKFirst(), PROBE, SQUARE.but(label="unequal", V=12)))


def test_a_state_of_the_wrong_shape_must_be_refused() -> None:
    case = SQUARE.but(label=WRONG_SHAPE, V=12)
    found = check(BySize(), PROBE, case)
    assert_fail(found, "T1", "unchecked-state-layout")
    assert "accepted without a word" in found.message
    assert_pass(check(TorchBackend(), PROBE, case))


def test_a_transposed_view_walked_as_dense_is_caught() -> None:
    assert_fail(check(Dense(), PROBE, SQUARE.but(label=TRANSPOSED)), "T1", "assumed-contiguous")
    assert_pass(check(Dense(), PROBE, SQUARE))


def test_a_transposed_view_may_be_refused_by_a_backend_called_directly() -> None:
    assert_pass(check(Picky(), PROBE, SQUARE.but(label=TRANSPOSED)))
    assert_fail(check(Picky(), PROBE, SQUARE.but(label=TRANSPOSED), face=True), "T1", "unchecked-state-layout")


def test_integers_read_as_bytes_are_caught() -> None:
    for case in (SQUARE.but(label=INTEGERS), POOL.but(label=INTEGERS)):
        assert_fail(check(Bytes(), PROBE, case), "T1", "unchecked-state-layout")


def test_a_pool_with_a_transposed_inner_matrix_is_no_place_for_a_copy() -> None:
    class Copied(TorchBackend):
        def decode(self, call: DecodeCall) -> torch.Tensor:
            return super().decode(call.with_(pool=call.pool.contiguous()))

    assert_fail(check(Copied(), PROBE, POOL.but(label=TRANSPOSED)), "P5", "assumed-contiguous")
    assert_pass(check(Copied(), PROBE, POOL))
