"""The probe ``poison`` passes a right backend and catches results that depend on what new memory held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaproof.ops.common.allocation import Allocator, forced_init
from deltaproof.ops.common.calls import DecodeCall, PrefillCall, SequenceCall
from deltaproof.ops.gated_delta_rule.torch_backend import TorchBackend
from deltaproof.reports.model import Status
from deltaproof.verify.case import Case
from deltaproof.verify.probes._memory import filled_buffers
from deltaproof.verify.probes.poison import BACKWARD, OUT, PROBE
from tests.verify.probes.probing import assert_fail, assert_pass, check, forms, full, smoke

Result = tuple[torch.Tensor, torch.Tensor | None]
PACK = Case("chunk", seqlens=(3, 2), tail=3, K=8, V=12, chunk_size=16)
ROWS = Case("decode", B=3, T=2, K=8, V=12, read=(2, -1, 4))


class SkippedRows(TorchBackend):
    """Leaves the last row of a result as ``allocate`` gave it."""

    def __init__(self, allocate: Any = torch.empty_like) -> None:
        self.allocate = allocate

    def skip(self, o: torch.Tensor) -> torch.Tensor:
        out = self.allocate(o)
        out[:, :-1] = o[:, :-1]
        return out

    def chunk(self, call: SequenceCall) -> Result:
        o, final = super().chunk(call)
        return self.skip(o), final


class PaddingSkipped(TorchBackend):
    """Returns early for a padding row."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        o = super().decode(call.with_(out=None))
        out = torch.empty_like(o) if call.out is None else call.out
        live = call.read_index >= 0
        out[live] = o[live]
        return out


class MaskedByProduct(TorchBackend):
    """Adds a workspace nobody wrote, times zero."""

    def prefill(self, call: PrefillCall) -> torch.Tensor:
        o = super().prefill(call)
        return o + torch.empty_like(o) * 0


class UnwrittenGradient(torch.autograd.Function):
    """Passes a tensor on; its gradient's last token is not written."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        grad = grads[0].new_empty(grads[0].shape)
        grad[:, :-1] = grads[0][:, :-1]
        return grad


class HalfBackward(TorchBackend):
    """Writes the gradient of k for all tokens but the last."""

    def chunk(self, call: SequenceCall) -> Result:
        return super().chunk(call.with_(k=UnwrittenGradient.apply(call.k)))


class OtherOut(TorchBackend):
    """Fills ``out`` and returns a copy."""

    def decode(self, call: DecodeCall) -> torch.Tensor:
        return super().decode(call).clone()


@forms(PROBE)
def test_a_right_backend_passes(form: str) -> None:
    for case in smoke(PROBE, form):
        assert_pass(check(TorchBackend(), PROBE, case))
    assert len({case.id for case in full(PROBE, form)}) == len(full(PROBE, form))


ALLOCATORS = {
    "empty": lambda o: torch.empty(o.shape, dtype=o.dtype),
    "empty_like": torch.empty_like,
    "empty_strided": lambda o: torch.empty_strided(o.shape, o.stride(), dtype=o.dtype),
    "new_empty": lambda o: o.new_empty(o.shape),
    "allocator": lambda o: Allocator()(o.shape, dtype=o.dtype, device=o.device),
}


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_an_unwritten_row_is_caught_however_it_was_allocated(name: str) -> None:
    dense = PACK.but(seqlens=None, tail=0, T=5)
    assert_fail(check(SkippedRows(ALLOCATORS[name]), PROBE, dense), "M1", "unwritten-output")
    assert_pass(check(SkippedRows(torch.clone), PROBE, dense))


def test_an_unwritten_tail_row_is_caught() -> None:
    assert_fail(check(SkippedRows(), PROBE, PACK), "M1", "unwritten-output")


@pytest.mark.parametrize("label", ["", OUT])
def test_an_unwritten_padding_row_is_caught(label: str) -> None:
    assert_fail(check(PaddingSkipped(), PROBE, ROWS.but(label=label)), "M1", "unwritten-output")
    assert_pass(check(PaddingSkipped(), PROBE, ROWS.but(label=label, read=(2, 1, 4))))


def test_a_product_with_zero_is_told_from_an_unwritten_element() -> None:
    assert_fail(check(MaskedByProduct(), PROBE, PACK.but(form="prefill")), "M1", "mask-by-multiply")


def test_an_unwritten_gradient_is_caught() -> None:
    case = PACK.but(label=BACKWARD, tail=0)
    assert_pass(check(TorchBackend(), PROBE, case))
    found = check(HalfBackward(), PROBE, case)
    assert_fail(found, "M1", "unwritten-output")
    assert "gradient of k" in found.message


def test_the_given_out_is_what_is_returned() -> None:
    assert_fail(check(OtherOut(), PROBE, ROWS.but(label=OUT)), "M1", None)


def test_a_backend_that_cannot_repeat_itself_is_held_to_the_bounds() -> None:
    backend = SkippedRows()
    backend.unsupported = {"I1": "sums in any order"}
    assert check(backend, PROBE, PACK).status is Status.FAIL


def test_new_memory_is_filled_wherever_it_comes_from() -> None:
    with filled_buffers("nan"):
        made = [allocate(torch.zeros(3)) for allocate in ALLOCATORS.values()]
        number = torch.empty(2, dtype=torch.int64)
    assert all(bool(x.isnan().all()) for x in made)
    assert bool((number > 1 << 60).all())
    with filled_buffers("stale"):
        made = [allocate(torch.zeros(3)) for allocate in ALLOCATORS.values()]
    assert all(bool((x == 1.5).all()) for x in made)


def test_new_memory_is_filled_inside_a_custom_operator() -> None:
    @torch.library.custom_op("deltaproof_test::nothing", mutates_args=())
    def nothing(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    with filled_buffers("stale"):
        made = nothing(torch.zeros(3))
    assert bool((made == 1.5).all())


def test_new_memory_is_filled_inside_a_compiled_function() -> None:
    compiled = torch.compile(torch.empty_like, backend="eager", dynamic=True)
    for tokens in (3, 5):
        with filled_buffers("stale"):
            made = compiled(torch.zeros(tokens, 2))
        assert bool((made == 1.5).all())


def test_torch_is_as_it_was_afterwards() -> None:
    before = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
    with filled_buffers("nan"):
        assert torch.empty is not before[0]
    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before
    assert "new_empty" not in vars(torch.Tensor)


def test_a_filler_reaches_buffers_declared_empty_and_no_others() -> None:
    allocate = Allocator()
    with forced_init(lambda buffer: buffer.fill_(7)):
        empty, zeros = (
            allocate((2,), dtype=torch.float32, device=torch.device("cpu"), init=init) for init in ("empty", "zeros")
        )
    assert empty.tolist() == [7, 7] and zeros.tolist() == [0, 0]
    forced = Allocator("poison")
    with forced_init(lambda buffer: buffer.fill_(7)):
        assert bool(forced((2,), dtype=torch.float32, device=torch.device("cpu")).isnan().all())
