"""The probe ``redzones`` passes a right backend and catches reads and writes past the end of a tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.calls import DecodeCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.inputs import guarded
from deltaproof.verify.probes._memory import Canaries, surroundings
from deltaproof.verify.probes.redzones import BACKWARD, BOUNDS, OUT, PROBE, UNCHECKED
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
BASE = Case("recurrent", T=3, K=9, V=13)
POOL = Case("decode", T=2, K=9, V=13, slot_padding=20, head_padding=12)


def beyond(x: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Return one element behind a contiguous tensor, or ``offset`` further on."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage())
    at = x.storage_offset() + x.numel() + offset
    return memory[at : at + 1]


class ReadsBeyond(TorchBackend):
    """Lets what lies behind one argument into the result, scaled as asked."""

    def __init__(self, name: str, factor: float = 1e-3, offset: int = 0) -> None:
        self.read, self.factor, self.offset = name, factor, offset

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        return o + beyond(getattr(call, self.read), self.offset).to(o.dtype) * self.factor, final


class WritesBeyond(TorchBackend):
    """Stores one element behind a tensor."""

    def __init__(self, name: str, offset: int = 0) -> None:
        self.written, self.offset = name, offset

    def spoil(self, call: Any, o: torch.Tensor) -> None:
        beyond(o if self.written == "o" else getattr(call, self.written), self.offset).fill_(3)

    def recurrent(self, call: SequenceCall) -> Result:
        o, final = super().recurrent(call)
        out = call.allocate(o.shape, dtype=o.dtype, device=o.device).copy_(o)
        self.spoil(call, out)
        return out, final

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        self.spoil(call, o)
        return o


class WritesGap(TorchBackend):
    """Stores a whole block into a pool whose heads are farther apart."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        pool = call.pool
        slot = int(call.read_index[0])
        behind = pool.storage_offset() + slot * pool.stride(0) + pool.shape[2] * pool.shape[3]
        torch.empty(0, dtype=pool.dtype).set_(pool.untyped_storage())[behind] = 2
        return o


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))
    assert len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form))


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta", "initial_state"])
def test_a_read_behind_an_argument_is_caught(name: str) -> None:
    assert_fail(check(ReadsBeyond(name), PROBE, BASE), "M1", "unmasked-load")


def test_a_read_that_is_multiplied_by_zero_is_caught() -> None:
    assert_fail(check(ReadsBeyond("g", factor=0.0), PROBE, BASE), "M1", "unmasked-load")


def test_a_read_in_front_of_an_argument_is_caught() -> None:
    offset = -1 - 2 * 3 * 4
    assert_fail(check(ReadsBeyond("g", offset=offset), PROBE, BASE), "M1", "unmasked-load")


@pytest.mark.parametrize("name", ["q", "beta", "o"])
def test_a_write_behind_an_argument_or_an_output_is_caught(name: str) -> None:
    found = check(WritesBeyond(name), PROBE, BASE)
    assert_fail(found, "M1", "unmasked-store")
    assert "behind" in found.message and found.value == "3"


def test_a_write_behind_a_given_out_is_caught() -> None:
    assert_fail(check(WritesBeyond("out"), PROBE, POOL.but(label=OUT)), "M1", "unmasked-store")


def test_a_write_between_the_heads_of_a_pool_is_caught() -> None:
    found = check(WritesGap(), PROBE, POOL)
    assert found.status is Status.FAIL and found.clause == "P2"


