"""The torch backend of Kimi delta attention: against the oracle, what a sub-chunk adds, and states between chunks.

``deltaproof verify --operator kda`` holds every form to the whole contract; these tests are of this file's parts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import deltaproof
from deltaproof import ContractError
from deltaproof.contracts.conventions import StateLayout
from deltaproof.ops.kda import oracle
from deltaproof.ops.kda.torch_backend import TorchBackend
from deltaproof.ops.kda.torch_chunk import faded_products
from tests.ops.kda.cases import GATES, by_hand, sequence_call

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"T": 1},
    "a sub-chunk and a token": {"T": 17},
    "a chunk and a token": {"T": 65},
    "chunks of 16": {"T": 33, "chunk_size": 16},
    "chunks of 32, layout v_first": {"T": 47, "chunk_size": 32, "layout": StateLayout.V_FIRST},
    "six value heads on two query heads": {"H": 2, "HV": 6},
    "sizes of 1": {"K": 1, "V": 1},
    "the largest K": {"T": 5, "K": 256},
    "a pack": {"B": 1, "T": 75, "cu_seqlens": [0, 3, 3, 70, 71]},
}

either_form = pytest.mark.parametrize("form", ["chunk", "recurrent"])


@either_form
@pytest.mark.parametrize("options", [*SHAPES.values(), *GATES.values()], ids=[*SHAPES, *GATES])
def test_it_agrees_with_the_oracle(form, options):
    call = sequence_call(11, **options)
    for found, wanted in zip(getattr(TorchBackend(), form)(call), oracle.sequence(call), strict=True):
        torch.testing.assert_close(found.double(), wanted, **CLOSE)


@either_form
def test_the_two_tokens_worked_by_hand(form):
    o, final = getattr(TorchBackend(), form)(by_hand())
    torch.testing.assert_close(o.flatten(), torch.tensor([3.5, -0.22]))
    torch.testing.assert_close(final.flatten(), torch.tensor([1.96, -0.22]))


def drawn(C: int, slope: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(C)
    x, k = (torch.randn(1, 2, C, 5, generator=generator) for _ in range(2))
    return x, k, (slope * -torch.rand(1, 2, C, 5, generator=generator)).cumsum(-2)


@pytest.mark.parametrize("C", [16, 32, 64])
@pytest.mark.parametrize("slope", [0.0, 1.0, 60.0])
def test_faded_products_are_the_sums_they_stand_for(C, slope):
    x, k, G = drawn(C, slope)
    a, b, c = x.double(), k.double(), G.double()
    lower = torch.ones(C, C, dtype=torch.bool).tril()
    decay = (c[:, :, :, None] - c[:, :, None]).masked_fill(~lower[..., None], -torch.inf).exp()
    wanted = (a[:, :, :, None] * b[:, :, None] * decay).sum(-1)
    torch.testing.assert_close(faded_products(x, k, G).double(), wanted, rtol=1e-5, atol=1e-5)


def test_faded_products_of_a_row_know_no_later_row():
    """Not even in the last bit, where a later row's gate would show if the exponential were split there."""
    x, k, G = drawn(64, 1.0)
    whole = faded_products(x, k, G)
    for cut in (1, 5, 15, 16, 17, 40, 63):
        y, m, H = x.clone(), k.clone(), G.clone()
        y[:, :, cut:], m[:, :, cut:], H[:, :, cut:] = 7.0, -3.0, -1e3
        assert torch.equal(faded_products(y, m, H)[:, :, :cut], whole[:, :, :cut]), cut


@pytest.mark.parametrize("layout", list(StateLayout))
def test_states_between_chunks_are_those_of_the_tokens_before(layout):
    call = sequence_call(3, B=2, T=70, layout=layout)
    tokens = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta")}
    options = {
        "initial_state": call.initial_state,
        "output_final_state": True,
        "chunk_size": 32,
        "state_layout": layout,
    }
    o, final, states = deltaproof.chunk_kda(**tokens, **options, return_intermediate_states=True)
    assert states.shape == (2, 3, 4, *layout.inner_shape(8, 6)) and states.dtype == torch.float32
    assert torch.equal(states[:, 0], call.initial_state)
    for j in (1, 2):
        first = {name: x[:, : 32 * j] for name, x in tokens.items()}
        assert torch.equal(states[:, j], deltaproof.chunk_kda(**first, **options)[1])
    plain = deltaproof.chunk_kda(**tokens, **options)
    assert torch.equal(o, plain[0]) and torch.equal(final, plain[1])


def test_states_of_a_pack_follow_one_another_and_bounds_that_differ_are_refused():
    bounds = [0, 33, 33, 40, 72]
    call = sequence_call(4, B=1, T=72, cu_seqlens=bounds)
    tokens = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta")}
    options = {"initial_state": call.initial_state, "chunk_size": 32, "return_intermediate_states": True}
    cu = call.cu_seqlens
    *_, states = deltaproof.chunk_kda(**tokens, **options, cu_seqlens=cu, cu_seqlens_cpu=cu)
    assert states.shape[:2] == (1, 4)
    assert torch.equal(states[0, [0, 2, 3]], call.initial_state[[0, 2, 3]])
    other = {"cu_seqlens": cu, "cu_seqlens_cpu": torch.tensor([0, 32, 32, 40, 72])}
    with pytest.raises(ContractError, match="cu_seqlens_cpu: expected the values of cu_seqlens"):
        deltaproof.chunk_kda(**tokens, **options, **other)
    with pytest.raises(ContractError, match="chunk_states: expected 4 chunks, as cu_seqlens has, got 3"):
        deltaproof.chunk_kda(**tokens, **options, **other, validate="shapes")


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
def test_the_promise_of_safe_gates_changes_nothing(chunk_size):
    call = sequence_call(6, T=70)
    tokens = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta")} | {"g": call.g.clamp(min=-5)}
    plain, safe = (deltaproof.chunk_kda(**tokens, safe_gate=safe, chunk_size=chunk_size)[0] for safe in (False, True))
    torch.testing.assert_close(safe, plain, rtol=1e-5, atol=1e-6)


def test_a_bias_in_one_row_is_the_bias_a_head_after_another():
    call = sequence_call(7, gate_in_kernel=True)
    tokens = {name: getattr(call, name) for name in ("q", "k", "v", "g", "beta", "A_log")}
    found = {}
    for name, shape in (("flat", (-1,)), ("wide", (4, 8))):
        bias = call.dt_bias.reshape(shape).clone().requires_grad_()
        o, _ = deltaproof.chunk_kda(**tokens, dt_bias=bias, use_gate_in_kernel=True)
        o.square().sum().backward()
        assert bias.grad.shape == bias.shape
        found[name] = (o, bias.grad.view(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))
