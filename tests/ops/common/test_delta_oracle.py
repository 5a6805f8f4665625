"""The recurrence every delta rule's oracle is made of: a gate a head, or one a channel of K."""

from __future__ import annotations

import torch

from deltaproof.ops.common.delta_oracle import recurrence


def drawn(seed: int, T: int = 5, HV: int = 3, K: int = 4, V: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (T, HV, K), "k": (T, HV, K), "v": (T, HV, V), "beta": (T, HV), "state": (HV, K, V)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def test_a_gate_that_is_the_same_in_every_channel_is_a_gate_a_head():
    x = drawn(1)
    g = -torch.rand(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    o, states = recurrence(g=g, scale=0.5, **x)
    wide, wide_states = recurrence(g=g[..., None].expand(5, 3, 4), scale=0.5, **x)
    assert torch.equal(o, wide)
    assert all(torch.equal(a, b) for a, b in zip(states, wide_states, strict=True)) and len(states) == 6


def test_a_gate_a_channel_fades_rows_of_the_state():
    """Written out: S' = diag(exp g) S, S = S' + beta k (v - S'^T k)^T, o = scale S^T q."""
    x = drawn(3)
    g = -torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    o, states = recurrence(g=g, scale=0.5, **x)
    for h in range(3):
        S = x["state"][h]
        for t in range(5):
            S = torch.diag(g[t, h].exp()) @ S
            S = S + x["beta"][t, h] * torch.outer(x["k"][t, h], x["v"][t, h] - S.T @ x["k"][t, h])
            torch.testing.assert_close(o[t, h], 0.5 * S.T @ x["q"][t, h], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(states[-1][h], S, rtol=1e-12, atol=1e-12)