def test_a_write_behind_a_gradient_is_caught() -> None:
    class Stray(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            grad = torch.empty_like(grads[0]).copy_(grads[0])
            beyond(grad).fill_(3)
            return grad

    class Backward(TorchBackend):
        def recurrent(self, call: SequenceCall) -> Result:
            return super().recurrent(call.with_(k=Stray.apply(call.k)))

    case = BASE.but(label=BACKWARD)
    assert_pass(check(TorchBackend(), PROBE, case))
    assert_fail(check(Backward(), PROBE, case), "M1", "unmasked-store")


def test_buffers_are_surrounded_however_they_are_made() -> None:
    made = {
        "empty": lambda: torch.empty(2, 3),
        "zeros": lambda: torch.zeros(2, 3, dtype=torch.int32),
        "like": lambda: torch.empty_like(torch.ones(2, 3)),
        "strided": lambda: torch.empty_strided((2, 3), (1, 2)),
    }
    for name, allocate in made.items():
        for fill in ("nan", "stale"):
            canaries = Canaries(fill)
            with canaries:
                x = allocate()
            assert all(seen.ok for seen in canaries.observe()), name
            assert bool((x == 0).all())
            beyond(x).fill_(3)
            assert [seen.ok for seen in canaries.observe()].count(False) == 1, name


def test_a_write_behind_a_buffer_of_a_custom_operator_is_caught() -> None:
    # a dispatch mode is not active inside the implementation of a custom operator
    @torch.library.custom_op("deltaproof_test_redzones::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        workspace = x.new_empty(x.shape)
        torch.mul(x, 2, out=workspace)
        beyond(workspace).fill_(3)
        return torch.empty_like(x).copy_(workspace)

    class InAnOperator(TorchBackend):
        def recurrent(self, call: SequenceCall) -> Result:
            o, final = super().recurrent(call)
            return double(o) / 2, final

    found = check(InAnOperator(), PROBE, BASE)
    assert_fail(found, "M1", "unmasked-store")
    assert "behind a buffer" in found.message


def test_a_buffer_of_a_compiled_function_is_surrounded() -> None:
    def squares(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x).copy_(x.float() * x)

    compiled = torch.compile(squares, backend="eager", dynamic=True)
    for tokens in (5, 7):
        x = torch.arange(3.0 * tokens).reshape(tokens, 3).bfloat16()
        canaries = Canaries("nan")
        with canaries:
            y = compiled(x)
        assert torch.equal(y, squares(x))
        assert [tuple(shape) for shape, _ in canaries.buffers] == [(tokens, 3)]
        beyond(y).fill_(3)
        assert [seen.ok for seen in canaries.observe()] == [False]


def test_a_buffer_is_surrounded_once_and_the_names_of_torch_are_put_back() -> None:
    before = (torch.empty, torch.zeros, torch.empty_like, torch.Tensor.new_empty)
    canaries = Canaries("nan")
    with canaries:
        x = torch.empty(2, 3)
        x.new_zeros(4)
    assert [tuple(shape) for shape, _ in canaries.buffers] == [(2, 3), (4,)]
    assert (torch.empty, torch.zeros, torch.empty_like, torch.Tensor.new_empty) == before


def test_surroundings_are_told_from_the_tensor_itself() -> None:
    x = guarded(torch.ones(5))
    x.fill_(9)
    assert surroundings("x", x, "nan").ok
    beyond(x, offset=-6).fill_(0)
    seen = surroundings("x", x, "nan")
    assert not seen.ok and "in front of x, the first 1 elements away" in seen.message


class Believes(TorchBackend):
    """Takes num_tokens as it comes: a store for each token, wherever that is."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call)
        assert call.num_tokens is not None
        width = o.shape[2] * o.shape[3]
        memory = torch.empty(0, dtype=o.dtype).set_(o.untyped_storage())
        for row, count in enumerate(call.num_tokens.tolist()):
            first = o.storage_offset() + (row * o.shape[1] + o.shape[1]) * width
            memory[first : first + max(count - o.shape[1], 0) * width] = 0.25
        return o


class Refuses(TorchBackend):
    """Looks at num_tokens."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        assert call.num_tokens is not None
        if bool((call.num_tokens > call.q.shape[1]).any()):
            raise ValueError("num_tokens beyond T")
        return super().decode(call)


class Zeros(TorchBackend):
    """Skips a row whose num_tokens is above T."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        assert call.num_tokens is not None
        T = call.q.shape[1]
        return super().decode(call.with_(num_tokens=torch.where(call.num_tokens > T, 0, call.num_tokens)))


class TestNumTokensThatNobodyChecked:
    CASES = tuple(case for case in smoke(PROBE, "decode") if case.label == UNCHECKED)

    def test_are_clamped_or_refused(self) -> None:
        assert len(self.CASES) == 2
        for case in self.CASES:
            assert max(case.num_tokens) > case.T and min(case.num_tokens) < 0
            # the project's own backend is reached below the functions that would look at them
            assert_pass(check(TorchBackend(), PROBE, case, face=True))
            assert_pass(check(Refuses(), PROBE, case))

    def test_are_not_believed(self) -> None:
        for case in self.CASES:
            found = check(Believes(), PROBE, case)
            assert found.status is Status.FAIL and found.clause in ("M1", "P1"), found.message
            found = check(Zeros(), PROBE, case)
            assert found.status is Status.FAIL and found.clause in ("P1", "P2"), found.message


class FollowsBounds(TorchBackend):
    """Takes cu_seqlens as it comes: reads, or stores, at every bound, wherever that is."""

    def __init__(self, stores: bool) -> None:
        self.stores = stores

    def recurrent(self, call: SequenceCall) -> Result:
        assert call.cu_seqlens is not None
        T = call.q.shape[1]
        bounds = call.cu_seqlens.clamp(0, T).cummax(0).values
        bounds[0] = 0
        o, final = super().recurrent(call.with_(cu_seqlens=bounds))
        for bound in call.cu_seqlens.tolist():
            if T < bound < T + 9:
                row = beyond(call.v, (bound - T) * call.v.shape[2] * call.v.shape[3] - 1)
                if self.stores:
                    row.fill_(3)
                else:
                    o = o + row.to(o.dtype)
        return o, final


class TestBoundsThatNobodyChecked:
    CASE = next(case for case in smoke(PROBE, "recurrent") if case.label == BOUNDS)

    @forms(PROBE)
    def test_are_refused_by_the_torch_backend(self, form: str) -> None:
        for case in smoke(PROBE, form):
            if case.label == BOUNDS:
                assert_pass(check(TorchBackend(), PROBE, case))

    @pytest.mark.parametrize(("stores", "hazard"), [(False, "unmasked-load"), (True, "unmasked-store")])
    def test_are_caught_where_they_are_followed(self, stores: bool, hazard: str) -> None:
        assert_fail(check(FollowsBounds(stores), PROBE, self.CASE), "E1", hazard)
