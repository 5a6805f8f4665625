"""The oracle of Kimi delta attention is the definition; here it is held to what is known without it."""

from __future__ import annotations

import math

import pytest
import torch

from deltaproof.ops.gated_delta_rule import oracle as one_gate
from deltaproof.ops.kda import oracle
from deltaproof.ops.kda.gate import log_gate
from tests.ops.kda.cases import GATES, by_hand, sequence_call

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_two_tokens_worked_by_hand():
    """The example of the operator's README: K = 2, V = 1, one head, scale 1."""
    o, final = oracle.sequence(by_hand())
    torch.testing.assert_close(o.flatten(), torch.tensor([3.5, -0.22], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(final.flatten(), torch.tensor([1.96, -0.22], dtype=torch.float64), rtol=1e-7, atol=1e-7)


def test_with_the_same_gate_in_every_channel_it_is_the_gated_delta_rule():
    call = sequence_call(1, T=9)
    shared = call.g[..., 0].contiguous()
    wide = oracle.sequence(call.with_(g=shared[..., None].expand_as(call.g)))
    for found, wanted in zip(wide, one_gate.sequence(call.with_(g=shared)), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_a_channel_whose_gate_is_shut_forgets_and_the_others_remember():
    call = sequence_call(2, T=1)
    g = torch.zeros_like(call.g)
    g[..., 0] = -1e4
    _, final = oracle.sequence(call.with_(g=g, beta=torch.zeros_like(call.beta)))
    assert bool((final[:, :, 0] == 0).all())
    assert torch.equal(final[:, :, 1:], call.initial_state[:, :, 1:].double())


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_its_gradients_are_those_of_finite_differences(gate):
    call = sequence_call(3, B=1, T=4, H=1, HV=2, K=2, V=3, normalize_qk=True, beta_sigmoid=True, **gate)
    names = [
        n for n in ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias") if getattr(call, n) is not None
    ]
    inputs = [getattr(call, name).double().requires_grad_() for name in names]

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return oracle.sequence(call.with_(**dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-7)


def test_the_gate_written_out():
    """Every head and channel by math's own functions."""
    for seed, (name, gate) in enumerate(GATES.items()):
        call = sequence_call(seed, B=1, T=2, H=1, HV=2, K=3, **gate)
        found = log_gate(call, torch.float64)
        for (_, t, h, c), g in zip(
            torch.cartesian_prod(*map(torch.arange, found.shape)).tolist(), found.flatten(), strict=True
        ):
            x = float(call.g[0, t, h, c])
            if call.options.gate_in_kernel:
                x += 0.0 if call.dt_bias is None else float(call.dt_bias[h, c])
                rate = 1.0 if call.A_log is None else math.exp(float(call.A_log[h]))
                low = call.options.lower_bound
                x = -rate * math.log1p(math.exp(x)) if low is None else low / (1 + math.exp(-rate * x))
            assert math.isclose(x, float(g), rel_tol=1e-12), (name, t, h, c)


@pytest.mark.parametrize("raw", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_a_bounded_gate_stays_within_its_bound_however_far_out_its_input(raw):
    call = sequence_call(5, T=2, gate_in_kernel=True, lower_bound=-5.0)
    for dtype in (torch.float64, torch.float32):
        g = log_gate(call.with_(g=torch.full_like(call.g, raw)), dtype)
        assert bool(((g >= -5) & (g <= 0)).all())
